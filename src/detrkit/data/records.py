"""What is known about a photo before it is opened."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from detrkit.data.categories import Categories
from detrkit.errors import DataError

# told of everything that is wrong; raises it, or goes on without what is at fault
FaultHandler = Callable[[DataError], None]


def raise_fault(fault: DataError) -> None:
    """Stop at the first fault."""
    raise fault


SplitName = Literal["train", "val", "test"]
# what people and exporters call the folder, or the setting, of a split
SPLIT_FOLDERS: dict[SplitName, tuple[str, ...]] = {
    "train": ("train",),
    "val": ("val", "valid", "validation"),
    "test": ("test",),
}


@dataclass(frozen=True)
class Record:
    """A photo on disk and its annotations, as the annotation file gives them.

    Attributes:
        image_id: the dataset's own id.
        path: where the photo lies.
        size: (height, width) that the annotation file claims.
        boxes: (N, 4) float32, xyxy in pixels, degenerate and crowd boxes included.
        labels: (N,) int64, 0 .. K-1.
        is_crowd: (N,) bool; a crowd box surrounds many objects and belongs to no query.
    """

    image_id: int
    path: Path
    size: tuple[int, int]
    boxes: np.ndarray
    labels: np.ndarray
    is_crowd: np.ndarray


@dataclass(frozen=True)
class Split:
    """One part of a dataset: its photos, its categories, and the annotation file they came from."""

    records: tuple[Record, ...]
    categories: Categories
    source: Path
