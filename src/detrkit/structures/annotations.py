"""Ground truth: annotated objects, samples and targets."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor


@dataclass(frozen=True)
class Annotations:
    """The objects of one photo."""

    boxes: Float[Tensor, "N 4"]  # xyxy in pixels
    labels: Int64[Tensor, "N"]  # 0 .. K-1
    masks: Bool[Tensor, "N H W"] | None = None


@dataclass(frozen=True)
class Sample:
    """One photo with its objects, on the way through the transforms."""

    image: UInt8[Tensor, "C H W"]
    annotations: Annotations
    image_id: int
    original_size: tuple[int, int]  # (height, width) of the photo on disk, EXIF orientation honoured


@dataclass(frozen=True)
class Target:
    """What the model should have said about one photo."""

    boxes: Float[Tensor, "N 4"]  # cxcywh relative to the image without padding
    labels: Int64[Tensor, "N"]
    masks: Bool[Tensor, "N H W"] | None = (
        None  # of this image without padding, which batches add on the right and below
    )

    def to(self, device: torch.device | str) -> Target:
        """Copy to a device, without waiting for it."""
        masks = None if self.masks is None else self.masks.to(device, non_blocking=True)
        return Target(self.boxes.to(device, non_blocking=True), self.labels.to(device, non_blocking=True), masks)

    def pin_memory(self) -> Target:
        """Move to page-locked memory."""
        masks = None if self.masks is None else self.masks.pin_memory()
        return Target(self.boxes.pin_memory(), self.labels.pin_memory(), masks)
