"""HGNetV2 backbones of D-FINE and DEIMv2 (PaddlePaddle's PP-HGNetV2): images -> feature maps of strides 4, 8, 16, 32.

A block concatenates its input and the outputs of a chain of convolutions, and aggregates them by two 1 x 1 convolutions
(as VoVNet's one-shot aggregation). The last two stages use 1 x 1 and depthwise 5 x 5 convolutions ("light").
DEIMv2's smallest variants, Atto, Femto and Pico, end with the third stage.
"""

from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from detrkit.config.model import Normalization
from detrkit.models.convolution import ConvNorm, FrozenBatchNorm2d
from detrkit.models.layers import checkpointed
from detrkit.ops.padding import cell_padding_mask, zero_padding

STRIDES: tuple[int, ...] = (4, 8, 16, 32)
# the convolutions of 2 x 2 cells, padded at the end, look 2 pixels to the right, the pooling of the other branch 1 pixel
_FIRST_CELL_CENTER = 0.5 + (2 + 1) / 2


@dataclass(frozen=True)
class Variant:
    """Sizes of an HGNetV2.

    Attributes:
        stem: channels inside of the stem, and of its output.
        widths: channels of the convolutions in the blocks of each stage.
        channels: of the output of each stage.
        depths: number of blocks of each stage.
        num_layers: convolutions, or pairs of them, per block.
        light_kernel_size: height and width of the filters of light convolutions.
    """

    stem: tuple[int, int]
    widths: tuple[int, ...]
    channels: tuple[int, ...]
    depths: tuple[int, ...]
    num_layers: int
    light_kernel_size: int = 5


VARIANTS: dict[str, Variant] = {
    "hgnetv2-atto": Variant((16, 16), (16, 32, 64), (64, 256, 256), (1, 1, 1), 3, light_kernel_size=3),
    "hgnetv2-femto": Variant((16, 16), (16, 32, 64), (64, 256, 512), (1, 1, 1), 3),
    "hgnetv2-pico": Variant((16, 16), (16, 32, 64), (64, 256, 512), (1, 1, 2), 3),
    "hgnetv2-b0": Variant((16, 16), (16, 32, 64, 128), (64, 256, 512, 1024), (1, 1, 2, 1), 3),
    "hgnetv2-b1": Variant((24, 32), (32, 48, 96, 192), (64, 256, 512, 1024), (1, 1, 2, 1), 3),
    "hgnetv2-b2": Variant((24, 32), (32, 64, 128, 256), (96, 384, 768, 1536), (1, 1, 3, 1), 4),
    "hgnetv2-b3": Variant((24, 32), (32, 64, 128, 256), (128, 512, 1024, 2048), (1, 1, 3, 1), 5),
    "hgnetv2-b4": Variant((32, 48), (48, 96, 192, 384), (128, 512, 1024, 2048), (1, 1, 3, 1), 6),
    "hgnetv2-b5": Variant((32, 64), (64, 128, 256, 512), (128, 512, 1024, 2048), (1, 2, 5, 2), 6),
    "hgnetv2-b6": Variant((48, 96), (96, 192, 384, 768), (192, 512, 1024, 2048), (2, 3, 6, 3), 6),
}
_LIGHT_STAGES = (False, False, True, True)


class HGNetStem(nn.Module):
    """Convolutions from the images to the first stage, of stride 4; two branches look at 2 x 2 cells of stride 2.

    Args:
        in_channels: of the images.
        width: channels inside.
        out_channels: of the output.
        conv_norm: builds a convolution with norm, activation and, if any, affine map.
    """

    def __init__(self, in_channels: int, width: int, out_channels: int, conv_norm: "partial[ConvNorm]") -> None:
        super().__init__()
        self.stem1 = conv_norm(in_channels, width, 3, 2)
        self.stem2a = conv_norm(width, width // 2, 2, padding=0)
        self.stem2b = conv_norm(width // 2, width, 2, padding=0)
        self.pool = nn.MaxPool2d(2, stride=1)
        self.stem3 = conv_norm(2 * width, width, 3, 2)
        self.stem4 = conv_norm(width, out_channels)

    def forward(
        self, images: Float[Tensor, "B C H W"], padding_mask: Bool[Tensor, "B H W"] | None = None
    ) -> Float[Tensor, "B _ _ _"]:
        """Compute the input of the first stage; padding is excluded if its mask is given."""
        features = self.stem1(images)
        mask = cell_padding_mask(padding_mask, features, stride=2)
        features = _pad_end(zero_padding(features, mask))
        convolved = self.stem2b(_pad_end(zero_padding(self.stem2a(features), mask)))
        merged = torch.cat([self._pooled(features), convolved], dim=1)
        return cast(Tensor, self.stem4(self.stem3(merged, mask)))

    def _pooled(self, features: Float[Tensor, "B C _ _"]) -> Float[Tensor, "B C _ _"]:
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return self.pool(features)
        # PyTorch's pooling also computes indices, and takes three times as long
        columns = torch.maximum(features[..., :-1], features[..., 1:])
        return torch.maximum(columns[..., :-1, :], columns[..., 1:, :])


class LightConv(nn.Module):
    """1 x 1 convolution without an activation, then a depthwise one."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, conv_norm: "partial[ConvNorm]") -> None:
        super().__init__()
        self.pointwise = conv_norm(in_channels, out_channels, activation=None, affine=False)
        self.depthwise = conv_norm(out_channels, out_channels, kernel_size, groups=out_channels)

    def forward(
        self, features: Float[Tensor, "B C h w"], padding_mask: Bool[Tensor, "B h w"] | None = None
    ) -> Float[Tensor, "B _ h w"]:
        """Convolve; padding is excluded if its mask is given."""
        return cast(Tensor, self.depthwise(self.pointwise(features), padding_mask))


class HGNetBlock(nn.Module):
    """Chain of convolutions whose outputs are concatenated and aggregated.

    Args:
        in_channels: of its input.
        width: channels of the convolutions.
        out_channels: of its output.
        num_layers: number of convolutions.
        light_kernel_size: of `LightConv`; None for ordinary 3 x 3 convolutions.
        residual: add the input to the output.
        conv_norm: builds a convolution with norm, activation and, if any, affine map.
    """

    def __init__(
        self,
        in_channels: int,
        width: int,
        out_channels: int,
        num_layers: int,
        *,
        light_kernel_size: int | None,
        residual: bool,
        conv_norm: "partial[ConvNorm]",
    ) -> None:
        super().__init__()
        build: partial[LightConv] | partial[ConvNorm] = partial(conv_norm, kernel_size=3)
        if light_kernel_size is not None:
            build = partial(LightConv, kernel_size=light_kernel_size, conv_norm=conv_norm)
        self.layers = nn.ModuleList(build(width if index else in_channels, width) for index in range(num_layers))
        self.aggregation = nn.Sequential(
            conv_norm(in_channels + num_layers * width, out_channels // 2), conv_norm(out_channels // 2, out_channels)
        )
        self.residual = residual

    def forward(
        self, features: Float[Tensor, "B C h w"], padding_mask: Bool[Tensor, "B h w"] | None = None
    ) -> Float[Tensor, "B _ h w"]:
        """Convolve and aggregate; padding is excluded if its mask is given."""
        outputs = [features]
        for layer in self.layers:
            outputs.append(layer(outputs[-1], padding_mask))
        aggregated: Tensor = self.aggregation(torch.cat(outputs, dim=1))
        return aggregated + features if self.residual else aggregated


class HGNetStage(nn.Module):
    """Blocks of one resolution, after a depthwise convolution of stride 2 unless it is the first stage.

    Args:
        variant: sizes.
        index: of the stage.
        conv_norm: builds a convolution with norm, activation and, if any, affine map.
    """

    def __init__(self, variant: Variant, index: int, conv_norm: "partial[ConvNorm]") -> None:
        super().__init__()
        in_channels = variant.channels[index - 1] if index else variant.stem[1]
        self.downsample = (
            conv_norm(in_channels, in_channels, 3, 2, groups=in_channels, activation=None, affine=False)
            if index
            else None
        )
        self.blocks = nn.ModuleList(
            HGNetBlock(
                variant.channels[index] if block else in_channels,
                variant.widths[index],
                variant.channels[index],
                variant.num_layers,
                light_kernel_size=variant.light_kernel_size if _LIGHT_STAGES[index] else None,
                residual=block > 0,
                conv_norm=conv_norm,
            )
            for block in range(variant.depths[index])
        )

    def forward(
        self,
        features: Float[Tensor, "B C _ _"],
        padding_mask: Bool[Tensor, "B H W"] | None,
        stride: int,
    ) -> Float[Tensor, "B _ h w"]:
        """Compute the feature map of the stage.

        Args:
            features: of the stage before.
            padding_mask: of the images, if padding is to be excluded.
            stride: of the output.
        """
        if self.downsample is not None:
            features = self.downsample(features, cell_padding_mask(padding_mask, features, stride // 2))
        mask = cell_padding_mask(padding_mask, features, stride)
        for block in self.blocks:
            features = block(features, mask)
        return features


class HGNetBody(nn.Module):
    """Weights of an HGNetV2 without its classifier, initialised as PyTorch's layers are.

    Args:
        variant: sizes.
        norm_layer: class of the norms.
        affine: scale and shift activations by learned numbers.
        in_channels: of the images.
    """

    def __init__(self, variant: Variant, norm_layer: type[nn.Module], affine: bool, in_channels: int = 3) -> None:
        super().__init__()
        conv_norm = partial(ConvNorm, activation="relu", affine=affine, norm_layer=norm_layer)
        self.stem = HGNetStem(in_channels, *variant.stem, conv_norm)
        self.stages = nn.ModuleList(HGNetStage(variant, index, conv_norm) for index in range(len(variant.channels)))


class HGNetBackbone(nn.Module):
    """HGNetV2 without its classifier; returns the feature maps of all stages.

    Args:
        name: "hgnetv2-b0" to "hgnetv2-b6", "hgnetv2-atto", "-femto" or "-pico".
        normalization: as of `ResNetBackbone`. As published, D-FINE-L and -X (B4, B5) have frozen norms.
        frozen_stages: number of parts that are not trained, counted from the input: the stem is the first. As published, 1
            in D-FINE-L and -X.
        in_channels: of the images.
        affine: scale and shift activations by learned numbers (as published: Atto to B3).

    Attributes:
        channels: channels of each stage's feature map.
        strides: pixels per cell of each.
        first_cell_centers: distance in pixels from the image's edge to the center of what the first cell of each map sees:
            2, because the 2 x 2 windows of the stem are padded at the end.
        activation_checkpointing: recompute activations of every stage in the backward pass.
        padding_invariant: as of `ResNetBackbone`.
    """

    def __init__(
        self,
        name: str,
        normalization: Normalization = "batch",
        frozen_stages: int = 0,
        in_channels: int = 3,
        *,
        affine: bool = True,
    ) -> None:
        super().__init__()
        norm_layer: type[nn.Module] = FrozenBatchNorm2d if normalization == "frozen" else nn.BatchNorm2d
        variant = VARIANTS[name]
        self.body = HGNetBody(variant, norm_layer, affine, in_channels)
        self.activation_checkpointing = False
        self.padding_invariant = False
        self.channels = variant.channels
        self.strides = STRIDES[: len(variant.channels)]
        self.first_cell_centers: tuple[float, ...] = (_FIRST_CELL_CENTER,) * len(self.strides)
        for part in [self.body.stem, *self.body.stages][:frozen_stages]:
            part.requires_grad_(False)

    def forward(
        self, images: Float[Tensor, "B C H W"], padding_mask: Bool[Tensor, "B H W"] | None = None
    ) -> list[Float[Tensor, "B _ _ _"]]:
        """Compute one feature map per stage, finest first.

        Args:
            images: zero-padded.
            padding_mask: True for padding; used if `padding_invariant`.
        """
        mask = padding_mask if self.padding_invariant else None
        features = self.body.stem(images, mask)
        maps = []
        for stage, stride in zip(self.body.stages, self.strides, strict=True):
            features = checkpointed(stage, self.activation_checkpointing, features, mask, stride)
            maps.append(features)
        return maps


def _pad_end(features: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C _ _"]:
    """Append a row and a column of zeros."""
    return torch.constant_pad_nd(features, (0, 1, 0, 1))  # functional.pad has a string argument, which engines refuse
