"""Records -> samples: opens the photo, takes its objects, applies the transforms."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import Dataset

from detrkit.data.photos import RGB, read_pixels
from detrkit.data.records import Record, Split
from detrkit.data.transforms import Transform
from detrkit.errors import DataError
from detrkit.structures import Annotations, Sample


class PhotoDataset(Dataset[Sample]):
    """The photos of a split, with their objects."""

    def __init__(self, split: Split, transform: Transform | None = None, channels: int = RGB) -> None:
        """Make samples of records.

        Args:
            split: the records.
            transform: applied to every sample.
            channels: of the pixels.
        """
        self.split = split
        self.transform = transform
        self.channels = channels

    def __len__(self) -> int:
        return len(self.split.records)

    def __getitem__(self, index: int) -> Sample:
        record = self.split.records[index]
        image = read_pixels(record.path, record.size, record.span, self.channels)
        size = (image.shape[1], image.shape[2])
        if size != record.size:
            raise DataError(
                f"{record.path}: the photo has {size[1]} x {size[0]} pixels, its annotations speak of "
                f"{record.size[1]} x {record.size[0]}, so boxes would miss; export the two together"
            )
        sample = Sample(image, usable_annotations(record, size), record.image_id, size)
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
    height, width = size
    boxes = record.boxes[~record.is_crowd].clip(0, np.array([width, height, width, height], dtype=np.float32))
    has_area = (boxes[:, 2:] > boxes[:, :2]).all(1)
    labels = record.labels[~record.is_crowd][has_area]
    return Annotations(torch.from_numpy(boxes[has_area]), torch.from_numpy(labels))
