"""Building blocks that encoder and decoder layers share (paper, appendix A.3 and figure 10)."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from detrkit.models.dropout import Dropout

_MAX_FLOAT16 = torch.finfo(torch.float16).max
ActivationName = Literal["relu", "prelu", "gelu", "silu"]
NormName = Literal["layer", "rms"]
FeedForwardName = Literal["mlp", "swiglu"]
_RMS_EPS = 1e-6  # as published (DEIMv2)
ACTIVATIONS: dict[ActivationName, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "prelu": nn.PReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
}


@dataclass(frozen=True)
class LayerConfig:
    """Settings common to all encoder and decoder layers; fields as in `ModelConfig`.

    Attributes:
        value_projection: deformable attention projects values and outputs.
        norm: layer norm, or RMS norm, which neither centers nor shifts (arXiv:1910.07467).
        feed_forward: of the layer, see `FeedForward` and `SwiGLU`.
        cross_attention_heads: of deformable cross-attention; None for `num_heads`.
    """

    width: int
    num_heads: int
    dim_feedforward: int
    dropout: float
    pre_norm: bool
    activation: ActivationName = "relu"
    num_feature_levels: int = 1
    num_points: int | tuple[int, ...] = 4
    sampling: Literal["bilinear", "discrete"] = "bilinear"
    value_projection: bool = True
    norm: NormName = "layer"
    feed_forward: FeedForwardName = "mlp"
    cross_attention_heads: int | None = None

    @property
    def points_per_level(self) -> tuple[int, ...]:
        """Number of sampling points on each feature map."""
        if isinstance(self.num_points, int):
            return (self.num_points,) * self.num_feature_levels
        return self.num_points


class RMSNorm(nn.RMSNorm):
    """RMS norm that is computed in the precision of its weight with autocast, as PyTorch computes layer norms."""

    def forward(self, x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
        """Divide by the root of the mean square, and scale."""
        return super().forward(x.to(self.weight.dtype))


class Residual(nn.Module):
    """Residual connection x + dropout(sublayer(x)) with a norm after the sum (post-norm) or before the sublayer."""

    def __init__(self, config: LayerConfig) -> None:
        super().__init__()
        is_rms = config.norm == "rms"
        self.norm: nn.Module = RMSNorm(config.width, eps=_RMS_EPS) if is_rms else nn.LayerNorm(config.width)
        self.dropout = Dropout(config.dropout)
        self.pre_norm = config.pre_norm

    def before(self, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        """Return the input of the sublayer."""
        normalized: Tensor = self.norm(tokens) if self.pre_norm else tokens
        return normalized

    def after(self, tokens: Float[Tensor, "B N D"], output: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        """Add the output of the sublayer."""
        tokens = tokens + self.dropout(output)
        if tokens.dtype == torch.float16:  # as in the published RT-DETR: overflows would become NaN in the norm
            tokens = tokens.clamp(-_MAX_FLOAT16, _MAX_FLOAT16)
        normalized: Tensor = tokens if self.pre_norm else self.norm(tokens)
        return normalized


class FeedForward(nn.Module):
    """Feed-forward network: two linear layers, applied to every token."""

    def __init__(self, config: LayerConfig) -> None:
        super().__init__()
        self.expand = nn.Linear(config.width, config.dim_feedforward)
        self.contract = nn.Linear(config.dim_feedforward, config.width)
        self.activation: nn.Module = ACTIVATIONS[config.activation]()
        self.dropout = Dropout(config.dropout)
        nn.init.xavier_uniform_(self.expand.weight)
        nn.init.xavier_uniform_(self.contract.weight)

    def forward(self, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        """Transform every token."""
        return self.contract(self.dropout(self.activation(self.expand(tokens))))


class SwiGLU(nn.Module):
    """Gated feed-forward network, applied to every token: contract(silu(a) * b), where (a, b) = expand(x).

    Proposed in "GLU Variants Improve Transformer" (arXiv:2002.05202).

    Args:
        config: whose `dim_feedforward` counts the channels of a and b together, as published (DEIMv2).
    """

    def __init__(self, config: LayerConfig) -> None:
        super().__init__()
        self.expand = nn.Linear(config.width, config.dim_feedforward)
        self.contract = nn.Linear(config.dim_feedforward // 2, config.width)
        self.dropout = Dropout(config.dropout)
        for linear in (self.expand, self.contract):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        """Transform every token."""
        gates, values = self.expand(tokens).chunk(2, dim=-1)
        return self.contract(self.dropout(functional.silu(gates) * values))


def feed_forward(config: LayerConfig) -> FeedForward | SwiGLU:
    """Build the feed-forward network of a layer."""
    return SwiGLU(config) if config.feed_forward == "swiglu" else FeedForward(config)


def mlp(*features: int, activation: ActivationName = "relu") -> nn.Sequential:
    """Build linear layers with activations in between, Xavier-initialised.

    Args:
        features: of the input, and of the output of each layer.
        activation: between two layers.
    """
    linear = [nn.Linear(*pair) for pair in itertools.pairwise(features)]
    for layer in linear:
        nn.init.xavier_uniform_(layer.weight)
    layers = [part for layer in linear for part in (layer, ACTIVATIONS[activation]())]
    return nn.Sequential(*layers[:-1])


def in_float32(
    layer: Callable[[Float[Tensor, "*shape D"]], Float[Tensor, "*shape C"]], inputs: Float[Tensor, "*shape D"]
) -> Float[Tensor, "*shape C"]:
    """Apply a layer with autocast disabled: in float32 under autocast, else in the dtype of the input."""
    device = inputs.device.type
    if not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):  # "meta" has no autocast
        return layer(inputs)
    with torch.autocast(device, enabled=False):
        return layer(inputs.float())


def checkpointed(block: Callable[..., Any], enabled: bool, *inputs: Any) -> Any:
    """Run a block; if enabled, store only its inputs and recompute its activations in the backward pass.

    Batch norms update their statistics in the first computation only.

    Args:
        block: a module, or a `functools.partial` with modules among its arguments.
        enabled: False runs the block as it is.
        inputs: of the block.
    """
    if not (enabled and torch.is_grad_enabled()):
        return block(*inputs)
    parts = [one for one in (block, *getattr(block, "args", ())) if isinstance(one, nn.Module)]
    norms = [one for part in parts for one in part.modules() if isinstance(one, _BatchNorm)]
    return checkpoint(
        block, *inputs, use_reentrant=False, context_fn=lambda: (nullcontext(), _constant_statistics(norms))
    )


@contextmanager
def _constant_statistics(norms: Sequence[_BatchNorm]) -> Iterator[None]:
    """Let batch norms use the statistics of the batch without recording them."""
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count
