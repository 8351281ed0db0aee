"""ResNet backbones (paper, section 3.2): images -> one feature map per stage, of strides 4, 8, 16, 32.

ResNets with torchvision's names of weights, and with frozen batch norm unless they are trained from scratch. With
`dilation` (the paper's DC5), the last stage has stride 16.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from detrkit.config.model import Normalization
from detrkit.models.backbones.residual_blocks import BasicBlock, Block, Bottleneck, make_stage
from detrkit.models.convolution import FrozenBatchNorm2d, convolve
from detrkit.models.layers import checkpointed
from detrkit.ops.padding import cell_padding_mask, zero_padding

_WIDTHS = (64, 128, 256, 512)


@dataclass(frozen=True)
class Variant:
    """Sizes of a ResNet or ResNet-vd.

    Attributes:
        block: class of its blocks.
        depths: number of blocks of each stage.
        widths: of the blocks of each stage.
    """

    block: Block
    depths: tuple[int, ...]
    widths: tuple[int, ...] = _WIDTHS

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of the output of each stage."""
        return tuple(width * self.block.expansion for width in self.widths)


_PUBLISHED = {
    "resnet18": Variant(BasicBlock, (2, 2, 2, 2)),
    "resnet34": Variant(BasicBlock, (3, 4, 6, 3)),
    "resnet50": Variant(Bottleneck, (3, 4, 6, 3)),
    "resnet101": Variant(Bottleneck, (3, 4, 23, 3)),
}
VARIANTS = {
    # three stages (stride 16, or 8 with dilation), for CPUs
    "resnet-tiny": Variant(BasicBlock, (1, 1, 1), (32, 64, 128)),
    **_PUBLISHED,
    **{f"{name}-vd": variant for name, variant in _PUBLISHED.items()},
}


class ResNetBody(nn.Module):
    """Weights of a ResNet without its classifier.

    Args:
        variant: its sizes.
        norm_layer: class of the norms.
        dilation: keep the resolution in the last stage and dilate its convolutions instead.
        in_channels: of the images.
    """

    def __init__(
        self,
        variant: Variant,
        norm_layer: type[nn.Module],
        dilation: bool = False,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        block, depths, widths = variant.block, variant.depths, variant.widths
        self.conv1 = nn.Conv2d(in_channels, widths[0], kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = norm_layer(widths[0])
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        channels = widths[0]
        for number, (depth, width) in enumerate(zip(depths, widths, strict=True), start=1):
            stride, dilated = 1 if number == 1 else 2, dilation and number == len(depths)
            stage = make_stage(block, channels, width, depth, norm_layer, stride, dilated=dilated)
            self.add_module(f"layer{number}", stage)
            channels = width * block.expansion
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @property
    def stem(self) -> list[nn.Module]:
        """The parts with weights before the first stage."""
        return [self.conv1, self.bn1]

    def run_stem(
        self, images: Float[Tensor, "B C H W"], padding_mask: Bool[Tensor, "B H W"] | None
    ) -> Float[Tensor, "B _ _ _"]:
        """Compute the input of the first stage, of stride 4; padding is excluded if its mask is given."""
        features = self.relu(convolve(self.conv1, self.bn1, images))
        return cast(Tensor, self.maxpool(zero_cells(features, padding_mask, stride=2)))


class ResNetBackbone(nn.Module):
    """ResNet without its classifier; returns the feature maps of all stages.

    Args:
        name: of the ResNet.
        normalization: "frozen" uses stored statistics and is never trained (for pretrained weights and small batches);
            "batch" is ordinary batch norm (for training from scratch).
        dilation: keep stride 16 in the last stage and dilate its convolutions instead (DC5).
        frozen_stages: number of parts that are not trained, counted from the input: the stem is the first, `layer1` the
            second; 2 as published, 0 to train everything.
        in_channels: of the images.

    Attributes:
        channels: channels of each stage's feature map.
        strides: pixels per cell of each.
        first_cell_centers: distance in pixels from the image's edge to the center of what the first cell of each map sees:
            0.5, because strided convolutions padded alike on both sides start at the first pixel.
        activation_checkpointing: recompute activations of every stage in the backward pass.
        padding_invariant: set padding to zero before every convolution larger than 1 x 1, so that the features of an image
            do not depend on how far it was padded. False, as published, lets features that spilled into the padding flow
            back.
    """

    def __init__(
        self,
        name: str,
        normalization: Normalization = "frozen",
        dilation: bool = False,
        frozen_stages: int = 2,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        norm_layer: type[nn.Module] = FrozenBatchNorm2d if normalization == "frozen" else nn.BatchNorm2d
        self.body = self._make_body(name, norm_layer, dilation, in_channels)
        self.activation_checkpointing = False
        self.padding_invariant = False
        stages = self.stages
        self.channels = VARIANTS[name].channels
        self.strides = tuple(4 * math.prod(_stride(stage[0]) for stage in stages[: i + 1]) for i in range(len(stages)))
        self.first_cell_centers = (0.5,) * len(stages)
        for part in [nn.ModuleList(self.body.stem), *stages][:frozen_stages]:
            part.requires_grad_(False)

    def _make_body(self, name: str, norm_layer: type[nn.Module], dilation: bool, in_channels: int) -> Any:
        _draw_unused_weights(name)
        return ResNetBody(VARIANTS[name], norm_layer, dilation, in_channels)

    @property
    def stages(self) -> list[nn.Sequential]:
        """The stages after the stem, finest first."""
        return [cast(nn.Sequential, part) for name, part in self.body.named_children() if name.startswith("layer")]

    def forward(
        self, images: Float[Tensor, "B C H W"], padding_mask: Bool[Tensor, "B H W"] | None = None
    ) -> list[Float[Tensor, "B _ _ _"]]:
        """Compute one feature map per stage, finest first.

        Args:
            images: normalised and zero-padded.
            padding_mask: True for padding; used if `padding_invariant`.
        """
        mask = padding_mask if self.padding_invariant else None
        features = self.body.run_stem(images, mask)
        maps = []
        for stage, stride in zip(self.stages, (4, *self.strides), strict=False):
            run = partial(_run_stage, stage, stride)
            features = checkpointed(run, self.activation_checkpointing, features, mask)
            maps.append(features)
        return maps


def _draw_unused_weights(name: str) -> None:
    """Draw as many random numbers as torchvision's ResNets do for parts that detrkit leaves out.

    A seed then gives the same weights for RGB images as with them, on which the recorded results are based.
    """
    variant = VARIANTS[name]
    if name == "resnet-tiny":
        first_width, variant = variant.widths[0], Variant(BasicBlock, (1, 1, 1, 1))
        ResNetBody(variant, nn.BatchNorm2d)
        nn.init.normal_(torch.empty(first_width, 3, 7, 7))
    nn.Linear(variant.channels[-1], 1000)


def _stride(block: nn.Module) -> int:
    assert isinstance(block, Bottleneck | BasicBlock)
    return block.stride


def _run_stage(
    stage: nn.Sequential, stride: int, features: Float[Tensor, "B _ _ _"], padding_mask: Bool[Tensor, "B H W"] | None
) -> Float[Tensor, "B _ _ _"]:
    """Run the blocks of a stage; `stride` is that of its input."""
    for block in stage:
        features = _run_block(block, stride, features, padding_mask)
        stride *= _stride(block)
    return features


def _run_block(
    block: nn.Module, stride: int, features: Float[Tensor, "B _ _ _"], padding_mask: Bool[Tensor, "B H W"] | None
) -> Float[Tensor, "B _ _ _"]:
    """Run a residual block, with padding set to zero before its 3 x 3 convolutions."""
    if isinstance(block, Bottleneck):
        output = block.relu(convolve(block.conv1, block.bn1, features))
        output = block.relu(convolve(block.conv2, block.bn2, zero_cells(output, padding_mask, stride)))
        output = convolve(block.conv3, block.bn3, output)
    else:
        assert isinstance(block, BasicBlock)
        output = block.relu(convolve(block.conv1, block.bn1, zero_cells(features, padding_mask, stride)))
        output = convolve(block.conv2, block.bn2, zero_cells(output, padding_mask, stride * block.stride))
    identity = features
    if block.pools_shortcut:
        identity = average_pool(features, cell_padding_mask(padding_mask, features, stride))
    if block.downsample is not None:
        projection, norm = block.downsample
        identity = convolve(cast(nn.Conv2d, projection), norm, identity)
    return cast(Tensor, block.relu(output.add_(identity)))  # in place: the output is not needed for the gradient


def zero_cells(
    features: Float[Tensor, "B C h w"], padding_mask: Bool[Tensor, "B H W"] | None, stride: int
) -> Float[Tensor, "B C h w"]:
    """Set the cells in the padding to zero in a feature map of some stride."""
    return zero_padding(features, cell_padding_mask(padding_mask, features, stride))


def average_pool(
    features: Float[Tensor, "B C h w"], padding_mask: Bool[Tensor, "B h w"] | None
) -> Float[Tensor, "B C _ _"]:
    """Average 2 x 2 cells, of which those outside of the map or in the padding do not count."""
    if padding_mask is None and not torch.compiler.is_compiling():
        return functional.avg_pool2d(features, 2, ceil_mode=True)
    # ceil_mode depends on whether sides are odd, which a graph for images of any size cannot express: a row and a column of
    # zeros are appended instead, which nothing reads if sides are even
    is_image = (
        torch.ones_like(features[:1, :1]) if padding_mask is None else (~padding_mask)[:, None].to(features.dtype)
    )
    sums, counts = (
        functional.avg_pool2d(torch.constant_pad_nd(one, (0, 1, 0, 1)), 2)
        for one in (zero_padding(features, padding_mask), is_image)
    )
    return sums / counts.clamp(min=0.25)  # 0 where all are padding
