"""Multi-scale training by batch (RT-DETR, D-FINE, RF-DETR): every batch is resized to a random size."""

import random

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

_STEP = 32  # pixels between the sizes
_VIT_STEPS = 3, 4  # sizes below and above that of the batch, for ViTs
_RANGE = 0.25  # smallest and largest size, relative to the batch's own


def scales(size: int, repeats: int, divisor: int = 1) -> list[int]:
    """Return the sizes to choose from.

    They are multiples of 32 from 0.75 to 1.25 times a size, which is in it `repeats` times; for 640 pixels: 480, 512 ..
    608, 640 (repeated), 672 .. 800. For ViTs, they are multiples of patches x windows, three smaller and four larger ones
    (LW-DETR, RF-DETR); for 640 pixels and multiples of 64: 448, 512 .. 640 (repeated) .. 832, 896.
    """
    if divisor > 1:
        smaller = [size - number * divisor for number in range(_VIT_STEPS[0], 0, -1)]
        larger = [size + number * divisor for number in range(1, _VIT_STEPS[1] + 1)]
        return [*(one for one in smaller if one >= 2 * divisor), *[size] * repeats, *larger]
    smallest, largest = (int(size * factor / _STEP) * _STEP for factor in (1 - _RANGE, 1 + _RANGE))
    count = (size - smallest) // _STEP
    smaller = [smallest + _STEP * number for number in range(count)]
    return [*smaller, *[size] * repeats, *[largest - _STEP * number for number in range(count)]]


def rescale(
    images: Float[Tensor, "B C H W"],
    padding_mask: Bool[Tensor, "B H W"] | None,
    repeats: int,
    seed: int,
    divisor: int = 1,
) -> tuple[Float[Tensor, "B C h w"], Bool[Tensor, "B h w"] | None]:
    """Resize a batch to a random size; boxes are relative and stay.

    As published, it is by nearest neighbor for RT-DETR and its successors, and bilinear for RF-DETR.

    Args:
        images: of the batch.
        padding_mask: True for padding; None if no image is padded.
        repeats: how often the batch's own size is among those to choose from.
        seed: of the choice.
        divisor: of the sides of images, see `ModelConfig.size_divisor`.
    """
    height, width = images.shape[2:]
    longer, step = max(height, width), divisor if divisor > 1 else 1
    factor = random.Random(seed).choice(scales(longer, repeats, divisor)) / longer
    smallest = divisor if divisor > 1 else _STEP
    size = max(smallest, round(height * factor / step) * step), max(smallest, round(width * factor / step) * step)
    if size == (height, width):
        return images, padding_mask
    if padding_mask is not None:
        padding_mask = F.interpolate(padding_mask[:, None].to(torch.uint8), size)[:, 0].bool()
    if divisor > 1:
        return F.interpolate(images, size, mode="bilinear", align_corners=False), padding_mask
    return F.interpolate(images, size), padding_mask
