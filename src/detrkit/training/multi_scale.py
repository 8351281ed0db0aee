"""Multi-scale training by batch (RT-DETR, D-FINE): every batch is resized to a random size."""

import random

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

_STEP = 32  # pixels between the sizes
_RANGE = 0.25  # smallest and largest size, relative to the batch's own


def scales(size: int, repeats: int) -> list[int]:
    """Return the sizes to choose from: multiples of 32 from 0.75 to 1.25 times a size, which is in it `repeats` times.

    For 640 pixels: 480, 512 .. 608, 640 (repeated), 672 .. 800.
    """
    smallest, largest = (int(size * factor / _STEP) * _STEP for factor in (1 - _RANGE, 1 + _RANGE))
    count = (size - smallest) // _STEP
    smaller = [smallest + _STEP * number for number in range(count)]
    return [*smaller, *[size] * repeats, *[largest - _STEP * number for number in range(count)]]


def rescale(
    images: Float[Tensor, "B C H W"], padding_mask: Bool[Tensor, "B H W"] | None, repeats: int, seed: int
) -> tuple[Float[Tensor, "B C h w"], Bool[Tensor, "B h w"] | None]:
    """Resize a batch to a random size by nearest neighbor, as published; boxes are relative and stay.

    Args:
        images: of the batch.
        padding_mask: True for padding; None if no image is padded.
        repeats: how often the batch's own size is among those to choose from.
        seed: of the choice.
    """
    height, width = images.shape[2:]
    longer = max(height, width)
    factor = random.Random(seed).choice(scales(longer, repeats)) / longer
    size = max(_STEP, round(height * factor)), max(_STEP, round(width * factor))
    if size == (height, width):
        return images, padding_mask
    if padding_mask is not None:
        padding_mask = F.interpolate(padding_mask[:, None].to(torch.uint8), size)[:, 0].bool()
    return F.interpolate(images, size), padding_mask
