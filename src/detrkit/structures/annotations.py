"""Ground truth of an image: annotations in pixels, samples, and training targets."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from detrkit.structures.normalization import Normalization


@dataclass(frozen=True)
class Annotations:
    """Annotated objects of one image.

    Attributes:
        boxes: xyxy in pixels.
        labels: classes in 0 .. K-1.
        masks: of the objects, if they are annotated.
    """

    boxes: Float[Tensor, "N 4"]
    labels: Int64[Tensor, "N"]
    masks: Bool[Tensor, "N H W"] | None = None


@dataclass(frozen=True)
class Sample:
    """An image with its annotations, before and after transforms.

    Attributes:
        image: 0 .. 255.
        annotations: in pixels of `image`.
        image_id: the dataset's own.
        original_size: (height, width) of the image file in pixels, after EXIF orientation.
        normalization: of the pixels for a model; None is ImageNet's.
        is_strong: whether strong augmentation was on when it was drawn, that of whole batches (`multi_scale`) included.
    """

    image: UInt8[Tensor, "C H W"]
    annotations: Annotations
    image_id: int
    original_size: tuple[int, int]
    normalization: Normalization | None = None
    is_strong: bool = False


@dataclass(frozen=True)
class Target:
    """Training target of one image.

    Attributes:
        boxes: cxcywh in 0 .. 1, relative to the image without padding.
        labels: classes in 0 .. K-1.
        masks: of the image without padding.
    """

    boxes: Float[Tensor, "N 4"]
    labels: Int64[Tensor, "N"]
    masks: Bool[Tensor, "N H W"] | None = None

    def to(self, device: torch.device | str) -> Target:
        """Copy to `device` asynchronously."""
        masks = None if self.masks is None else self.masks.to(device, non_blocking=True)
        return Target(self.boxes.to(device, non_blocking=True), self.labels.to(device, non_blocking=True), masks)

    def pin_memory(self) -> Target:
        """Move to page-locked memory."""
        masks = None if self.masks is None else self.masks.pin_memory()
        return Target(self.boxes.pin_memory(), self.labels.pin_memory(), masks)
