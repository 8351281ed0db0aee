"""Which masks belong to what was found, and how the published code cuts them."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from detrkit.ops.masks import Size, covered
from detrkit.structures import Batch, Detections, LowResMasks, Predictions


def with_masks(
    found: Sequence[Detections], predictions: Predictions, batch: Batch, padding_invariant: bool = False
) -> list[Detections]:
    """Give detections their masks, drawn for their queries alone.

    Args:
        found: in each photo of the batch; each knows its queries.
        predictions: of the batch.
        batch: tells the sizes.
        padding_invariant: masks lie where they would without padding; False puts them where the published code does.
    """
    queries = [torch.empty(0, dtype=torch.int64) if one.queries is None else one.queries for one in found]
    counts = [len(of_photo) for of_photo in queries]
    logits = predictions.masks_of(queries, batch.sizes).float().cpu()
    covers = covered_by(logits, batch, padding_invariant)
    sizes = zip(batch.sizes, batch.original_sizes, strict=True)
    return [
        replace(one, low_res_masks=LowResMasks(of_photo, covers, *of_one))
        for one, of_photo, of_one in zip(found, logits.split(counts), sizes, strict=True)
    ]


def covered_by(logits: Float[Tensor, "P _ _"], batch: Batch, padding_invariant: bool) -> Size:
    """Pixels of the padded batch that mask logits cover."""
    padded = (batch.images.shape[-2], batch.images.shape[-1])
    return covered(logits, padded) if padding_invariant else padded


def reference_instance_masks(
    logits: Float[Tensor, "P _ _"], padded: Size, processed: Size, original: Size
) -> Bool[Tensor, "P H W"]:
    """Cut masks as the published code does, bit for bit; the sizes are those of `enlarge`."""
    enlarged = F.interpolate(logits[:, None], size=padded, mode="bilinear", align_corners=False)
    masks = (enlarged.sigmoid() > 0.5)[:, :, : processed[0], : processed[1]]
    return F.interpolate(masks.float(), size=original, mode="nearest")[:, 0] > 0.5
