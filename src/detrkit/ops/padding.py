"""Padding: photos of different sizes in one batch, and the mask that says which pixels are not photo.

Photos are padded with zeros (the mean colour, for normalised images) at the bottom and on the right only.
"""

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


def padding_mask_at(
    padding_mask: Bool[Tensor, "B H W"], size: tuple[int, int], *, exact: bool
) -> Bool[Tensor, "B h w"]:
    """Padding mask of a feature map.

    Args:
        padding_mask: mask of the images.
        size: (h, w) of the feature map.
        exact: False takes the nearest pixel after scaling the whole padded image to `size`, as published; where the
            padded side is no multiple of the stride, that depends on the size of the batch. True takes every second
            pixel again and again, as the backbone's strided convolutions do.
    """
    if exact:
        while padding_mask.shape[1:] != size:
            assert max(padding_mask.shape[1:]) > 1, "the feature map's size does not come from halving the images'"
            padding_mask = padding_mask[:, ::2, ::2]
        return padding_mask
    return F.interpolate(padding_mask[:, None].float(), size=size, mode="nearest")[:, 0].bool()
