"""Comparison of a panoptic JSON with its PNGs, all of which are decoded."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import torch

from detrkit.data.checks.decode_cache import map_in_processes
from detrkit.data.findings import Finding, Location
from detrkit.data.records import Record
from detrkit.data.segment_png import read_ids
from detrkit.data.segmentation import segment_ids
from detrkit.errors import DatasetError, arg
from detrkit.ops.segments import VOID, ids_to_masks, masks_to_boxes, nonempty_masks, unique_ids

_BOX_TOLERANCE = 1.0  # pixels: tools differ in whether they count the last pixel
_MAX_IDS = 3  # listed in a message


@dataclass(frozen=True)
class Comparison:
    """Differences between a PNG and its entry in the JSON.

    Attributes:
        png: the file.
        error: why it cannot be read, or None.
        empty: ids of the entry without pixels.
        undefined: ids of pixels that the entry lacks.
        wrong_box: ids whose box is not that of their pixels.
    """

    png: Path
    error: str | None = None
    empty: tuple[int, ...] = ()
    undefined: tuple[int, ...] = ()
    wrong_box: tuple[int, ...] = ()


def compare_segments(
    records: Sequence[Record], workers: int, progress: Callable[[int, int], None] | None = None
) -> dict[Path, Comparison]:
    """Decode the PNG of every record that has one.

    Args:
        records: of a dataset.
        workers: processes; 0 decodes in this one.
        progress: called with the number of PNGs decoded and the total.

    Returns:
        The comparisons, by the path of the image.

    Raises:
        DatasetError: a process was killed.
    """
    jobs = [record for record in records if record.mask_file is not None]
    comparisons: dict[Path, Comparison] = {}
    if not jobs:
        return comparisons
    try:
        for record, comparison in zip(jobs, map_in_processes(_compare, jobs, workers), strict=True):
            comparisons[record.path] = comparison
            if progress:
                progress(len(comparisons), len(jobs))
    except BrokenProcessPool:
        raise DatasetError(
            f"a process that decodes PNGs of segments was killed after {len(comparisons)} of {len(jobs)}, probably because "
            f"memory ran out; try again with {arg('workers', 1)}"
        ) from None
    return comparisons


def segment_findings(comparisons: Mapping[Path, Comparison]) -> Iterator[Finding]:
    """Turn comparisons into findings."""
    unreadable = tuple(Location(one.error, image) for image, one in comparisons.items() if one.error)
    empty = _locations(comparisons, lambda one: one.empty)
    undefined = _locations(comparisons, lambda one: one.undefined)
    wrong_box = _locations(comparisons, lambda one: one.wrong_box)
    if unreadable:
        yield Finding("error", "PNGs of segments that cannot be read", "export them again, or drop them", unreadable)
    if undefined:
        advice = "their pixels belong to no segment; add them to segments_info, or paint them black"
        yield Finding("warning", "PNGs with ids that segments_info does not contain", advice, undefined)
    if empty:
        yield Finding("warning", "segments without pixels in the PNG", "they are not trained on", empty)
    if wrong_box:
        advice = "training with masks uses the boxes of the PNG, training without masks these; correct them"
        yield Finding("warning", "segments whose box does not match their pixels", advice, wrong_box)


def _compare(record: Record) -> Comparison:
    assert record.mask_file is not None
    assert record.segmentations is not None
    try:
        ids = read_ids(record.mask_file, record.size)
    except DatasetError as error:
        return Comparison(record.mask_file, str(error))
    ids_in_entry = segment_ids(record.segmentations)
    masks = ids_to_masks(ids, ids_in_entry)
    is_empty = ~nonempty_masks(masks)
    has_wrong_box = ((masks_to_boxes(masks) - torch.from_numpy(record.boxes)).abs() > _BOX_TOLERANCE).any(1) & ~is_empty
    undefined = unique_ids(ids) - {VOID, *ids_in_entry.tolist()}
    return Comparison(
        record.mask_file,
        empty=tuple(ids_in_entry[is_empty].tolist()),
        undefined=tuple(sorted(undefined)),
        wrong_box=tuple(ids_in_entry[has_wrong_box].tolist()),
    )


def _locations(
    comparisons: Mapping[Path, Comparison], ids_of: Callable[[Comparison], tuple[int, ...]]
) -> tuple[Location, ...]:
    return tuple(
        Location(f"{one.png}: {_list_ids(ids_of(one))}", image) for image, one in comparisons.items() if ids_of(one)
    )


def _list_ids(ids: tuple[int, ...]) -> str:
    shown = ", ".join(str(number) for number in ids[:_MAX_IDS])
    return f"{'id' if len(ids) == 1 else 'ids'} {shown}" + (
        f" and {len(ids) - _MAX_IDS} more" if len(ids) > _MAX_IDS else ""
    )
