"""Copy of a dataset without the errors that can be fixed automatically: what cannot be used is left out."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from detrkit.data.checks.annotations import find_duplicates
from detrkit.data.checks.examine import DatasetReport
from detrkit.data.convert import write_dataset
from detrkit.data.dataset import DatasetSplits, Split
from detrkit.data.records import Record, Records
from detrkit.data.splits import load_dataset
from detrkit.errors import ConfigError, DatasetError, arg


@dataclass(frozen=True)
class FixResult:
    """A fixed copy of a dataset; malformed entries are left out as well.

    Attributes:
        output: its folder.
        dataset: its splits, as read back from the folder.
        num_images_dropped: images that cannot be read, or have another size than annotated.
        num_empty_boxes_dropped: boxes without area.
        num_duplicates_dropped: objects that were annotated twice.
        num_boxes_clipped: boxes clipped to their image.
    """

    output: Path
    dataset: DatasetSplits
    num_images_dropped: int
    num_empty_boxes_dropped: int
    num_duplicates_dropped: int
    num_boxes_clipped: int

    def __repr__(self) -> str:
        return f"FixResult({str(self.output)!r}, {self.dataset!r})"


def fix_dataset(
    report: DatasetReport, output: str | Path, *, progress: Callable[[int, int], None] | None = None
) -> FixResult:
    """Write a copy of a dataset folder without what a report has found; segmentations are not copied.

    Args:
        report: result of `examine` on the folder.
        output: folder to create.
        progress: called with the number of images copied and the total.

    Raises:
        DatasetError: no usable image would be left in a split, or the folder is not empty.
        ConfigError: the report is not of a dataset folder.
    """
    if report.format is None:
        raise ConfigError(f"{arg('report')} is of a torch dataset, which cannot be fixed; fix the dataset's own code")
    fixed = {name: _fix_split(split, report.unusable) for name, split in report.dataset.splits.items()}
    write_dataset({name: one.split for name, one in fixed.items()}, Path(output), report.format, progress)
    return FixResult(
        Path(output),
        load_dataset(output, report.format),
        num_images_dropped=sum(one.num_images for one in fixed.values()),
        num_empty_boxes_dropped=sum(one.num_empty for one in fixed.values()),
        num_duplicates_dropped=sum(one.num_duplicates for one in fixed.values()),
        num_boxes_clipped=sum(one.num_clipped for one in fixed.values()),
    )


@dataclass(frozen=True)
class _Fixed:
    """A fixed split, and what was changed."""

    split: Split
    num_images: int
    num_empty: int
    num_duplicates: int
    num_clipped: int


def _fix_split(split: Split, unusable: frozenset[Path]) -> _Fixed:
    usable = [record for record in split.records if record.path not in unusable]
    if not usable:
        raise DatasetError(f"{split.source}: none of the {len(split)} images can be used, so nothing can be fixed")
    records: list[Record] = []
    counts = np.zeros(3, np.int64)
    for record in usable:
        fixed, changes = _fix_record(record)
        records.append(fixed)
        counts += changes
    num_empty, num_duplicates, num_clipped = counts.tolist()
    num_images = len(split) - len(usable)
    return _Fixed(replace(split, records=Records.of(records)), num_images, num_empty, num_duplicates, num_clipped)


def _fix_record(record: Record) -> tuple[Record, tuple[int, int, int]]:
    height, width = record.size
    boxes = record.boxes.clip(0, np.array([width, height, width, height], dtype=np.float32))
    has_area = (boxes[:, 2:] > boxes[:, :2]).all(1)
    is_duplicate = find_duplicates(record)
    kept = has_area & ~is_duplicate
    is_clipped = (boxes != record.boxes).any(1)
    counts = int((~has_area).sum()), int((is_duplicate & has_area).sum()), int(is_clipped[kept].sum())
    return replace(record, boxes=boxes).keep(kept), counts
