"""Records -> samples: opens the photo, takes its objects, applies the transforms."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import Dataset

from detrkit.data.images import RGB, read_image
from detrkit.data.records import Record, Split
from detrkit.data.segmentation import read_masks
from detrkit.data.transforms.geometry import Transform, keep
from detrkit.errors import DatasetError
from detrkit.ops.segments import have_pixels, masks_to_boxes
from detrkit.structures import Annotations, Sample


class DetectionDataset(Dataset[Sample]):
    """The photos of a split, with their objects."""

    def __init__(
        self, split: Split, transform: Transform | None = None, channels: int = RGB, *, masks: bool = False
    ) -> None:
        """Make samples of records.

        Args:
            split: the records.
            transform: applied to every sample.
            channels: of the pixels.
            masks: make the objects' masks, too; without, nothing of them is decoded.

        Raises:
            DatasetError: masks are asked for, and the records were read without outlines.
        """
        if masks and not split.records.have_outlines:
            raise DatasetError(
                f"{split.source}: holds boxes without outlines, from which no masks can be made; give COCO instances or "
                "panoptic annotations, or train a model without masks"
            )
        self.split = split
        self.transform = transform
        self.channels = channels
        self.masks = masks

    def __len__(self) -> int:
        return len(self.split.records)

    def __getitem__(self, index: int) -> Sample:
        record = self.split.records[index]
        image = read_image(record.path, record.size, record.span, self.channels)
        size = (image.shape[1], image.shape[2])
        if size != record.size:
            raise DatasetError(
                f"{record.path}: the photo has {size[1]} x {size[0]} pixels, its annotations speak of "
                f"{record.size[1]} x {record.size[0]}, so boxes would miss; export the two together"
            )
        annotations = annotations_with_masks(record) if self.masks else usable_annotations(record, size)
        sample = Sample(image, annotations, record.image_id, size)
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
    """A photo of which nothing is known."""
    nothing = Annotations(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    return Sample(image, nothing, image_id, (image.shape[1], image.shape[2]))


def usable_annotations(record: Record, size: tuple[int, int]) -> Annotations:
    """Take the objects that a query can answer for (published code, datasets/coco.py).

    Crowds are left out, boxes are cut at the photo's edges, and boxes that have no area after that are left out.

    Args:
        record: the annotations as they stand in the file.
        size: (height, width) of the photo in pixels.
    """
    boxes = _cut(record.boxes, size)
    is_usable = ~record.is_crowd & (boxes[:, 2:] > boxes[:, :2]).all(1)
    return Annotations(torch.from_numpy(boxes[is_usable]), torch.from_numpy(record.labels[is_usable]))


def annotations_with_masks(record: Record) -> Annotations:
    """Take the objects that a query can answer for, with their masks.

    Crowds are left out, and objects of which the mask holds no pixel. The boxes of panoptic segments are those of their
    masks, whatever the JSON says; those of instances are the annotated ones, cut at the photo's edges.

    Raises:
        DatasetError: an outline does not fit the photo, or its PNG cannot be read.
    """
    boxes = _cut(record.boxes, record.size)
    is_usable = ~record.is_crowd
    if record.mask_file is None:
        is_usable &= (boxes[:, 2:] > boxes[:, :2]).all(1)
    chosen = is_usable.nonzero()[0]
    masks = read_masks(record, chosen)
    found = Annotations(torch.from_numpy(boxes[chosen]), torch.from_numpy(record.labels[chosen]), masks)
    if record.mask_file is not None:
        found = replace(found, boxes=masks_to_boxes(masks))
    return keep(found, have_pixels(masks))


def _cut(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    height, width = size
    return boxes.clip(0, np.array([width, height, width, height], dtype=np.float32))
