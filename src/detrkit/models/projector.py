"""Projector of LW-DETR and RF-DETR: feature maps of a plain ViT -> feature maps of width D (arXiv:2406.03459, section 3.1).

Each output map has a stride of its own: the ViT's maps are upsampled, kept or downsampled, concatenated, and fused.
"""

from collections.abc import Sequence
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from detrkit.models.convolution import ConvNorm
from detrkit.models.neck import LevelPadding

_DEPTH = 3  # of the fusing block
_MAX_UPSAMPLED_CHANNELS = 512  # LW-DETR halves wider maps first


class ChannelLayerNorm(nn.LayerNorm):
    """Layer norm over the channels of every cell of a feature map."""

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__(channels, eps=eps)

    def forward(self, features: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C h w"]:
        """Normalise each cell."""
        cells = features.permute(0, 2, 3, 1)
        return F.layer_norm(cells, self.normalized_shape, self.weight, self.bias, self.eps).permute(0, 3, 1, 2)


class C2f(nn.Module):
    """Fuse channels by a chain of bottlenecks, whose outputs are all concatenated (C2f of YOLOv8, without shortcuts).

    Args:
        in_channels: of its input.
        out_channels: of its output.
        norm_layer: class of the norms.
    """

    def __init__(self, in_channels: int, out_channels: int, norm_layer: type[nn.Module]) -> None:
        super().__init__()
        build = partial(ConvNorm, activation="silu", norm_layer=norm_layer)
        width = out_channels // 2
        self.conv1 = build(in_channels, 2 * width)
        self.blocks = nn.ModuleList(
            nn.Sequential(build(width, width, 3), build(width, width, 3)) for _ in range(_DEPTH)
        )
        self.conv2 = build((2 + _DEPTH) * width, out_channels)

    def forward(self, features: Float[Tensor, "B _ h w"]) -> Float[Tensor, "B _ h w"]:
        """Fuse a feature map."""
        parts = list(self.conv1(features).chunk(2, dim=1))
        for block in self.blocks:
            parts.append(block(parts[-1]))
        fused: Tensor = self.conv2(torch.cat(parts, dim=1))
        return fused


class ProjectorLevel(nn.Module):
    """Compute one output map: resample, concatenate, fuse, normalise.

    Args:
        channels: channels of the ViT's maps.
        width: D.
        scale: cells of the output per cell of the input: 2, 1 or 0.5.
        norm_layer: class of the norms of convolutions.
    """

    def __init__(self, channels: Sequence[int], width: int, scale: float, norm_layer: type[nn.Module]) -> None:
        super().__init__()
        samplers = [_sampler(count, scale, norm_layer) for count in channels]
        self.samplers = nn.ModuleList(module for module, _ in samplers)
        self.fuse = C2f(sum(count for _, count in samplers), width, norm_layer)
        self.norm = ChannelLayerNorm(width)

    def forward(self, maps: Sequence[Float[Tensor, "B _ h w"]]) -> Float[Tensor, "B D _ _"]:
        """Compute the map."""
        sampled = [sample(one) for sample, one in zip(self.samplers, maps, strict=True)]
        output: Tensor = self.norm(self.fuse(torch.cat(sampled, dim=1)))
        return output


class MultiScaleProjector(nn.Module):
    """Compute feature maps of several strides from those of a plain ViT, which have one.

    Args:
        channels: channels of the ViT's maps.
        width: D.
        scales: cells of each output map per cell of the ViT's, finest first.
        norm_layer: class of the norms of convolutions.
    """

    def __init__(
        self, channels: Sequence[int], width: int, scales: Sequence[float], norm_layer: type[nn.Module]
    ) -> None:
        super().__init__()
        self.levels = nn.ModuleList(ProjectorLevel(channels, width, scale, norm_layer) for scale in scales)

    def forward(
        self, maps: Sequence[Float[Tensor, "B _ h w"]], padding: LevelPadding
    ) -> list[Float[Tensor, "B D _ _"]]:
        """Compute all output maps; padding is not excluded."""
        return [level(maps) for level in self.levels]


def _sampler(channels: int, scale: float, norm_layer: type[nn.Module]) -> tuple[nn.Module, int]:
    """Return what resamples a map, and the channels of its output."""
    if scale == 1:
        return nn.Identity(), channels
    if scale < 1:
        downsample = ConvNorm(channels, channels, 3, stride=2, activation="relu", norm_layer=norm_layer)
        return nn.Sequential(downsample), channels
    upsample: list[nn.Module] = []
    if channels > _MAX_UPSAMPLED_CHANNELS and norm_layer is nn.BatchNorm2d:  # RF-DETR does not
        upsample.append(ConvNorm(channels, channels // 2, activation="relu", norm_layer=norm_layer))
        channels //= 2
    upsample.append(nn.ConvTranspose2d(channels, channels // 2, kernel_size=2, stride=2))
    return nn.Sequential(*upsample), channels // 2
