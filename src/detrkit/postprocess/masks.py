"""Masks of detections, and the published code's binary masks."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from detrkit.ops.masks import Size, covered_size
from detrkit.structures import Batch, Detections, LowResMasks, Predictions


def attach_masks(
    detections: Sequence[Detections], predictions: Predictions, batch: Batch, padding_invariant: bool = False
) -> list[Detections]:
    """Compute the masks of detections, and attach them.

    Args:
        detections: of each image of the batch, with their queries.
        predictions: of the batch.
        batch: whose sizes are used.
        padding_invariant: place masks independently of the padding; False places them as the published code does.
    """
    queries = [torch.empty(0, dtype=torch.int64) if one.queries is None else one.queries for one in detections]
    counts = [len(one) for one in queries]
    logits = predictions.masks_of(queries, batch.sizes).float().cpu()
    mask_extent = extent_of_masks(logits, batch, padding_invariant)
    sizes = zip(batch.sizes, batch.original_sizes, strict=True)
    return [
        replace(one, low_res_masks=LowResMasks(masks, mask_extent, *image_sizes))
        for one, masks, image_sizes in zip(detections, logits.split(counts), sizes, strict=True)
    ]


def extent_of_masks(logits: Float[Tensor, "P _ _"], batch: Batch, padding_invariant: bool) -> Size:
    """Return the (height, width) in pixels of the padded batch that mask logits cover."""
    padded = (batch.images.shape[-2], batch.images.shape[-1])
    return covered_size(logits, padded) if padding_invariant else padded


def reference_instance_masks(
    logits: Float[Tensor, "P _ _"], padded: Size, processed: Size, original: Size
) -> Bool[Tensor, "P H W"]:
    """Compute binary masks exactly as the published code; sizes as of `ops.masks.resize_mask_logits`."""
    resized = F.interpolate(logits[:, None], size=padded, mode="bilinear", align_corners=False)
    masks = (resized.sigmoid() > 0.5)[:, :, : processed[0], : processed[1]]
    return F.interpolate(masks.float(), size=original, mode="nearest")[:, 0] > 0.5
