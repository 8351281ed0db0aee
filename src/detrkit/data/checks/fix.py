"""Copy of a dataset without the errors that can be fixed automatically: what cannot be used is left out."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from detrkit.data.checks.annotations import find_duplicates
from detrkit.data.checks.examine import DatasetReport
from detrkit.data.convert import count_lost_segmentations, splits_to_copy, write_dataset
from detrkit.data.dataset import DatasetSplits, Split
from detrkit.data.records import (
    SPLIT_FOLDERS,
    ImageError,
    ObjectError,
    Record,
    Records,
    SegmentationError,
    SplitName,
)
from detrkit.data.splits import load_dataset
from detrkit.errors import ConfigError, DatasetError, arg

_MIN_CLIPPED = 0.01  # pixels: less is rounding


@dataclass(frozen=True)
class FixResult:
    """A fixed copy of a dataset.

    Attributes:
        output: its folder.
        dataset: its splits, as read back from the folder.
        num_images_dropped: images that cannot be read or used, or have another size than annotated.
        num_background_dropped: images that would have lost all their objects, and would be learned as background.
        num_objects_dropped: objects that cannot be read.
        num_empty_boxes_dropped: boxes without area.
        num_duplicates_dropped: objects that were annotated twice.
        num_boxes_clipped: boxes clipped to their image.
        num_segmentations_changed: segmentations that did not fit; repaired, or left out if that was not possible.
        num_segmentations_lost: segmentations that the format cannot express; the objects keep their boxes.
    """

    output: Path
    dataset: DatasetSplits
    num_images_dropped: int = 0
    num_background_dropped: int = 0
    num_objects_dropped: int = 0
    num_empty_boxes_dropped: int = 0
    num_duplicates_dropped: int = 0
    num_boxes_clipped: int = 0
    num_segmentations_changed: int = 0
    num_segmentations_lost: int = 0

    def __repr__(self) -> str:
        return f"FixResult({str(self.output)!r}, {self.dataset!r})"


def fix_dataset(
    report: DatasetReport,
    output: str | Path,
    *,
    follow_links: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> FixResult:
    """Write a copy of a dataset folder without what a report has found.

    An image with objects never becomes one without: if none of its objects can be used, it is left out. Splits keep the
    names of their folders, objects the segmentations that fit.

    Args:
        report: result of `examine` on the folder.
        output: folder to create.
        follow_links: copy files outside of the dataset's folder, too, where links or a `data.yaml` lead.
        progress: called with the number of images copied and the total.

    Raises:
        DatasetError: no usable image would be left, the folder is not empty, or a file is outside of the dataset's folder.
        ConfigError: the report is not of a whole dataset folder.
    """
    if report.format is None:
        raise ConfigError(f"{arg('report')} is of a torch dataset, which cannot be fixed; fix the dataset's own code")
    if report.split is not None:
        raise ConfigError(
            f"{arg('report')} is of one split, expected one of the whole dataset; examine it without split"
        )
    fixed = {name: _fix_split(split, report.unusable) for name, split in _splits_to_write(report).items()}
    kept = {name: one.split for name, one in fixed.items() if len(one.split)}
    if "train" not in kept:
        count = sum(len(split) for split in report.dataset.splits.values())
        raise DatasetError(
            f"{report.source}: none of the {count} images can be used for training, so nothing can be fixed"
        )
    write_dataset(kept, Path(output), report.format, progress, follow_links=follow_links)
    counts = np.sum([one.counts for one in fixed.values()], axis=0).tolist()
    num_unusable, num_background, num_empty, num_duplicates, num_clipped = counts
    return FixResult(
        Path(output),
        load_dataset(output, report.format),
        num_images_dropped=num_unusable + _count(report, ImageError),
        num_background_dropped=num_background,
        num_objects_dropped=_count(report, ObjectError),
        num_empty_boxes_dropped=num_empty,
        num_duplicates_dropped=num_duplicates,
        num_boxes_clipped=num_clipped,
        num_segmentations_changed=_count(report, SegmentationError),
        num_segmentations_lost=sum(count_lost_segmentations(split, report.format) for split in kept.values()),
    )


def _count(report: DatasetReport, kind: type[DatasetError]) -> int:
    return sum(isinstance(error, kind) for error in report.errors)


def _splits_to_write(report: DatasetReport) -> dict[SplitName, Split]:
    """Return the splits of the folder, which keep its names; validation images that were set aside go back."""
    splits = splits_to_copy(report.dataset)
    root = report.source if report.source.is_dir() else report.source.parent
    return {name: replace(split, folder=_folder_name(split, name, root)) for name, split in splits.items()}


def _folder_name(split: Split, name: SplitName, root: Path) -> str | None:
    """Return the name of a split's folder in a dataset, such as `valid` or `val2017`, if it begins like the split's."""
    places = (split.records.path(0), root.resolve())
    path = places[0].resolve()
    if not path.is_relative_to(places[1]):
        return None
    known = tuple(one for one in SPLIT_FOLDERS[name] if one.startswith(name))
    return next((part for part in path.relative_to(places[1]).parts[:-1] if part.startswith(known)), None)


@dataclass(frozen=True)
class _Fixed:
    """A fixed split, and numbers: unusable images, images without objects left, empty boxes, duplicates, clipped boxes."""

    split: Split
    counts: tuple[int, int, int, int, int]


def _fix_split(split: Split, unusable: frozenset[Path]) -> _Fixed:
    usable = [record for record in split.records if record.path not in unusable]
    records: list[Record] = []
    num_background = 0
    counts = np.zeros(3, np.int64)
    for record in usable:
        fixed, changes = _fix_record(record)
        counts += changes
        if len(fixed.labels) or not (len(record.labels) or record.num_faults):
            records.append(fixed)
        else:
            num_background += 1
    num_empty, num_duplicates, num_clipped = counts.tolist()
    of_split = (len(split) - len(usable), num_background, num_empty, num_duplicates, num_clipped)
    return _Fixed(replace(split, records=Records.of(records)), of_split)


def _fix_record(record: Record) -> tuple[Record, tuple[int, int, int]]:
    height, width = record.size
    boxes = record.boxes.clip(0, np.array([width, height, width, height], dtype=np.float32))
    has_area = (boxes[:, 2:] > boxes[:, :2]).all(1)
    is_duplicate = find_duplicates(record)
    kept = has_area & ~is_duplicate
    is_clipped = (np.abs(boxes - record.boxes) > _MIN_CLIPPED).any(1)
    counts = int((~has_area).sum()), int((is_duplicate & has_area).sum()), int(is_clipped[kept].sum())
    return replace(record, boxes=boxes, num_faults=0).keep(kept), counts
