"""A target of the fuzzer: a reader of untrusted content, and inputs to start from."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random

from tests.fuzz import parts
from tests.fuzz.mutators import MUTATORS, mutate_bytes
from tests.fuzz.oracle import MAX_SECONDS, Finding, check

CORPUS = Path(__file__).parent / "corpus"
NASTY = Path(__file__).parents[3] / "shared" / "data" / "nasty"
_MAX_SEED_BYTES = 60_000


@dataclass(frozen=True)
class Target:
    """A reader.

    Attributes:
        name: of the target, and of its folder in the corpus.
        kinds: mutator of every file that an input consists of.
        run: reads an input in a folder; called with its files.
        seeds: yields inputs, a valid one first; called with a folder to write to, and the folder `../shared/data/nasty`
            or None.
        prepare: writes what does not change from input to input.
        is_slow: whether preparing and the seeds take more than about three seconds.
    """

    name: str
    kinds: tuple[str, ...]
    run: Callable[[Sequence[bytes], Path], None]
    seeds: Callable[[Path, Path | None], Iterable[Sequence[bytes]]]
    prepare: Callable[[Path], None] = lambda folder: None
    is_slow: bool = False

    def all_seeds(self, folder: Path, nasty: Path = NASTY) -> list[bytes]:
        """Return the corpus and the inputs to start from, without those that are large.

        Args:
            folder: to write to.
            nasty: folder of malformed inputs; it may be missing.
        """
        generated = [parts.join(one) for one in self.seeds(folder, nasty if nasty.is_dir() else None)]
        return [one for one in dict.fromkeys([*self.corpus().values(), *generated]) if len(one) <= _MAX_SEED_BYTES]

    def corpus(self) -> dict[str, bytes]:
        """Return the inputs that are kept in the project, by the names of their files."""
        return {path.name: path.read_bytes() for path in sorted((CORPUS / self.name).glob("*"))}

    def mutate(self, content: bytes, random: Random, fallback: Callable[[bytes], bytes] | None = None) -> bytes:
        """Change one of the files of an input, or all.

        Args:
            content: the input.
            random: of the changes.
            fallback: another mutator of bytes.
        """
        files = parts.split(content, len(self.kinds))
        for index in range(len(files)) if random.random() < 0.15 else [random.randrange(len(files))]:
            if random.random() < 0.1:
                files[index] = fallback(files[index]) if fallback is not None else mutate_bytes(files[index], random)
            else:
                files[index] = MUTATORS[self.kinds[index]](files[index], random)
        return parts.join(files)


class Fuzzed:
    """A target with a folder to read inputs in."""

    def __init__(self, target: Target) -> None:
        self.target = target
        memory = Path("/dev/shm")
        self.folder = Path(tempfile.mkdtemp(prefix="detrkit-fuzz-", dir=memory if os.access(memory, os.W_OK) else None))
        target.prepare(self.folder)
        seeds = self.folder / "seeds"
        seeds.mkdir()
        for files in islice(target.seeds(seeds, None), 1):  # imports and first calls take seconds
            with suppress(Exception):
                target.run(files, self.folder)

    def __enter__(self) -> "Fuzzed":
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def check(self, content: bytes, max_seconds: float = MAX_SECONDS) -> Finding | None:
        """Read an input, and return how the reader violates its contract."""
        files = parts.split(content, len(self.target.kinds))
        return check(lambda: self.target.run(files, self.folder), max_seconds)
