"""Images that are in two splits, found by path and by content.

Only the content of files of equal size is compared: of COCO, a few thousand files of 123,000.
"""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from pathlib import Path

from detrkit._internal.files import open_file
from detrkit.data.dataset import SampleSplit, Split
from detrkit.data.images import read_image_bytes
from detrkit.errors import DatasetError

_HEAD_BYTES = 16384  # compared before the rest
_NUM_THREADS = 8  # network file systems answer slowly, but many at once

# a path, and offset and length in bytes inside a shard; offset -1 for a file of its own
_Place = tuple[Path, int, int]


def find_shared_images(first: Split, second: Split) -> list[int]:
    """Find the images of a split that are in another, too, as the same file or as a copy with another name.

    Args:
        first: of image files, or of a `torch` dataset.
        second: likewise; images of `torch` datasets are only compared within the same dataset.

    Returns:
        Indices in the second split, ascending.
    """
    if isinstance(first, SampleSplit) or isinstance(second, SampleSplit):
        if not isinstance(first, SampleSplit) or not isinstance(second, SampleSplit) or first.reader != second.reader:
            return []
        rows = set(first.rows)
        return [index for index, row in enumerate(second.rows) if row in rows]
    known, places = set(_places(first)), _places(second)
    shared = {index for index, place in enumerate(places) if place in known}
    others = {place: index for index, place in enumerate(places) if index not in shared}
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        copies = _find_copies(known, others, pool)
    return sorted(shared | {others[place] for place in copies})


def _places(split: Split) -> list[_Place]:
    records = split.records
    spans = records.arrays.spans.tolist()
    return [(records.path(index), offset, length) for index, (offset, length) in enumerate(spans)]


def _find_copies(first: Iterable[_Place], second: Iterable[_Place], pool: ThreadPoolExecutor) -> set[_Place]:
    """Return the places of the second group whose content is somewhere in the first."""
    groups = [list(first), list(second)]
    for key in (_size, _head, _whole):
        keys = [dict(zip(group, pool.map(key, group), strict=True)) for group in groups]
        common = set(keys[0].values()) & set(keys[1].values()) - {None}
        groups = [[place for place, value in of_group.items() if value in common] for of_group in keys]
    return set(groups[1])


def _size(place: _Place) -> int | None:
    path, offset, length = place
    try:
        return length if offset >= 0 else path.stat().st_size
    except OSError:
        return None


def _head(place: _Place) -> bytes | None:
    path, offset, length = place
    try:
        with open_file(path if offset < 0 else path.parent) as file:
            file.seek(max(offset, 0))
            return file.read(_HEAD_BYTES if offset < 0 else min(length, _HEAD_BYTES))
    except OSError:
        return None


def _whole(place: _Place) -> bytes | None:
    path, offset, length = place
    try:
        content = read_image_bytes(path, None if offset < 0 else (offset, length))
    except (DatasetError, OSError):
        return None
    return blake2b(content, digest_size=16).digest()
