"""Splits of a dataset, and the samples that are read from them."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from torch import Tensor
from torch.utils.data import Dataset

from detrkit.data.categories import Categories
from detrkit.data.decoding import RGB
from detrkit.data.findings import Finding
from detrkit.data.images import read_image
from detrkit.data.records import Record, Records, SplitName
from detrkit.data.segmentation import read_masks
from detrkit.errors import DatasetError, arg
from detrkit.ops.segments import masks_to_boxes, nonempty_masks
from detrkit.structures import Annotations, Sample

Transform = Callable[[Sample], Sample]


@dataclass(frozen=True, repr=False)
class Split(Dataset[Sample]):
    """One split of a dataset: `split[i]` is a `Sample` with an image and its annotations.

    Annotations and image sizes are known without reading an image (`records`). The images of a `Split` are files on disk;
    those of a `SampleSplit` come from another dataset.

    Attributes:
        records: annotations, image ids and image sizes.
        categories: of the labels.
        source: annotation file or dataset folder, for messages; the name of the class of a `torch` dataset.
        folder: name of the split's folder in a copy, such as `valid` or `train2017`; None for the name of the split.
        read_from: dataset folder or file that was named to read it; None if it was not read from files.
        outside_annotations: first annotation file that lies outside of that folder, where a link leads; None without one.
    """

    records: Records
    categories: Categories
    source: Path
    folder: str | None = field(default=None, kw_only=True)
    read_from: Path | None = field(default=None, kw_only=True)
    outside_annotations: Path | None = field(default=None, kw_only=True)

    @classmethod
    def empty(cls, categories: Categories, source: Path) -> "Split":
        """Return a split without images."""
        return Split(Records.of([]), categories, source)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Sample:
        return self.read(index, masks=self.has_masks)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.source.name!r}, {len(self)} images, {len(self.categories)} classes)"

    @property
    def has_masks(self) -> bool:
        """True if every object has a mask."""
        return self.records.has_masks

    @property
    def has_segments(self) -> bool:
        """True if the masks are panoptic segments, which do not overlap."""
        return self.records.arrays.mask_files is not None

    def read(self, index: int, channels: int = RGB, *, masks: bool = False) -> Sample:
        """Read an image and its annotations.

        Args:
            index: of the image in this split.
            channels: of the image.
            masks: decode the objects' masks.

        Raises:
            DatasetError: the image cannot be read, or its size is not the annotated one.
        """
        record = self.records[index]
        image = read_image(record.path, record.size, record.span, channels)
        size = (image.shape[1], image.shape[2])
        if size != record.size:
            raise DatasetError(
                f"{record.path}: the image has {size[1]} x {size[0]} pixels, but its annotations are for "
                f"{record.size[1]} x {record.size[0]}; export images and annotations together"
            )
        annotations = annotations_with_masks(record) if masks else usable_annotations(record, size)
        return Sample(image, annotations, record.image_id, size)

    def select(self, indices: Iterable[int]) -> "Split":
        """Return a split of some of the images, in the order of `indices`."""
        return replace(self, records=self.records.select(indices))


@runtime_checkable
class SampleReader(Protocol):
    """Source of samples that are not image files."""

    def read(self, row: int, channels: int, *, masks: bool) -> Sample:
        """Read one sample.

        Args:
            row: of the source.
            channels: of the image.
            masks: include the objects' masks.

        Raises:
            DatasetError: it cannot be read.
        """


@dataclass(frozen=True, repr=False)
class SampleSplit(Split):
    """A split whose samples come from another dataset than image files.

    Attributes:
        reader: source of the samples.
        rows: of the source, one per image of this split.
        is_panoptic: whether the masks are panoptic segments.
        fixed_sizes: require that an image has the same size every time it is read, as evaluation does.
    """

    reader: SampleReader
    rows: tuple[int, ...]
    is_panoptic: bool = False
    fixed_sizes: bool = False

    @property
    def has_segments(self) -> bool:
        """True if the masks are panoptic segments, which do not overlap."""
        return self.is_panoptic and self.has_masks

    def read(self, index: int, channels: int = RGB, *, masks: bool = False) -> Sample:
        """Read a sample; arguments as in `Split.read`."""
        record = self.records[index]
        sample = self.reader.read(self.rows[index], channels, masks=masks)
        size = (sample.image.shape[1], sample.image.shape[2])
        if self.fixed_sizes and size != record.size:
            raise DatasetError(
                f"{self.source}: {record.path} has {size[1]} x {size[0]} pixels, but had {record.size[1]} x "
                f"{record.size[0]} when it was read first; validation images must not be cropped or resized at random, so "
                f"pass {arg('val')} a dataset without random transforms"
            )
        return replace(sample, image_id=record.image_id)

    def select(self, indices: Iterable[int]) -> "SampleSplit":
        """Return a split of some of the images, in the order of `indices`."""
        chosen = list(indices)
        return replace(self, records=self.records.select(chosen), rows=tuple(self.rows[index] for index in chosen))


@dataclass(frozen=True)
class _Concatenated:
    """Reads from several splits, one after the other."""

    parts: tuple[Split, ...]

    def read(self, row: int, channels: int, *, masks: bool) -> Sample:
        """Read a sample of the part that the row falls into; see `SampleReader`."""
        for part in self.parts:
            if row < len(part):
                return part.read(row, channels, masks=masks)
            row -= len(part)
        raise IndexError(row)


def concat_splits(first: Split, second: Split) -> Split:
    """Return the images of both splits; an image file that is in both counts once."""
    if isinstance(first, SampleSplit) or isinstance(second, SampleSplit):
        records = Records.of([*first.records, *second.records])
        parts = _Concatenated((first, second))
        is_panoptic = first.has_segments and second.has_segments
        return SampleSplit(records, first.categories, first.source, parts, tuple(range(len(records))), is_panoptic)
    known = {record.path for record in first.records}
    new = (record for record in second.records if record.path not in known)
    return replace(first, records=Records.of([*first.records, *new]))


@dataclass(frozen=True, repr=False)
class DatasetSplits:
    """The splits of a dataset.

    Attributes:
        train: to train on.
        val: to validate on while training.
        test: held out.
        format: of the annotations; None if they come from a `torch` dataset.
        notes: decisions taken while reading, a sentence each.
        findings: what was left out while reading, or read differently from how it is written.
        is_val_set_aside: whether the validation images were taken from the training images, because there is no such split.
    """

    train: Split
    val: Split
    test: Split
    format: str | None = None
    notes: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()
    is_val_set_aside: bool = False

    @classmethod
    def of(
        cls,
        splits: dict[SplitName, Split],
        format: str | None = None,
        notes: Iterable[str] = (),
        findings: Iterable[Finding] = (),
    ) -> "DatasetSplits":
        """Collect splits; those that are missing are empty.

        Args:
            splits: at least one.
            format: of the annotations.
            notes: decisions taken while reading.
            findings: what was left out while reading.
        """
        first = next(iter(splits.values()))
        empty = Split.empty(first.categories, first.source)
        train, val, test = splits.get("train", empty), splits.get("val", empty), splits.get("test", empty)
        return cls(train, val, test, format, tuple(notes), tuple(findings))

    @property
    def splits(self) -> dict[SplitName, Split]:
        """The splits that hold images, training first."""
        splits: dict[SplitName, Split] = {"train": self.train, "val": self.val, "test": self.test}
        return {name: split for name, split in splits.items() if len(split)}

    @property
    def categories(self) -> Categories:
        """The categories of all splits."""
        return self.train.categories

    def __repr__(self) -> str:
        counts = ", ".join(f"{len(split)} {name}" for name, split in self.splits.items())
        return (
            f"DatasetSplits({self.format or self.train.source.name}: {counts} images, {len(self.categories)} classes)"
        )


class DetectionDataset(Dataset[Sample]):
    """The samples of a split as a model reads them."""

    def __init__(
        self, split: Split, transform: Transform | None = None, channels: int = RGB, *, masks: bool = False
    ) -> None:
        """Read a split.

        Args:
            split: images and annotations.
            transform: applied to every sample.
            channels: of the images.
            masks: decode the objects' masks.

        Raises:
            DatasetError: masks are asked for, and the split has none.
        """
        if masks and not split.has_masks:
            raise DatasetError(
                f"{split.source}: the annotations are boxes without masks; use COCO instances or panoptic annotations, or "
                "train a model without masks"
            )
        self.split = split
        self.transform = transform
        self.channels = channels
        self.masks = masks

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> Sample:
        sample = self.split.read(index, self.channels, masks=self.masks)
        return self.transform(sample) if self.transform else sample


class SampleDataset(Dataset[Sample]):
    """Samples held in memory."""

    def __init__(self, samples: Sequence[Sample], transform: Transform | None = None) -> None:
        self.samples = samples
        self.transform = transform

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        sample = self.samples[index]
        return self.transform(sample) if self.transform else sample


def unannotated(image: UInt8[Tensor, "C H W"], image_id: int = 0) -> Sample:
    """Return a sample without annotations."""
    nothing = Annotations(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    return Sample(image, nothing, image_id, (image.shape[1], image.shape[2]))


def usable_annotations(record: Record, size: tuple[int, int]) -> Annotations:
    """Return the objects that are trained on (published code, datasets/coco.py).

    Crowds are left out, boxes are clipped to the image, and boxes without area after that are left out.

    Args:
        record: the annotations as they are in the file.
        size: (height, width) of the image in pixels.
    """
    boxes = _clip(record.boxes, size)
    is_usable = ~record.is_crowd & (boxes[:, 2:] > boxes[:, :2]).all(1)
    return Annotations(torch.from_numpy(boxes[is_usable]), torch.from_numpy(record.labels[is_usable]))


def annotations_with_masks(record: Record) -> Annotations:
    """Return the objects that are trained on, with their masks.

    Crowds and objects with an empty mask are left out. The boxes of panoptic segments are those of their masks, not those
    of the JSON; the boxes of instances are the annotated ones, clipped to the image.

    Raises:
        DatasetError: a segmentation does not fit the image, or its PNG cannot be read.
    """
    boxes = _clip(record.boxes, record.size)
    is_usable = ~record.is_crowd
    if record.mask_file is None:
        is_usable &= (boxes[:, 2:] > boxes[:, :2]).all(1)
    chosen = is_usable.nonzero()[0]
    masks = read_masks(record, chosen)
    annotations = Annotations(torch.from_numpy(boxes[chosen]), torch.from_numpy(record.labels[chosen]), masks)
    if record.mask_file is not None:
        annotations = replace(annotations, boxes=masks_to_boxes(masks))
    return keep(annotations, nonempty_masks(masks))


def keep(annotations: Annotations, chosen: Bool[Tensor, "N"]) -> Annotations:
    """Return the chosen objects."""
    if chosen.all():  # masks are large: do not copy them without need
        return annotations
    masks = annotations.masks
    return Annotations(annotations.boxes[chosen], annotations.labels[chosen], None if masks is None else masks[chosen])


def _clip(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    height, width = size
    return boxes.clip(0, np.array([width, height, width, height], dtype=np.float32))
