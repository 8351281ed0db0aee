"""Dropout (paper, section A.4: 0.1) that draws 16 random bits per element on a CPU instead of a float.

PyTorch's own spends a tenth of a training step on drawing floats there. The dropout probability is rounded to a multiple of
1/65536, and is less than 1.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

_NUM_LEVELS = 2**16
_LEVELS_PER_DRAW = 4  # int16 in an int64


def dropout(values: Float[Tensor, "*shape"], p: float) -> Float[Tensor, "*shape"]:
    """Set values to zero with probability p, and scale the others by 1 / (1 - p)."""
    if p == 0 or values.device.type != "cpu" or torch.compiler.is_compiling():
        return F.dropout(values, p)
    mask, scale = dropout_mask(values, p)
    return (values * mask).mul_(scale)


def dropout_mask(values: Float[Tensor, "*shape"], p: float) -> tuple[Float[Tensor, "*shape"], float]:
    """Draw a mask of ones and zeros for a tensor on the CPU, and the factor by which to scale what is kept."""
    num_dropped = min(round(p * _NUM_LEVELS), _NUM_LEVELS - 1)
    # compare into the dtype of the values: a product with booleans takes many times as long
    mask = torch.empty(values.shape, dtype=values.dtype)
    torch.ge(_random_levels(values), num_dropped - _NUM_LEVELS // 2, out=mask)
    return mask, _NUM_LEVELS / (_NUM_LEVELS - num_dropped)


class Dropout(nn.Module):
    """`dropout` in training, identity in evaluation."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Apply dropout in training mode."""
        return dropout(values, self.p) if self.training else values


def _random_levels(values: Tensor) -> Tensor:
    """Draw uniform int16 in the shape of `values`."""
    draws = torch.empty(-(-values.numel() // _LEVELS_PER_DRAW), dtype=torch.int64).random_(-(2**63), None)
    return draws.view(torch.int16)[: values.numel()].view(values.shape)
