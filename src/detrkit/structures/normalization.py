"""How pixel values become the input of a network."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor


@dataclass(frozen=True)
class Normalization:
    """Linear function of pixel values, computed as image processors of transformers do, to the bit.

    Attributes:
        scale: factor of the pixels, 0 .. 255, before normalising: 1/255 in most models.
        mean: per channel, or one for all; None does not normalise.
        std: per channel, or one for all.
    """

    scale: float
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def __call__(self, image: UInt8[Tensor, "C H W"]) -> Float[Tensor, "C H W"]:
        """Scale and normalise an image."""
        pixels = image.float()
        if self.mean is None or self.std is None:
            return pixels * self.scale
        mean, std = ((torch.tensor(values) * (1.0 / self.scale)).view(-1, 1, 1) for values in (self.mean, self.std))
        return pixels.sub_(mean).div_(std)
