"""A dataset without its faults, as far as they can be mended without a person: what cannot be used is left out."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from detrkit.data.checks.annotations import is_copy
from detrkit.data.dataset import DatasetSplits, Split
from detrkit.data.records import Record, Records
from detrkit.errors import DatasetError


@dataclass
class RepairCounts:
    """What was left out or changed."""

    photos: int = 0
    flat: int = 0
    copies: int = 0
    cut: int = 0


def fix_dataset(folder: DatasetSplits, unusable: frozenset[Path]) -> tuple[DatasetSplits, RepairCounts]:
    """Leave out unusable photos, boxes without an area and repeated objects; cut boxes at the photo's edge.

    Args:
        folder: read past its faults, so that malformed entries are gone already.
        unusable: photos that cannot be read, or are of another size than annotated.

    Raises:
        DatasetError: nothing would be left of a split.
    """
    counts = RepairCounts()
    return (
        replace(
            folder,
            train=_repaired_split(folder.train, unusable, counts),
            val=_repaired_split(folder.val, unusable, counts),
            test=_repaired_split(folder.test, unusable, counts) if len(folder.test) else folder.test,
        ),
        counts,
    )


def _repaired_split(split: Split, unusable: frozenset[Path], counts: RepairCounts) -> Split:
    usable = [record for record in split.records if record.path not in unusable]
    counts.photos += len(split.records) - len(usable)
    if not usable:
        raise DatasetError(f"{split.source}: none of {len(split.records)} photos can be used, so nothing can be mended")
    return replace(split, records=Records.of(_repaired_record(record, counts) for record in usable))


def _repaired_record(record: Record, counts: RepairCounts) -> Record:
    height, width = record.size
    boxes = record.boxes.clip(0, np.array([width, height, width, height], dtype=np.float32))
    has_area = (boxes[:, 2:] > boxes[:, :2]).all(1)
    repeated = is_copy(record)
    kept = has_area & ~repeated
    counts.flat += int((~has_area).sum())
    counts.copies += int((repeated & has_area).sum())
    counts.cut += int((boxes != record.boxes).any(1)[kept].sum())
    return replace(record, boxes=boxes).keep(kept)
