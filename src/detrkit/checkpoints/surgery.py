"""Weights made to fit a model of another shape."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

FIRST_CONVOLUTION = "backbone.body.conv1.weight"


def with_channels(state: Mapping[str, Tensor], in_channels: int, name: str = FIRST_CONVOLUTION) -> dict[str, Tensor]:
    """Make the first convolution read another number of channels; nothing else changes.

    Args:
        state: weights of a model or of its backbone.
        in_channels: that the model reads.
        name: of the first convolution's weights.
    """
    adapted = dict(state)
    if name in adapted and adapted[name].ndim == 4 and adapted[name].shape[1] != in_channels:
        adapted[name] = adapt_first_convolution(adapted[name], in_channels)
    return adapted


def adapt_first_convolution(weight: Float[Tensor, "D C h w"], in_channels: int) -> Float[Tensor, "D _ h w"]:
    """Spread filters over another number of channels, so that what they add up to keeps about its size.

    Channels that both have keep their filters, new ones get the mean filter, and all are scaled by C / in_channels; where
    either has fewer than three (grey is all colours at once), all get the mean filter. A grey photo then gives what the
    same photo gave in RGB, apart from the colours' different normalisation.
    """
    known = weight.shape[1]
    mean = weight.mean(1, keepdim=True)
    if min(known, in_channels) < 3:
        spread = mean.expand(-1, in_channels, -1, -1)
    else:
        kept = min(known, in_channels)
        spread = torch.cat([weight[:, :kept], mean.expand(-1, in_channels - kept, -1, -1)], 1)
    return spread * (known / in_channels)
