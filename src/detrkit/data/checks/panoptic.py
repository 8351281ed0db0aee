"""What is wrong between a panoptic JSON and its PNGs: every PNG is decoded and compared with its entry.

Input: records. Output: a `Comparison` for each that has a PNG, and the `Finding`s made of them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import torch

from detrkit.data.checks.annotations import Finding, Location
from detrkit.data.records import Record
from detrkit.data.segment_png import read_ids
from detrkit.data.segmentation import segment_ids
from detrkit.errors import DatasetError
from detrkit.ops.segments import VOID, have_pixels, ids_in, ids_to_masks, masks_to_boxes

_SLACK = 1.0  # pixels by which a box may differ from its mask's: tools count the last pixel or do not
_FIRST = 3  # ids that a message names


@dataclass(frozen=True)
class Comparison:
    """A PNG beside its entry in the JSON.

    Attributes:
        png: the file.
        fault: why it cannot be read, or None.
        empty: ids of the entry that no pixel has.
        unnamed: ids of pixels that the entry does not have.
        moved: ids whose box is not that of their pixels.
    """

    png: Path
    fault: str | None = None
    empty: tuple[int, ...] = ()
    unnamed: tuple[int, ...] = ()
    moved: tuple[int, ...] = ()


def compare_segments(
    records: Sequence[Record], workers: int, progress: Callable[[int, int], None] | None = None
) -> dict[Path, Comparison]:
    """Decode the PNG of every record that has one.

    Args:
        records: of a dataset.
        workers: processes.
        progress: told how many PNGs of how many are done.

    Returns:
        What was found, by the photo's path.

    Raises:
        DatasetError: a process was killed.
    """
    jobs = [record for record in records if record.mask_file is not None]
    found: dict[Path, Comparison] = {}
    if not jobs:
        return found
    try:
        with ProcessPoolExecutor(max(1, workers)) as pool:
            for record, comparison in zip(jobs, pool.map(_compare, jobs, chunksize=8), strict=True):
                found[record.path] = comparison
                if progress:
                    progress(len(found), len(jobs))
    except BrokenProcessPool:
        raise DatasetError(
            f"PNGs of segments: a process that decoded them was killed after {len(found)} of {len(jobs)}, most likely for "
            "want of memory; run again with --workers 1"
        ) from None
    return found


def segment_findings(comparisons: Mapping[Path, Comparison]) -> Iterator[Finding]:
    """Say what was found."""
    unreadable = tuple(Location(one.fault, photo) for photo, one in comparisons.items() if one.fault)
    empty = _places(comparisons, lambda one: one.empty)
    unnamed = _places(comparisons, lambda one: one.unnamed)
    moved = _places(comparisons, lambda one: one.moved)
    if unreadable:
        yield Finding("error", "PNGs of segments that cannot be read", "export them again, or drop them", unreadable)
    if unnamed:
        advice = "their pixels belong to nothing; name them in segments_info, or draw them black"
        yield Finding("warning", "PNGs with ids that segments_info does not name", advice, unnamed)
    if empty:
        yield Finding("warning", "segments that no pixel of the PNG has", "they are left out with masks", empty)
    if moved:
        advice = "training with masks takes those of the PNG, training without these; correct them"
        yield Finding("warning", "segments whose box is not that of their pixels", advice, moved)


def _compare(record: Record) -> Comparison:
    assert record.mask_file is not None
    assert record.segmentations is not None
    try:
        ids = read_ids(record.mask_file, record.size)
    except DatasetError as error:
        return Comparison(record.mask_file, str(error))
    wanted = segment_ids(record.segmentations)
    masks = ids_to_masks(ids, wanted)
    is_empty = ~have_pixels(masks)
    is_moved = ((masks_to_boxes(masks) - torch.from_numpy(record.boxes)).abs() > _SLACK).any(1) & ~is_empty
    unnamed = ids_in(ids) - {VOID, *wanted.tolist()}
    return Comparison(
        record.mask_file,
        empty=tuple(wanted[is_empty].tolist()),
        unnamed=tuple(sorted(unnamed)),
        moved=tuple(wanted[is_moved].tolist()),
    )


def _places(
    comparisons: Mapping[Path, Comparison], of: Callable[[Comparison], tuple[int, ...]]
) -> tuple[Location, ...]:
    return tuple(Location(f"{one.png}: {_listed(of(one))}", photo) for photo, one in comparisons.items() if of(one))


def _listed(ids: tuple[int, ...]) -> str:
    shown = ", ".join(str(number) for number in ids[:_FIRST])
    return f"{'id' if len(ids) == 1 else 'ids'} {shown}" + (
        f" and {len(ids) - _FIRST} more" if len(ids) > _FIRST else ""
    )
