"""Decoding of all images of a dataset, with a cache, so that examining a large dataset can be resumed.

An image is decoded again if the size or date of its file, or its annotated size, has changed.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO, TypeVar

import PIL

from detrkit._internal.documents import parse_json
from detrkit._internal.files import make_folder, write_text
from detrkit._internal.home import has_home
from detrkit.data.decoding import RGB
from detrkit.data.images import array_shape, open_image, read_image_bytes
from detrkit.data.records import Record
from detrkit.errors import ConfigError, DatasetError, arg

Result = TypeVar("Result")


@dataclass(frozen=True)
class DecodedImage:
    """Result of decoding an image.

    Attributes:
        digest: hash of the file's content; empty if it cannot be read.
        size: (height, width), or None.
        channels: of an array; 3 for image files of any mode.
        error: why it cannot be read, or None.
    """

    digest: str
    size: tuple[int, int] | None
    channels: int
    error: str | None


def decode_images(
    records: Sequence[Record],
    workers: int,
    progress: Callable[[int, int], None] | None = None,
    cache: Path | None = None,
) -> dict[Path, DecodedImage]:
    """Decode every image once.

    Args:
        records: of the images.
        workers: processes; 0 decodes in this one.
        progress: called with the number of images decoded and the total.
        cache: file with results of earlier calls, to which new results are added; None to decode all images.
    """
    jobs = {record.path: record for record in records}
    keys = {path: _key(record) for path, record in jobs.items()}
    known = _read_cache(cache)
    decoded = {path: known[key] for path, key in keys.items() if key in known}
    missing = [record for path, record in jobs.items() if path not in decoded]
    if progress:
        progress(len(decoded), len(jobs))
    log = _CacheWriter(cache if missing else None)
    try:
        for record, image in zip(missing, map_in_processes(_decode, missing, workers), strict=True):
            decoded[record.path] = image
            log.add(_line(keys[record.path], image))
            if progress:
                progress(len(decoded), len(jobs))
    except BrokenProcessPool:
        raise DatasetError(
            f"a process that decodes images was killed after {len(decoded)} of {len(jobs)}, probably because memory ran "
            f"out; try again with {arg('workers', 1)}"
        ) from None
    finally:
        log.close()
    log.rewrite("".join(_line(keys[path], image) for path, image in decoded.items()))  # without outdated lines
    return {path: decoded[path] for path in sorted(jobs)}


def map_in_processes(function: Callable[[Record], Result], records: Sequence[Record], workers: int) -> Iterator[Result]:
    """Apply a function to records in worker processes, in order; in this process if there are no workers.

    Raises:
        BrokenProcessPool: a process was killed.
    """
    if not workers or not records:
        yield from map(function, records)
        return
    with ProcessPoolExecutor(workers) as pool:
        yield from pool.map(function, records, chunksize=8)


def cache_path(dataset: Path) -> Path | None:
    """Return the cache file of a dataset, in the user's cache folder; None for a user without a home folder."""
    caches = os.environ.get("XDG_CACHE_HOME")
    if not caches and not has_home():
        return None
    folder = Path(caches) if caches else Path.home() / ".cache"
    name = hashlib.sha256(os.fsencode(dataset.resolve())).hexdigest()[:24]
    return folder / "detrkit" / "doctor" / f"{name}.jsonl"


def _decode(record: Record) -> DecodedImage:
    try:
        digest = hashlib.sha256(read_image_bytes(record.path, record.span)).hexdigest()
        image = open_image(record.path, record.size, record.span)
        channels = array_shape(record.path, record.span)[2] if record.path.suffix.lower() == ".npy" else RGB
    except DatasetError as error:
        return DecodedImage("", None, 0, str(error))
    except MemoryError:
        return DecodedImage("", None, 0, f"{record.path}: does not fit into memory; make it smaller")
    return DecodedImage(digest, (image.height, image.width), channels, None)


def _key(record: Record) -> str:
    file = record.path if record.span is None else record.path.parent
    try:
        status = file.stat()
    except OSError:
        return f"{record.path} is missing"
    return json.dumps([PIL.__version__, str(record.path), status.st_size, status.st_mtime_ns, record.size, record.span])


def _line(key: str, image: DecodedImage) -> str:
    return json.dumps({"key": key, **asdict(image)}) + "\n"


def _read_cache(cache: Path | None) -> dict[str, DecodedImage]:
    """Read a cache file; malformed lines are ignored."""
    known: dict[str, DecodedImage] = {}
    try:
        lines = cache.read_text(encoding="utf-8").splitlines() if cache else []
    except (OSError, ValueError):
        return known
    for line in lines:
        try:
            entry = parse_json(line)
            size = None if entry["size"] is None else (int(entry["size"][0]), int(entry["size"][1]))
            if entry["error"] is None:  # errors may have been temporary
                known[str(entry["key"])] = DecodedImage(str(entry["digest"]), size, int(entry["channels"]), None)
        except (ValueError, KeyError, TypeError, IndexError, OverflowError):
            continue
    return known


class _CacheWriter:
    """Appends lines to the cache; a full disk or a read-only home disables it instead of raising an error."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._file: TextIO | None = None
        if path is not None:
            with suppress(OSError, ConfigError):
                make_folder(path.parent)
                self._file = path.open("a", encoding="utf-8")

    def add(self, line: str) -> None:
        """Append a line, or close the file if that fails."""
        if self._file is not None:
            try:
                self._file.write(line)
                self._file.flush()
            except OSError:
                self.close()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            with suppress(OSError):
                self._file.close()
            self._file = None

    def rewrite(self, text: str) -> None:
        """Replace the content atomically."""
        if self._path is not None:
            with suppress(OSError, ConfigError):
                write_text(self._path, text)
