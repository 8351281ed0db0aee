"""Mask losses (paper, section 4.4): focal loss (arXiv:1708.02002) and dice loss (arXiv:1606.04797).

Input: mask logits and true masks of the matched pairs, at the same size. Output: one value per pair.
"""

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


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
