"""Convolutions with batch norm and activation, and frozen batch norm (torchvision's, whose import takes 4 s)."""

from typing import Any, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from detrkit.models.layers import ACTIVATIONS, ActivationName
from detrkit.ops.padding import zero_padding


class FrozenBatchNorm2d(nn.Module):
    """Batch norm with stored statistics and scales that are never trained.

    Args:
        num_features: number of channels.
        eps: added to the variance.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.ones(num_features))
        self.register_buffer("bias", torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        state_dict.pop(f"{prefix}num_batches_tracked", None)  # of ordinary batch norm
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(self, features: Tensor) -> Tensor:
        """Normalise features (B, C, h, w)."""
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        return features * scale[:, None, None] + shift[:, None, None]

    def extra_repr(self) -> str:
        """Return the number of channels and the epsilon."""
        return f"{len(self.weight)}, eps={self.eps}"


class LearnableAffine(nn.Module):
    """One learned scale and one learned bias for all channels (the "learnable affine block" of PP-LCNet and HGNetV2)."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, features: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C h w"]:
        """Scale and shift all features."""
        return features * self.scale + self.bias


class Clamp(nn.Module):
    """Limit features from one side: a rectifier and the affine map after it, for inference. In place, except in graphs.

    Args:
        limit: smallest or largest value.
        is_minimum: whether it is the smallest.
    """

    def __init__(self, limit: float, *, is_minimum: bool) -> None:
        super().__init__()
        self.limit = limit
        self.is_minimum = is_minimum

    def forward(self, features: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C h w"]:
        """Limit all features."""
        limits = {"min" if self.is_minimum else "max": self.limit}
        return features.clamp(**limits) if torch.compiler.is_compiling() else features.clamp_(**limits)


class ConvNorm(nn.Module):
    """Convolution without a bias, batch norm, and optionally an activation and a learned affine map.

    Args:
        in_channels: of its input.
        out_channels: of its output.
        kernel_size: height and width of the filters.
        stride: pixels per step.
        groups: of channels that are convolved separately.
        padding: zeros around the map; None for as many as keep its size with stride 1.
        activation: after the norm.
        affine: scale and shift the activations by two learned numbers.
        norm_layer: class of the norm.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        stride: int = 1,
        *,
        groups: int = 1,
        padding: int | None = None,
        activation: ActivationName | None = None,
        affine: bool = False,
        norm_layer: type[nn.Module] = nn.BatchNorm2d,
    ) -> None:
        super().__init__()
        padding = (kernel_size - 1) // 2 if padding is None else padding
        self.convolution = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=False)
        self.norm = norm_layer(out_channels)
        self.activation: nn.Module = ACTIVATIONS[activation]() if activation else nn.Identity()
        self.affine: nn.Module = LearnableAffine() if affine else nn.Identity()

    def forward(
        self, features: Float[Tensor, "B C h w"], padding_mask: Bool[Tensor, "B h w"] | None = None
    ) -> Float[Tensor, "B _ _ _"]:
        """Convolve, normalise and activate.

        Args:
            features: a feature map.
            padding_mask: True for cells in the padding, which are set to zero first; None without padding, or if it is not
                to be excluded. A 1 x 1 convolution does not need it.
        """
        features = convolve(self.convolution, self.norm, zero_padding(features, padding_mask))
        return cast(Tensor, self.affine(self.activation(features)))


def convolve(convolution: nn.Conv2d, norm: nn.Module, features: Float[Tensor, "B _ _ _"]) -> Float[Tensor, "B _ _ _"]:
    """Apply a convolution without a bias and the norm after it."""
    if not isinstance(norm, FrozenBatchNorm2d):
        return cast(Tensor, norm(convolution(features)))
    return convolve_scaled(convolution, norm, features)


def convolve_scaled(convolution: nn.Conv2d, norm: Any, features: Float[Tensor, "B _ _ _"]) -> Float[Tensor, "B _ _ _"]:
    """Apply a convolution and a frozen batch norm, which scales the few filters instead of their large output.

    Args:
        convolution: without a bias.
        norm: frozen batch norm, with weight, bias, running_mean, running_var and eps.
        features: input of the convolution.
    """
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    shift = norm.bias - norm.running_mean * scale
    return functional.conv2d(
        features,
        _scaled(convolution.weight, scale[:, None, None, None]),
        shift,
        convolution.stride,
        convolution.padding,
        convolution.dilation,
        convolution.groups,
    )


class _Scale(torch.autograd.Function):
    """weight * scale for a constant scale; the gradient is scaled in place, because it is used nowhere else."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(scale)
        return weight * scale

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0].mul_(ctx.saved_tensors[0]), None


def _scaled(weight: Tensor, scale: Tensor) -> Tensor:
    if torch.compiler.is_compiling() or not (weight.requires_grad and torch.is_grad_enabled()):
        return weight * scale
    return cast(Tensor, _Scale.apply(weight, scale))
