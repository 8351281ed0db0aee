"""Resize and binarise mask logits, resize maps of ids, and encode masks.

A model predicts mask logits over a padded batch. Three sizes are involved, each (height, width) in pixels: of the padded
image, of the processed image within it (top left), and of the original image.
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from detrkit.ops.padding import infer_stride

Size = tuple[int, int]  # (height, width)
MAX_PIXELS_PER_CHUNK = 2**25  # of masks at the original size, to limit peak memory


def covered_size(logits: Float[Tensor, "P _ _"], padded: Size) -> Size:
    """Return the pixels that mask logits cover: whole strides, so that masks do not depend on the size of the padding."""
    height, width = (cells * infer_stride(whole, cells) for cells, whole in zip(logits.shape[1:], padded, strict=True))
    return height, width


def resize_mask_logits(
    logits: Float[Tensor, "P _ _"], padded: Size, processed: Size, original: Size
) -> Float[Tensor, "P H W"]:
    """Resize mask logits to the original image, bilinearly, without the padding.

    Args:
        logits: of the masks, over the padded image.
        padded: size that the logits cover: that of the padded image, as published, or `covered_size`.
        processed: size of the processed image.
        original: size of the original image, and of the output.
    """
    # pixels of the original image per cell, passed explicitly: the image covers a fractional number of cells
    scales = [
        whole * length / (part * cells)
        for whole, length, part, cells in zip(original, padded, processed, logits.shape[1:], strict=True)
    ]
    return torch.ops.aten.upsample_bilinear2d(logits.float()[:, None], list(original), False, *scales)[:, 0]


def binarize_masks(
    logits: Float[Tensor, "P _ _"], padded: Size, processed: Size, original: Size, threshold: float = 0.5
) -> Bool[Tensor, "P H W"]:
    """Resize mask logits to the original image and binarise them, in chunks.

    Args:
        logits: as of `resize_mask_logits`, like the sizes.
        padded: size that the logits cover.
        processed: size of the processed image.
        original: size of the original image.
        threshold: probability above which a pixel belongs to the mask.
    """
    min_logit = float(torch.tensor(threshold, dtype=torch.float64).logit())
    masks = torch.empty(len(logits), *original, dtype=torch.bool, device=logits.device)
    chunk = max(1, MAX_PIXELS_PER_CHUNK // (original[0] * original[1]))
    for first in range(0, len(logits), chunk):
        resized = resize_mask_logits(logits[first : first + chunk], padded, processed, original)
        masks[first : first + chunk] = resized > min_logit
    return masks


def resize_nearest(maps: Shaped[Tensor, "*N _ _"], size: Size) -> Shaped[Tensor, "*N H W"]:
    """Resize maps of ids exactly as Pillow's `resize(..., NEAREST)`, on their device."""
    rows, columns = (
        torch.from_numpy(_nearest_indices(before, after)).to(maps.device)
        for before, after in zip(maps.shape[-2:], size, strict=True)
    )
    return maps[..., rows[:, None], columns]


def _nearest_indices(before: int, after: int) -> np.ndarray:
    """Compute the source index of every pixel. Pillow accumulates its steps, whose rounding decides ties."""
    step = before / after
    steps = np.full(after, step)
    steps[0] = step * 0.5
    return np.cumsum(steps).astype(np.int64).clip(max=before - 1)


def encode_masks(masks: Bool[Tensor, "N H W"]) -> list[dict[str, Any]]:
    """Encode masks as COCO's compressed run lengths; `counts` is a str, for JSON."""
    from hotcoco import mask as rle  # slow to import, and rarely needed

    encoded = [rle.encode(mask) for mask in masks.cpu().numpy()]
    return [{"size": list(one["size"]), "counts": one["counts"].decode("ascii")} for one in encoded]
