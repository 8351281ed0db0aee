"""Padded batch of images with targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from detrkit.structures.annotations import Target


@dataclass(frozen=True)
class Batch:
    """Normalised images, padded at the bottom and right to a common size, with their targets.

    Attributes:
        images: normalised.
        padding_mask: True on padding.
        targets: of each image; empty for inference.
        image_ids: the dataset's own.
        sizes: (height, width) of each image without padding.
        original_sizes: (height, width) of each image file.
        is_strong: whether strong augmentation was on when its samples were drawn.
    """

    images: Float[Tensor, "B C H W"]
    padding_mask: Bool[Tensor, "B H W"]
    targets: list[Target]
    image_ids: list[int]
    sizes: list[tuple[int, int]]
    original_sizes: list[tuple[int, int]]
    is_strong: bool = False

    def to(self, device: torch.device | str) -> Batch:
        """Copy to `device` asynchronously."""
        return replace(
            self,
            images=self.images.to(device, non_blocking=True),
            padding_mask=self.padding_mask.to(device, non_blocking=True),
            targets=[target.to(device) for target in self.targets],
        )

    @property
    def is_padded(self) -> bool:
        """True if any image is padded, that is, if sizes differ (known without reading the mask from the device)."""
        return len(set(self.sizes)) > 1

    def unpadded(self) -> list[Batch]:
        """Split into batches of images of equal size, without padding, in order of first occurrence."""
        indices_by_size: dict[tuple[int, int], list[int]] = {}
        for index, size in enumerate(self.sizes):
            indices_by_size.setdefault(size, []).append(index)
        return [self._select(indices, size) for size, indices in indices_by_size.items()]

    def one_by_one(self) -> list[Batch]:
        """Split into batches of one image each, without padding."""
        return [self._select([index], size) for index, size in enumerate(self.sizes)]

    def _select(self, indices: Sequence[int], size: tuple[int, int]) -> Batch:
        height, width = size
        return replace(
            self,
            images=self.images[list(indices), :, :height, :width],
            padding_mask=self.padding_mask[list(indices), :height, :width],
            targets=[self.targets[index] for index in indices if self.targets],
            image_ids=[self.image_ids[index] for index in indices],
            sizes=[size] * len(indices),
            original_sizes=[self.original_sizes[index] for index in indices],
        )

    def pin_memory(self) -> Batch:
        """Move to page-locked memory (called by the data loader)."""
        return replace(
            self,
            images=self.images.pin_memory(),
            padding_mask=self.padding_mask.pin_memory(),
            targets=[target.pin_memory() for target in self.targets],
        )
