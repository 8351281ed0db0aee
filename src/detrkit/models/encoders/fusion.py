"""Convolutional blocks of the hybrid encoder: how two feature maps are fused, and how one is downsampled.

RT-DETR (arXiv:2304.08069, section 4.2): `CSPRepLayer`. D-FINE (arXiv:2410.13842, appendix A): `RepNCSPELAN4`, as in GELAN
(YOLOv9, arXiv:2402.13616), and `SCDown` (YOLOv10, arXiv:2405.14458). DEIMv2: blocks of one map, the sum of two, and
`PooledDownsample`. Padding is excluded from the convolutions if its mask is given.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from detrkit.models.convolution import ConvNorm
from detrkit.ops.padding import zero_padding


class RepVGGBlock(nn.Module):
    """Sum of a 3 x 3 and a 1 x 1 convolution, then SiLU; one 3 x 3 convolution for inference (arXiv:2101.03697).

    There is no identity branch.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch3x3 = ConvNorm(width, width, 3)
        self.branch1x1: ConvNorm | None = ConvNorm(width, width)  # None once it is fused
        self.activation = nn.SiLU()

    def forward(
        self, features: Float[Tensor, "B C h w"], padding_mask: Bool[Tensor, "B h w"] | None = None
    ) -> Float[Tensor, "B C h w"]:
        """Compute both convolutions."""
        features = zero_padding(features, padding_mask)
        output: Tensor = self.branch3x3(features)
        if self.branch1x1 is not None:
            output = output + self.branch1x1(features)
        return self.activation(output)


class CSPRepLayer(nn.Module):
    """RepVGG blocks on one projection of the input, added to another projection.

    Args:
        in_channels: of its input.
        out_channels: of its output.
        depth: number of RepVGG blocks.
        hidden_channels: of the projections; if not `out_channels`, their sum is projected once more.
        packed: compute both projections by one convolution (DEIMv2), whose second half the RepVGG blocks transform.
    """

    def __init__(
        self, in_channels: int, out_channels: int, depth: int, hidden_channels: int, *, packed: bool = False
    ) -> None:
        super().__init__()
        self.conv1 = ConvNorm(in_channels, (2 if packed else 1) * hidden_channels, activation="silu")
        self.conv2 = None if packed else ConvNorm(in_channels, hidden_channels, activation="silu")
        self.blocks = nn.ModuleList(RepVGGBlock(hidden_channels) for _ in range(depth))
        is_narrow = hidden_channels != out_channels
        self.conv3 = ConvNorm(hidden_channels, out_channels, activation="silu") if is_narrow else nn.Identity()

    def forward(
        self, features: Float[Tensor, "B C h w"], padding_mask: Bool[Tensor, "B h w"] | None = None
    ) -> Float[Tensor, "B _ h w"]:
        """Transform a feature map."""
        if self.conv2 is None:
            shallow, deep = self.conv1(features).chunk(2, dim=1)
        else:
            deep, shallow = self.conv1(features), self.conv2(features)
        for block in self.blocks:
            deep = block(deep, padding_mask)
        fused: Tensor = self.conv3(deep + shallow)
        return fused


class RepNCSPELAN4(nn.Module):
    """Chain of two CSP layers on half of the channels; both halves and both outputs are aggregated.

    Args:
        in_channels: of its input.
        out_channels: of its output.
        depth: number of RepVGG blocks per CSP layer.
        hidden_channels: of the CSP layers.
        packed: see `CSPRepLayer`.
    """

    def __init__(
        self, in_channels: int, out_channels: int, depth: int, hidden_channels: int, *, packed: bool = False
    ) -> None:
        super().__init__()
        self.conv1 = ConvNorm(in_channels, 2 * out_channels, activation="silu")
        self.csp1 = CSPRepLayer(out_channels, hidden_channels, depth, hidden_channels, packed=packed)
        self.conv2 = ConvNorm(hidden_channels, hidden_channels, 3, activation="silu")
        self.csp2 = CSPRepLayer(hidden_channels, hidden_channels, depth, hidden_channels, packed=packed)
        self.conv3 = ConvNorm(hidden_channels, hidden_channels, 3, activation="silu")
        self.conv4 = ConvNorm(2 * out_channels + 2 * hidden_channels, out_channels, activation="silu")

    def forward(
        self, features: Float[Tensor, "B C h w"], padding_mask: Bool[Tensor, "B h w"] | None = None
    ) -> Float[Tensor, "B _ h w"]:
        """Transform a feature map."""
        halves = self.conv1(features)
        first = self.conv2(self.csp1(halves.chunk(2, dim=1)[1], padding_mask), padding_mask)
        second = self.conv3(self.csp2(first, padding_mask), padding_mask)
        fused: Tensor = self.conv4(torch.cat([halves, first, second], dim=1))
        return fused


class SCDown(nn.Module):
    """Spatial-channel decoupled downsampling: 1 x 1 convolution, then a depthwise one of stride 2; no activations."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.pointwise = ConvNorm(width, width)
        self.depthwise = ConvNorm(width, width, 3, 2, groups=width)

    def forward(
        self, features: Float[Tensor, "B C _ _"], padding_mask: Bool[Tensor, "B _ _"] | None = None
    ) -> Float[Tensor, "B C h w"]:
        """Halve the resolution."""
        halved: Tensor = self.depthwise(self.pointwise(features), padding_mask)
        return halved


class PooledDownsample(nn.Module):
    """Mean of 3 x 3 cells with stride 2, cells outside of the map counted as zeros, then a 1 x 1 convolution (DEIMv2)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(3, stride=2, padding=1)
        self.pointwise = ConvNorm(width, width, activation="silu")

    def forward(
        self, features: Float[Tensor, "B C _ _"], padding_mask: Bool[Tensor, "B _ _"] | None = None
    ) -> Float[Tensor, "B C h w"]:
        """Halve the resolution."""
        halved: Tensor = self.pointwise(self.pool(zero_padding(features, padding_mask)))
        return halved
