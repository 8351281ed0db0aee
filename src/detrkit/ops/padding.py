"""Batches of images of different sizes, and their padding masks.

Images are padded with zeros (the mean color, if normalised) at the bottom and on the right.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F


def pad_to_batch(images: Sequence[Float[Tensor, "C _ _"]]) -> tuple[Float[Tensor, "B C H W"], Bool[Tensor, "B H W"]]:
    """Stack images of different sizes, padded to the largest height and width.

    Returns:
        The padded images, and their padding mask, True for padding.
    """
    batch, padding_mask = empty_batch([(image.shape[1], image.shape[2]) for image in images], channels=len(images[0]))
    for index, image in enumerate(images):
        batch[index, :, : image.shape[1], : image.shape[2]] = image
    return batch, padding_mask


def empty_batch(
    sizes: Sequence[tuple[int, int]], channels: int = 3
) -> tuple[Float[Tensor, "B C H W"], Bool[Tensor, "B H W"]]:
    """Allocate a batch for images of some sizes (height, width): zeros, and the padding mask."""
    height, width = max(size[0] for size in sizes), max(size[1] for size in sizes)
    padding_mask = torch.ones(len(sizes), height, width, dtype=torch.bool)
    for index, size in enumerate(sizes):
        padding_mask[index, : size[0], : size[1]] = False
    return torch.zeros(len(sizes), channels, height, width), padding_mask


def infer_stride(pixels: int, cells: int) -> int:
    """Infer the pixels per cell of a feature map: a power of two, for backbones that round sizes up (ResNets) or down."""
    rounded_down = cells / (cells + 1) if cells > 2 else 1  # ambiguous for one or two cells
    return 2 ** math.ceil(math.log2(pixels / cells * rounded_down))


def resize_padding_mask(
    padding_mask: Bool[Tensor, "B H W"], size: tuple[int, int], *, stride: int | None
) -> Bool[Tensor, "B h w"]:
    """Compute the padding mask of a feature map.

    Args:
        padding_mask: mask of the images.
        size: (h, w) of the feature map.
        stride: pixels per cell; the mask is subsampled at the first pixel of every cell, where the strided convolutions of
            the backbone start. None rescales the mask to `size` by nearest neighbor, as published, which depends on the
            padding if a padded side is not a multiple of the stride.
    """
    if stride is None:
        return F.interpolate(padding_mask[:, None].float(), size=size, mode="nearest")[:, 0].bool()
    # by index instead of [::stride], so that an exported graph has the size of the feature map
    rows, columns = (torch.arange(side, device=padding_mask.device) * stride for side in size)
    return padding_mask.index_select(1, rows).index_select(2, columns)


def cell_padding_mask(
    padding_mask: Bool[Tensor, "B H W"] | None, features: Float[Tensor, "B _ h w"], stride: int
) -> Bool[Tensor, "B h w"] | None:
    """Compute the padding mask of a feature map of some stride; None without padding."""
    if padding_mask is None:
        return None
    return resize_padding_mask(padding_mask, (features.shape[-2], features.shape[-1]), stride=stride)


def zero_padding(
    features: Float[Tensor, "B C h w"], padding_mask: Bool[Tensor, "B h w"] | None
) -> Float[Tensor, "B C h w"]:
    """Set the features of cells in the padding to zero, as a convolution's own padding is.

    Args:
        features: a feature map.
        padding_mask: True for cells in the padding; None without padding, or if it is not to be excluded.
    """
    return features if padding_mask is None else features.masked_fill(padding_mask[:, None], 0.0)
