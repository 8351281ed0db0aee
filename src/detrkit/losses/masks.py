"""Mask losses (paper, section 4.4): focal loss (arXiv:1708.02002) and dice loss (arXiv:1606.04797).

Input: mask logits of the matched pairs over the padded images, and true masks. Output: one value per pair.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from detrkit.ops.masks import covered, enlarge
from detrkit.structures import Target

MAX_PIXELS = (
    2**22
)  # enlarged at a time: what a chunk needs for its gradient is computed again, so chunks add up to nothing


def sigmoid_focal_loss(
    logits: Float[Tensor, "P H W"], truth: Float[Tensor, "P H W"], alpha: float = 0.25, gamma: float = 2.0
) -> Float[Tensor, "P"]:
    """Cross entropy that pixels already told apart hardly add to, averaged over the pixels.

    Args:
        logits: mask logits.
        truth: 1 inside the object, 0 outside.
        alpha: weight of the inside; 1 - alpha is the outside's.
        gamma: how fast easy pixels lose weight.
    """
    probability = logits.sigmoid()
    entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    missed = probability * (1 - truth) + (1 - probability) * truth
    weight = alpha * truth + (1 - alpha) * (1 - truth)
    return (weight * missed**gamma * entropy).flatten(1).mean(1)


def dice_loss(logits: Float[Tensor, "P H W"], truth: Float[Tensor, "P H W"]) -> Float[Tensor, "P"]:
    """One minus the overlap of two masks relative to their areas (with 1 added above and below, as published)."""
    probability = logits.sigmoid().flatten(1)
    truth = truth.flatten(1)
    overlap = 2 * (probability * truth).sum(1)
    return 1 - (overlap + 1) / (probability.sum(1) + truth.sum(1) + 1)


def mask_losses(
    logits: Float[Tensor, "P h w"],
    objects: Sequence[Int64[Tensor, "_"]],
    targets: Sequence[Target],
    *,
    padding_invariant: bool,
) -> Float[Tensor, "2 P"]:
    """Focal and dice loss of every pair, at the size of its photo.

    Args:
        logits: of the pairs of all photos, one photo after the other.
        objects: numbers of the objects of each photo's pairs.
        targets: one per photo, with masks; the batch was padded to the largest height and width among them.
        padding_invariant: look at the photo alone. False counts its padding as outside, as published, where a photo weighs
            less the more it was padded.
    """
    masks = [target.masks for target in targets if target.masks is not None]
    padded = max(mask.shape[1] for mask in masks), max(mask.shape[2] for mask in masks)
    at_once = max(1, MAX_PIXELS // (padded[0] * padded[1]))
    losses = []
    for mask, of_photo, numbers in zip(masks, logits.split([len(one) for one in objects]), objects, strict=True):
        for some, their_numbers in zip(of_photo.split(at_once), numbers.split(at_once), strict=True):
            losses.append(
                checkpoint(_losses, some, mask, their_numbers, padded, padding_invariant, use_reentrant=False)
            )
    return torch.cat(losses, dim=1)


def _losses(
    logits: Float[Tensor, "n h w"],
    masks: Bool[Tensor, "N H W"],
    objects: Int64[Tensor, "n"],
    padded: tuple[int, int],
    padding_invariant: bool,
) -> Float[Tensor, "2 n"]:
    size = (masks.shape[1], masks.shape[2])
    truth = masks[objects].to(logits.dtype)
    if padding_invariant:
        enlarged = enlarge(logits, covered(logits, padded), size, size)
    else:
        enlarged = F.interpolate(logits[:, None], size=padded, mode="bilinear", align_corners=False)[:, 0]
        truth = F.pad(truth, (0, padded[1] - size[1], 0, padded[0] - size[0]))
    return torch.stack([sigmoid_focal_loss(enlarged, truth), dice_loss(enlarged, truth)])
