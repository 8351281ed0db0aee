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
    """Photos padded at the bottom and on the right to a common size, normalised, with their targets."""

    images: Float[Tensor, "B C H W"]
    padding_mask: Bool[Tensor, "B H W"]
    targets: list[Target]
    image_ids: list[int]
    sizes: list[tuple[int, int]]  # of the images, without padding
    original_sizes: list[tuple[int, int]]  # of the photos on disk

    def to(self, device: torch.device | str) -> Batch:
        """Copy to a device, without waiting for it."""
        return replace(
            self,
            images=self.images.to(device, non_blocking=True),
            padding_mask=self.padding_mask.to(device, non_blocking=True),
            targets=[target.to(device) for target in self.targets],
        )

    @property
    def is_padded(self) -> bool:
        """Whether any photo was padded: their sizes differ. Known without looking at the mask."""
        return len(set(self.sizes)) > 1

    def unpadded(self) -> list[Batch]:
        """Photos of one size each, without padding, in the order of the first of them."""
        of_size: dict[tuple[int, int], list[int]] = {}
        for index, size in enumerate(self.sizes):
            of_size.setdefault(size, []).append(index)
        return [self._of(indices, size) for size, indices in of_size.items()]

    def one_by_one(self) -> list[Batch]:
        """Every photo alone, without padding."""
        return [self._of([index], size) for index, size in enumerate(self.sizes)]

    def _of(self, indices: Sequence[int], size: tuple[int, int]) -> Batch:
        height, width = size
        return Batch(
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
