"""Convolutional blocks of the hybrid encoder: how two feature maps are fused, and how one is downsampled.

RT-DETR (arXiv:2304.08069, section 4.2): `CSPRepLayer`. D-FINE (arXiv:2410.13842, appendix A): `RepNCSPELAN4`, as in GELAN
(YOLOv9, arXiv:2402.13616), and `SCDown` (YOLOv10, arXiv:2405.14458). Padding is excluded from the convolutions if its mask
is given.
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
    """

    def __init__(self, in_channels: int, out_channels: int, depth: int, hidden_channels: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(in_channels, hidden_channels, activation="silu")
        self.conv2 = ConvNorm(in_channels, hidden_channels, activation="silu")
        self.blocks = nn.ModuleList(RepVGGBlock(hidden_channels) for _ in range(depth))
        is_narrow = hidden_channels != out_channels
        self.conv3 = ConvNorm(hidden_channels, out_channels, activation="silu") if is_narrow else nn.Identity()

    def forward(
        self, features: Float[Tensor, "B C h w"], padding_mask: Bool[Tensor, "B h w"] | None = None
    ) -> Float[Tensor, "B _ h w"]:
        """Transform a feature map."""
        deep = self.conv1(features)
        for block in self.blocks:
            deep = block(deep, padding_mask)
        fused: Tensor = self.conv3(deep + self.conv2(features))
        return fused


class RepNCSPELAN4(nn.Module):
    """Chain of two CSP layers on half of the channels; both halves and both outputs are aggregated.

    Args:
        in_channels: of its input.
        out_channels: of its output.
        depth: number of RepVGG blocks per CSP layer.
        hidden_channels: of the CSP layers.
    """

    def __init__(self, in_channels: int, out_channels: int, depth: int, hidden_channels: int) -> None:
        super().__init__()
        half = in_channels // 2
        self.conv1 = ConvNorm(in_channels, in_channels, activation="silu")
        self.csp1 = CSPRepLayer(half, hidden_channels, depth, hidden_channels)
        self.conv2 = ConvNorm(hidden_channels, hidden_channels, 3, activation="silu")
        self.csp2 = CSPRepLayer(hidden_channels, hidden_channels, depth, hidden_channels)
        self.conv3 = ConvNorm(hidden_channels, hidden_channels, 3, activation="silu")
        self.conv4 = ConvNorm(in_channels + 2 * hidden_channels, out_channels, activation="silu")

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
