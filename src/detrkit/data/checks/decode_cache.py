"""What decoding every photo gave, remembered, so that examining a large set goes on where it stopped.

A photo is decoded again when its file has another size or date, or its annotations speak of another size.
"""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

import PIL

from detrkit._internal.files import make_folder, write_text
from detrkit.data.images import RGB, array_shape, open_image, read_image_bytes
from detrkit.data.records import Record
from detrkit.errors import ConfigError, DatasetError


@dataclass(frozen=True)
class DecodedImage:
    """A photo as it is on disk.

    Attributes:
        digest: of its content; empty where it cannot be read.
        size: (height, width), or None.
        channels: of an array; 3 for a usual photo, whatever it holds.
        fault: why it cannot be read, or None.
    """

    digest: str
    size: tuple[int, int] | None
    channels: int
    fault: str | None


def decode_images(
    records: Sequence[Record],
    workers: int,
    progress: Callable[[int, int], None] | None = None,
    memory: Path | None = None,
) -> dict[Path, DecodedImage]:
    """Decode every photo once.

    Args:
        records: whose photos.
        workers: processes.
        progress: told how many photos of how many are done.
        memory: file of what was decoded before; None starts anew and keeps nothing.
    """
    jobs = {record.path: record for record in records}
    keys = {path: _key(record) for path, record in jobs.items()}
    known = _recall(memory)
    found = {path: known[key] for path, key in keys.items() if key in known}
    missing = [record for path, record in jobs.items() if path not in found]
    if progress:
        progress(len(found), len(jobs))
    log = _Log(memory if missing else None)
    try:
        with ProcessPoolExecutor(max(1, workers)) as pool:
            for record, photo in zip(missing, pool.map(_decode, missing, chunksize=8), strict=True):
                found[record.path] = photo
                log.add(_line(keys[record.path], photo))
                if progress:
                    progress(len(found), len(jobs))
    except BrokenProcessPool:
        raise DatasetError(
            f"photos: a process that decoded them was killed after {len(found)} of {len(jobs)}, most likely for want of "
            "memory; run again with --workers 1"
        ) from None
    finally:
        log.close()
    log.rewrite("".join(_line(keys[path], photo) for path, photo in found.items()))  # without what is out of date
    return {path: found[path] for path in sorted(jobs)}


def cache_path(dataset: Path) -> Path:
    """Where the results of a dataset are remembered: in the user's cache, never in the dataset."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    name = hashlib.sha256(os.fsencode(dataset.resolve())).hexdigest()[:24]
    return cache / "detrkit" / "doctor" / f"{name}.jsonl"


def _decode(record: Record) -> DecodedImage:
    try:
        digest = hashlib.sha256(read_image_bytes(record.path, record.span)).hexdigest()
        photo = open_image(record.path, record.size, record.span)
        channels = array_shape(record.path, record.span)[2] if record.path.suffix.lower() == ".npy" else RGB
    except DatasetError as error:
        return DecodedImage("", None, 0, str(error))
    except MemoryError:
        return DecodedImage("", None, 0, f"{record.path}: does not fit into memory; make it smaller")
    return DecodedImage(digest, (photo.height, photo.width), channels, None)


def _key(record: Record) -> str:
    file = record.path if record.span is None else record.path.parent
    try:
        status = file.stat()
    except OSError:
        return f"{record.path} is missing"
    return json.dumps([PIL.__version__, str(record.path), status.st_size, status.st_mtime_ns, record.size, record.span])


def _line(key: str, photo: DecodedImage) -> str:
    return json.dumps({"key": key, **asdict(photo)}) + "\n"


def _recall(memory: Path | None) -> dict[str, DecodedImage]:
    """Read what is remembered; a line that was cut off is one photo more to decode."""
    known: dict[str, DecodedImage] = {}
    try:
        lines = memory.read_text(encoding="utf-8").splitlines() if memory else []
    except (OSError, ValueError):
        return known
    for line in lines:
        try:
            entry = json.loads(line)
            size = None if entry["size"] is None else (int(entry["size"][0]), int(entry["size"][1]))
            if entry["fault"] is None:  # a fault may have been the disk's, which is mended
                known[str(entry["key"])] = DecodedImage(str(entry["digest"]), size, int(entry["channels"]), None)
        except (ValueError, KeyError, TypeError, IndexError):
            continue
    return known


class _Log:
    """Lines added to a file, as long as that works.

    Remembering is a convenience: a full disk, or a home that cannot be written to, is no fault of the dataset's.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._file: TextIO | None = None
        if path is not None:
            with suppress(OSError, ConfigError):
                make_folder(path.parent)
                self._file = path.open("a", encoding="utf-8")

    def add(self, line: str) -> None:
        """Write a line, or give up."""
        if self._file is not None:
            try:
                self._file.write(line)
                self._file.flush()
            except OSError:
                self.close()

    def close(self) -> None:
        """Write no more."""
        if self._file is not None:
            with suppress(OSError):
                self._file.close()
            self._file = None

    def rewrite(self, text: str) -> None:
        """Put the whole content anew, in one go."""
        if self._path is not None:
            with suppress(OSError, ConfigError):
                write_text(self._path, text)
