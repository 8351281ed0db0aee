"""Padding: photos of different sizes in one batch, and the mask that says which pixels are not photo.

Photos are padded with zeros (the mean colour, for normalised images) at the bottom and on the right only.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F


def pad_to_batch(images: Sequence[Float[Tensor, "C _ _"]]) -> tuple[Float[Tensor, "B C H W"], Bool[Tensor, "B H W"]]:
    """Stack images of different sizes.

    Returns:
        The images, padded with zeros to the largest height and the largest width among them, and the padding mask,
        True on padding.
    """
    batch, padding_mask = empty_batch([(image.shape[1], image.shape[2]) for image in images], channels=len(images[0]))
    for index, image in enumerate(images):
        batch[index, :, : image.shape[1], : image.shape[2]] = image
    return batch, padding_mask


def empty_batch(
    sizes: Sequence[tuple[int, int]], channels: int = 3
) -> tuple[Float[Tensor, "B C H W"], Bool[Tensor, "B H W"]]:
    """Make room for images of some sizes, (height, width): zeros, and the padding mask."""
    height, width = max(size[0] for size in sizes), max(size[1] for size in sizes)
    padding_mask = torch.ones(len(sizes), height, width, dtype=torch.bool)
    for index, size in enumerate(sizes):
        padding_mask[index, : size[0], : size[1]] = False
    return torch.zeros(len(sizes), channels, height, width), padding_mask


def stride_of(pixels: int, cells: int) -> int:
    """Pixels per cell of a feature map: a power of two, whether its backbone rounds sizes up, as ResNets do, or down."""
    rounded_down = cells / (cells + 1) if cells > 2 else 1  # of one or two cells nobody can tell
    return 2 ** math.ceil(math.log2(pixels / cells * rounded_down))


def padding_mask_at(
    padding_mask: Bool[Tensor, "B H W"], size: tuple[int, int], *, stride: int | None
) -> Bool[Tensor, "B h w"]:
    """Padding mask of a feature map.

    Args:
        padding_mask: mask of the images.
        size: (h, w) of the feature map.
        stride: pixels per cell: takes the first pixel of every so many, which is what halving the images again and again,
            as the backbone's strided convolutions do, leaves. None takes the nearest pixel after scaling the whole padded
            image to `size`, as published; where the padded side is no multiple of the stride, that depends on the size
            of the batch.
    """
    if stride is None:
        return F.interpolate(padding_mask[:, None].float(), size=size, mode="nearest")[:, 0].bool()
    # picked by index rather than by [::stride], so that an exported graph knows that the size is the feature map's
    rows, columns = (torch.arange(side, device=padding_mask.device) * stride for side in size)
    return padding_mask.index_select(1, rows).index_select(2, columns)
