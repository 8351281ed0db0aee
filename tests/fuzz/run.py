"""Fuzz targets with atheris (libFuzzer): `python -m tests.fuzz.run coco voc --minutes 10`.

Needs the dependency group `fuzz`. A process that ends early, by a fault in native code or a hang, is restarted until the
time is over. What violates the contract of `oracle` is left in the output folder, one input for each cause.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz.target import NASTY
from tests.fuzz.targets import TARGETS

_ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class FuzzResult:
    """Result of fuzzing one target.

    Attributes:
        name: of the target.
        seconds: that it took.
        executions: inputs that were read.
        findings: kind and place of every violation.
        output: folder with the inputs that violate the contract.
    """

    name: str
    seconds: float
    executions: int
    findings: tuple[str, ...]
    output: Path

    def __str__(self) -> str:
        listed = "; ".join(self.findings) or "none"
        return f"{self.name}: {self.seconds / 60:.1f} min, {self.executions} executions, findings: {listed}"


def fuzz(name: str, seconds: float, output: Path, nasty: Path = NASTY, runs: int | None = None) -> FuzzResult:
    """Fuzz one target.

    Args:
        name: of the target.
        seconds: of wall time, without the start of the process.
        output: folder for the corpus, the log and the inputs that violate the contract.
        nasty: folder of malformed inputs to start from; it may be missing.
        runs: executions after which to stop, always with the same changed inputs. Default: no limit, and other inputs
            every time.
    """
    corpus, found = output / "corpus", output / "found"
    for folder in (corpus, found):
        folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        for number, content in enumerate(TARGETS[name].all_seeds(Path(temporary), nasty)):
            (corpus / f"seed-{number:04d}").write_bytes(content)
    started, crashes = time.monotonic(), 0
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONHASHSEED": "0",
        "XDG_CACHE_HOME": str(output / "cache"),
    }
    with (output / "log").open("ab") as log:
        while (left := seconds - (time.monotonic() - started)) >= 1:
            arguments = [
                sys.executable,
                "-m",
                "tests.fuzz.atheris_process",
                name,
                str(int(left)),
                str(corpus),
                str(found),
                *([f"-runs={runs}", "-seed=1"] if runs is not None else []),
            ]
            process = subprocess.run(arguments, cwd=_ROOT, env=environment, stdout=log, stderr=log, check=False)
            if process.returncode == 0:
                break
            crashes += 1
            if not any(found.glob("*.json")):
                raise RuntimeError(f"{name}: the fuzzer does not start; see {output / 'log'}")
    statistics = [json.loads(path.read_text()) for path in found.glob("*.json")]
    findings = {one for each in statistics for one in each["findings"]}
    findings |= {
        f"crash or hang: {path.name}" for kind in ("crash", "timeout", "oom") for path in found.glob(f"{kind}-*")
    }
    executions = sum(each["executions"] for each in statistics)
    return FuzzResult(name, time.monotonic() - started, executions, tuple(sorted(findings)), output)


def main() -> None:
    """Fuzz the targets that are named, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)}; default: all")
    parser.add_argument("--minutes", type=float, default=10, help="for each target")
    parser.add_argument("--output", type=Path, default=Path(tempfile.gettempdir()) / "detrkit-fuzz")
    parser.add_argument("--seeds", type=Path, default=NASTY, help="folder of malformed inputs to start from")
    options = parser.parse_args()
    for name in options.targets or TARGETS:
        result = fuzz(name, 60 * options.minutes, options.output / name, options.seeds)
        sys.stdout.write(f"{result}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
