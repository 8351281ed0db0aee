"""Mask logits of kept queries -> masks in pixels of the original photo.

`enlarge` goes there in one step and leaves the padding behind. `reference_instance_masks` does what the published code
does (segmentation.py, PostProcessSegm): to the padded size, cut at 0.5, crop, then to the photo's size without smoothing.
"""

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

Size = tuple[int, int]  # (height, width)
AT_ONCE = 2**25  # pixels enlarged at a time


def enlarge(logits: Float[Tensor, "P _ _"], padded: Size, processed: Size, original: Size) -> Float[Tensor, "P H W"]:
    """Enlarge mask logits to the size of the photo, bilinearly.

    Args:
        logits: over the padded image, a quarter of its size.
        padded: size of the padded image.
        processed: size of the image within it, top left.
        original: size of the photo that the image was resized from, and of what comes out.
    """
    # pixels of the photo per cell; said outright, because the photo covers no whole number of cells
    scales = [
        whole * length / (part * cells)
        for whole, length, part, cells in zip(original, padded, processed, logits.shape[1:], strict=True)
    ]
    return torch.ops.aten.upsample_bilinear2d(logits.float()[:, None], list(original), False, *scales)[:, 0]


def instance_masks(
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


def reference_instance_masks(
    logits: Float[Tensor, "P _ _"], padded: Size, processed: Size, original: Size
) -> Bool[Tensor, "P H W"]:
    """Cut masks as the published code does, bit for bit; the sizes are those of `enlarge`."""
    enlarged = F.interpolate(logits[:, None], size=padded, mode="bilinear", align_corners=False)
    masks = (enlarged.sigmoid() > 0.5)[:, :, : processed[0], : processed[1]]
    return F.interpolate(masks.float(), size=original, mode="nearest")[:, 0] > 0.5


def nearest(ids: Int[Tensor, "h w"], size: Size) -> Int[Tensor, "H W"]:
    """Resize a map of ids as Pillow's `resize(..., NEAREST)` does, without leaving the device."""
    rows, columns = (
        torch.from_numpy(_nearest_places(before, after)).to(ids.device)
        for before, after in zip(ids.shape, size, strict=True)
    )
    return ids[rows[:, None], columns]


def _nearest_places(before: int, after: int) -> np.ndarray:
    """Where Pillow looks: it adds up its steps, and the rounding of the sum decides ties."""
    step = before / after
    steps = np.full(after, step)
    steps[0] = step * 0.5
    return np.cumsum(steps).astype(np.int64).clip(max=before - 1)
