"""Dropout (paper, section A.4: 0.1), which on a CPU draws sixteen random bits per element instead of a float.

torch's own spends a tenth of a training step on drawing floats there. The share that is dropped is rounded to 1/65536,
and is less than all.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

_LEVELS = 2**16
_PER_DRAW = 4  # int16 in an int64


def drop(values: Float[Tensor, "*shape"], share: float) -> Float[Tensor, "*shape"]:
    """Set a share of the values to zero, at random, and scale up the others.

    Args:
        values: any tensor.
        share: probability of each value to be dropped, 0 .. 1.
    """
    if share == 0 or values.device.type != "cpu" or torch.compiler.is_compiling():
        return F.dropout(values, share)
    kept, scale = kept_mask(values, share)
    return (values * kept).mul_(scale)


def kept_mask(values: Float[Tensor, "*shape"], share: float) -> tuple[Float[Tensor, "*shape"], float]:
    """Draw which values of a tensor on the CPU are kept, 1 or 0; tell by what to multiply those."""
    num_dropped = min(round(share * _LEVELS), _LEVELS - 1)
    # compared into numbers of the same type: a product with booleans takes many times as long
    kept = torch.empty(values.shape, dtype=values.dtype)
    torch.ge(_random_levels(values), num_dropped - _LEVELS // 2, out=kept)
    return kept, _LEVELS / (_LEVELS - num_dropped)


class Dropout(nn.Module):
    """`drop` while training."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Drop some of the values, or none in eval mode."""
        return drop(values, self.share) if self.training else values


def _random_levels(values: Tensor) -> Tensor:
    """Uniform int16 in the shape of `values`."""
    draws = torch.empty(-(-values.numel() // _PER_DRAW), dtype=torch.int64).random_(-(2**63), None)
    return draws.view(torch.int16)[: values.numel()].view(values.shape)
