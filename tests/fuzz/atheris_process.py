"""A process of libFuzzer on one target, started by `run`. Violations are written to a folder, and it continues."""

import hashlib
import importlib
import json
import os
import pkgutil
import resource
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

import atheris

with atheris.instrument_imports(include=["detrkit"]):
    import detrkit

    for module in pkgutil.walk_packages(
        detrkit.__path__, "detrkit."
    ):  # formats and engines are imported when they are needed
        if module.name.split(".")[1] in ("config", "data", "checkpoints", "evaluation", "inference", "serve"):
            importlib.import_module(module.name)
    from tests.fuzz.targets import TARGETS

from tests.fuzz.oracle import report
from tests.fuzz.target import Fuzzed

_MAX_ADDRESS_SPACE = (
    4 * 2**30
)  # beyond what is used at the start: a larger allocation fails instead of filling the memory
_HANG_SECONDS = 60  # of wall time; slow inputs are found by their CPU time
_MAX_BYTES = 60_000  # of an input


def main(name: str, seconds: int, corpus: Path, output: Path, further: Sequence[str] = ()) -> None:
    """Fuzz a target.

    Args:
        name: of the target.
        seconds: after which to stop.
        corpus: folder of inputs, which grows.
        output: folder for the statistics and for inputs that violate the contract.
        further: options of libFuzzer.
    """
    target = TARGETS[name]
    fuzzed = Fuzzed(target)
    found: dict[str, str] = {}
    executions, written = 0, time.monotonic()

    def write_statistics() -> None:
        (output / f"{os.getpid()}.json").write_text(json.dumps({"executions": executions, "findings": sorted(found)}))

    def run_one(content: bytes) -> None:
        nonlocal executions, written
        finding = fuzzed.check(content)
        executions += 1
        if finding is not None and finding.key not in found:
            digest = hashlib.sha256(finding.key.encode()).hexdigest()[:12]
            found[finding.key] = digest
            (output / f"{finding.kind}-{digest}").write_bytes(content)
            report(name, finding)
            write_statistics()
        if executions == 1 or time.monotonic() - written > 1:
            written = time.monotonic()
            write_statistics()

    limit_address_space()
    options = [
        sys.argv[0],
        f"-max_total_time={seconds}",
        f"-timeout={_HANG_SECONDS}",
        f"-max_len={_MAX_BYTES}",
        "-rss_limit_mb=0",
        "-print_final_stats=1",
        f"-artifact_prefix={output}/",
        *further,
        str(corpus),
    ]
    atheris.Setup(options, run_one, custom_mutator=_mutator(target.mutate))
    atheris.Fuzz()


def _mutator(mutate: Callable[..., bytes]) -> Callable[[bytes, int, int], bytes]:
    def change(content: bytes, max_size: int, seed: int) -> bytes:
        changed = mutate(content, Random(seed), lambda data: atheris.Mutate(data, len(data) + 64))
        return changed if len(changed) <= max_size else content[:max_size]

    return change


def limit_address_space() -> None:
    """Let allocations of gigabytes fail."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + _MAX_ADDRESS_SPACE
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4]), sys.argv[5:])
