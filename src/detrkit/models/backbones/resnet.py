"""ResNet backbones (paper, section 3.2): images -> one feature map per stage, of strides 4, 8, 16, 32.

ResNets with torchvision's names of weights, and with frozen batch norm unless they are trained from scratch. With
`dilation` (the paper's DC5), the last stage has stride 16.
"""

import math
from collections.abc import Iterator
from functools import partial
from typing import Any, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from detrkit.config.model import BackboneName, Normalization
from detrkit.models.backbones.residual_blocks import BasicBlock, Block, Bottleneck, FrozenBatchNorm2d, make_stage
from detrkit.models.layers import checkpointed
from detrkit.ops.padding import resize_padding_mask

_WIDTHS = (64, 128, 256, 512)
_TINY_WIDTHS = (32, 64, 128)  # one block per stage and three stages (stride 16, or 8 with dilation), for CPUs
_BLOCKS_OF_STAGES: dict[str, tuple[Block, tuple[int, ...], tuple[int, ...]]] = {
    "resnet-tiny": (BasicBlock, (1, 1, 1), _TINY_WIDTHS),
    "resnet18": (BasicBlock, (2, 2, 2, 2), _WIDTHS),
    "resnet34": (BasicBlock, (3, 4, 6, 3), _WIDTHS),
    "resnet50": (Bottleneck, (3, 4, 6, 3), _WIDTHS),
    "resnet101": (Bottleneck, (3, 4, 23, 3), _WIDTHS),
}


class ResNetBody(nn.Module):
    """Weights of a ResNet without its classifier.

    Args:
        block: class of its blocks.
        depths: number of blocks of each stage.
        widths: of the blocks of each stage.
        norm_layer: class of the norms.
        dilation: keep the resolution in the last stage and dilate its convolutions instead.
        in_channels: of the images.
    """

    def __init__(
        self,
        block: Block,
        depths: tuple[int, ...],
        widths: tuple[int, ...],
        norm_layer: type[nn.Module],
        dilation: bool = False,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
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
        name: BackboneName,
        normalization: Normalization = "frozen",
        dilation: bool = False,
        frozen_stages: int = 2,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        norm_layer: type[nn.Module] = FrozenBatchNorm2d if normalization == "frozen" else nn.BatchNorm2d
        _draw_unused_weights(name)
        self.body = ResNetBody(*_BLOCKS_OF_STAGES[name], norm_layer, dilation, in_channels)
        self.activation_checkpointing = False
        self.padding_invariant = False
        stages = self.stages
        self.channels = tuple(_output_channels(stage[-1]) for stage in stages)
        self.strides = tuple(4 * math.prod(_stride(stage[0]) for stage in stages[: i + 1]) for i in range(len(stages)))
        self.first_cell_centers = (0.5,) * len(stages)
        for part in [*_stem(self.body), *stages][: frozen_stages + 1 if frozen_stages else 0]:
            part.requires_grad_(False)

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
        body = self.body
        mask = padding_mask if self.padding_invariant else None
        features = body.relu(_convolve(body.conv1, body.bn1, images))
        features = body.maxpool(_zero_padding(features, mask, stride=2))
        maps = []
        for stage, stride in zip(self.stages, (4, *self.strides), strict=False):
            run = partial(_run_stage, stage, stride)
            features = checkpointed(run, self.activation_checkpointing, features, mask)
            maps.append(features)
        return maps


def _draw_unused_weights(name: BackboneName) -> None:
    """Draw as many random numbers as torchvision's ResNets do for parts that detrkit leaves out.

    A seed then gives the same weights for RGB images as with them, on which the recorded results are based.
    """
    block, _, widths = _BLOCKS_OF_STAGES[name]
    if name == "resnet-tiny":
        widths = _WIDTHS
        ResNetBody(block, (1, 1, 1, 1), widths, nn.BatchNorm2d)
        nn.init.normal_(torch.empty(_TINY_WIDTHS[0], 3, 7, 7))
    nn.Linear(widths[-1] * block.expansion, 1000)


def _stem(body: ResNetBody) -> Iterator[nn.Module]:
    yield from (body.conv1, body.bn1)


def _output_channels(block: nn.Module) -> int:
    convolutions = [module for name, module in block.named_children() if name.startswith("conv")]
    return cast(nn.Conv2d, convolutions[-1]).out_channels


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
        output = block.relu(_convolve(block.conv1, block.bn1, features))
        output = block.relu(_convolve(block.conv2, block.bn2, _zero_padding(output, padding_mask, stride)))
        output = _convolve(block.conv3, block.bn3, output)
    else:
        assert isinstance(block, BasicBlock)
        output = block.relu(_convolve(block.conv1, block.bn1, _zero_padding(features, padding_mask, stride)))
        output = _convolve(block.conv2, block.bn2, _zero_padding(output, padding_mask, stride * block.stride))
    identity = features
    if block.downsample is not None:
        projection, norm = block.downsample
        identity = _convolve(cast(nn.Conv2d, projection), norm, features)
    return cast(Tensor, block.relu(output.add_(identity)))  # in place: the output is not needed for the gradient


def _convolve(convolution: nn.Conv2d, norm: nn.Module, features: Float[Tensor, "B _ _ _"]) -> Float[Tensor, "B _ _ _"]:
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


def _zero_padding(
    features: Float[Tensor, "B C h w"], padding_mask: Bool[Tensor, "B H W"] | None, stride: int
) -> Float[Tensor, "B C h w"]:
    if padding_mask is None:
        return features
    mask = resize_padding_mask(padding_mask, (features.shape[-2], features.shape[-1]), stride=stride)
    return features.masked_fill(mask[:, None], 0.0)
