"""Mask losses (paper, section 4.4): sigmoid focal loss (arXiv:1708.02002) and dice loss (arXiv:1606.04797)."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from detrkit.ops.masks import covered_size, resize_mask_logits
from detrkit.structures import Target

MAX_PIXELS = 2**22  # upsampled at a time; chunks are checkpointed, so that only one holds its intermediates in backward


def dice_loss(logits: Float[Tensor, "P H W"], targets: Float[Tensor, "P H W"]) -> Float[Tensor, "P"]:
    """Compute the dice loss of each mask, with 1 added to numerator and denominator, as published."""
    probability = logits.sigmoid().flatten(1)
    targets = targets.flatten(1)
    intersection = (probability * targets).sum(1)
    return 1 - (2 * intersection + 1) / (probability.sum(1) + targets.sum(1) + 1)


def mask_losses(
    logits: Float[Tensor, "P h w"],
    objects: Sequence[Int64[Tensor, "_"]],
    targets: Sequence[Target],
    *,
    padding_invariant: bool,
) -> Float[Tensor, "2 P"]:
    """Compute focal and dice loss of every matched pair at the resolution of its image.

    Args:
        logits: of the pairs of all images, image after image, over the padded images.
        objects: indices of the objects of each image's pairs.
        targets: one per image, with masks; the batch was padded to the largest height and width among them.
        padding_invariant: compare masks within the image only. False counts padding as outside, as published, where an
            image has less weight the more it is padded.
    """
    masks = [target.masks for target in targets if target.masks is not None]
    padded = max(mask.shape[1] for mask in masks), max(mask.shape[2] for mask in masks)
    chunk = max(1, MAX_PIXELS // (padded[0] * padded[1]))
    losses = []
    for mask, image_logits, indices in zip(masks, logits.split([len(one) for one in objects]), objects, strict=True):
        for some_logits, some_indices in zip(image_logits.split(chunk), indices.split(chunk), strict=True):
            losses.append(
                checkpoint(
                    _mask_losses, some_logits, mask, some_indices, padded, padding_invariant, use_reentrant=False
                )
            )
    return torch.cat(losses, dim=1)


def _mask_losses(
    logits: Float[Tensor, "n h w"],
    masks: Bool[Tensor, "N H W"],
    objects: Int64[Tensor, "n"],
    padded: tuple[int, int],
    padding_invariant: bool,
) -> Float[Tensor, "2 n"]:
    size = (masks.shape[1], masks.shape[2])
    targets = masks[objects].to(logits.dtype)
    if padding_invariant:
        upsampled = resize_mask_logits(logits, covered_size(logits, padded), size, size)
    else:
        upsampled = F.interpolate(logits[:, None], size=padded, mode="bilinear", align_corners=False)[:, 0]
        targets = F.pad(targets, (0, padded[1] - size[1], 0, padded[0] - size[0]))
    from torchvision.ops import sigmoid_focal_loss  # imported here, because it takes seconds

    focal = sigmoid_focal_loss(upsampled, targets, reduction="none").flatten(1).mean(1)
    return torch.stack([focal, dice_loss(upsampled, targets)])
