"""Masks between sizes: from the logits of a mask head to the pixels of a photo; maps of ids without smoothing.

Input: mask logits over a padded image, and the sizes of the padded image, the image within it, and the photo.
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from detrkit.ops.padding import stride_of

Size = tuple[int, int]  # (height, width)
AT_ONCE = 2**25  # pixels enlarged at a time


def covered(logits: Float[Tensor, "P _ _"], padded: Size) -> Size:
    """Pixels that mask logits cover: whole strides, wherever the padded image ends. So padding does not move a mask."""
    height, width = (cells * stride_of(whole, cells) for cells, whole in zip(logits.shape[1:], padded, strict=True))
    return height, width


def enlarge(logits: Float[Tensor, "P _ _"], padded: Size, processed: Size, original: Size) -> Float[Tensor, "P H W"]:
    """Enlarge mask logits to the size of the photo, bilinearly.

    Args:
        logits: over the padded image, a quarter of its size.
        padded: what the logits cover: the padded image, as published; or `covered`.
        processed: size of the image within it, top left.
        original: size of the photo that the image was resized from, and of what comes out.
    """
    # pixels of the photo per cell; said outright, because the photo covers no whole number of cells
    scales = [
        whole * length / (part * cells)
        for whole, length, part, cells in zip(original, padded, processed, logits.shape[1:], strict=True)
    ]
    return torch.ops.aten.upsample_bilinear2d(logits.float()[:, None], list(original), False, *scales)[:, 0]


def cut_masks(
    logits: Float[Tensor, "P _ _"], padded: Size, processed: Size, original: Size, threshold: float = 0.5
) -> Bool[Tensor, "P H W"]:
    """Cut enlarged masks at a probability, a few at a time.

    Args:
        logits: see `enlarge`, as are the sizes.
        padded: of the padded image.
        processed: of the image within it.
        original: of the photo.
        threshold: probability above which a pixel belongs to the object.
    """
    least = float(torch.tensor(threshold, dtype=torch.float64).logit())
    masks = torch.empty(len(logits), *original, dtype=torch.bool, device=logits.device)
    at_once = max(1, AT_ONCE // (original[0] * original[1]))
    for first in range(0, len(logits), at_once):
        masks[first : first + at_once] = enlarge(logits[first : first + at_once], padded, processed, original) > least
    return masks


def nearest(maps: Shaped[Tensor, "*N _ _"], size: Size) -> Shaped[Tensor, "*N H W"]:
    """Resize maps as Pillow's `resize(..., NEAREST)` does, without leaving the device."""
    rows, columns = (
        torch.from_numpy(_nearest_places(before, after)).to(maps.device)
        for before, after in zip(maps.shape[-2:], size, strict=True)
    )
    return maps[..., rows[:, None], columns]


def _nearest_places(before: int, after: int) -> np.ndarray:
    """Where Pillow looks: it adds up its steps, and the rounding of the sum decides ties."""
    step = before / after
    steps = np.full(after, step)
    steps[0] = step * 0.5
    return np.cumsum(steps).astype(np.int64).clip(max=before - 1)


def encode_masks(masks: Bool[Tensor, "N H W"]) -> list[dict[str, Any]]:
    """Write masks as compressed run lengths, as COCO results have them: `counts` is a str, fit for JSON."""
    from hotcoco import mask as runs  # takes a while to load, and few need it

    encoded = [runs.encode(mask) for mask in masks.cpu().numpy()]
    return [{"size": list(one["size"]), "counts": one["counts"].decode("ascii")} for one in encoded]
