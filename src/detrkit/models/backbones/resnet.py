"""The backbone (paper, section 3.2): images -> feature maps of several strides.

torchvision's ResNets, with frozen batch norm unless they are trained from scratch. Input (B, C, H, W); output one feature
map per stage, of strides 4, 8, 16, 32 (16 twice with `dilation`, the paper's DC5).
"""

import math
from collections.abc import Iterator
from functools import partial
from typing import Any, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import resnet
from torchvision.ops import FrozenBatchNorm2d

from detrkit.config.model import BackboneName, Normalization
from detrkit.errors import ConfigError
from detrkit.models.activation_checkpointing import run
from detrkit.ops.padding import padding_mask_at

_BLOCKS_OF_STAGES = {
    "resnet18": (resnet.BasicBlock, [2, 2, 2, 2]),
    "resnet34": (resnet.BasicBlock, [3, 4, 6, 3]),
    "resnet50": (resnet.Bottleneck, [3, 4, 6, 3]),
    "resnet101": (resnet.Bottleneck, [3, 4, 23, 3]),
}


class TinyResNet(resnet.ResNet):
    """A ResNet of one block a stage and three stages (stride 16, or 8), for small pictures and slow machines."""

    def __init__(
        self, norm_layer: type[nn.Module], dilation: bool = False, widths: tuple[int, int, int] = (32, 64, 128)
    ) -> None:
        super().__init__(resnet.BasicBlock, [1, 1, 1, 1], norm_layer=norm_layer)
        self.conv1 = _first_convolution(3, widths[0])
        self.bn1 = norm_layer(widths[0])
        self.inplanes = widths[0]
        self.layer1 = self._make_layer(resnet.BasicBlock, widths[0], 1)
        self.layer2 = self._make_layer(resnet.BasicBlock, widths[1], 1, stride=2)
        # its only block would be the undilated one of a dilated stage: keeping the stride is all there is to do
        self.layer3 = self._make_layer(resnet.BasicBlock, widths[2], 1, stride=1 if dilation else 2)
        del self.layer4
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


class ResNetBackbone(nn.Module):
    """A ResNet without its classifier, handing over the feature map of every stage.

    Attributes:
        channels: width of each stage's feature map.
        first_centres: pixels from the photo's edge to the middle of what each map's first cell sees: half a pixel, for
            every strided convolution pads alike on both sides and so begins at the first pixel.
        strides: pixels per cell of each.
    """

    def __init__(
        self,
        name: BackboneName,
        normalization: Normalization = "frozen",
        dilation: bool = False,
        frozen_stages: int = 2,
        in_channels: int = 3,
    ) -> None:
        """Build the backbone with random weights.

        Args:
            name: which ResNet.
            normalization: "frozen" uses stored statistics and is never trained (right with pretrained weights and small
                batches); "batch" is ordinary batch norm (needed from scratch).
            dilation: keep stride 16 in the last stage and dilate its convolutions instead (DC5).
            frozen_stages: how many parts, counted from the image, are not trained: the stem is the first, `layer1` the
                second; 2 as published, 0 to train everything.
            in_channels: of the images.

        Raises:
            ConfigError: dilation is asked of a ResNet that torchvision cannot dilate.
        """
        super().__init__()
        self.body = _build_body(name, normalization, dilation)
        del self.body.avgpool, self.body.fc
        if in_channels != self.body.conv1.in_channels:
            self.body.conv1 = _first_convolution(in_channels, self.body.conv1.out_channels)
        self.activation_checkpointing = False
        stages = self.stages
        self.channels = tuple(_output_channels(stage[-1]) for stage in stages)
        self.strides = tuple(4 * math.prod(_stride(stage[0]) for stage in stages[: i + 1]) for i in range(len(stages)))
        self.first_centres = (0.5,) * len(stages)
        for part in [*_stem(self.body), *stages][: frozen_stages + 1 if frozen_stages else 0]:
            part.requires_grad_(False)

    @property
    def stages(self) -> list[nn.Sequential]:
        """The stages after the stem, finest first."""
        return [module for name, module in self.body.named_children() if name.startswith("layer")]

    def forward(
        self, images: Float[Tensor, "B C H W"], padding_mask: Bool[Tensor, "B H W"] | None = None
    ) -> list[Float[Tensor, "B _ _ _"]]:
        """Compute one feature map per stage.

        Args:
            images: normalised images, padded with zeros.
            padding_mask: when given, padding is held at zero before every convolution that looks sideways, so that a
                photo's features do not depend on how far it was padded. None, as published, lets what spills over a
                photo's edge into its padding flow back.
        """
        body = self.body
        features = body.relu(_convolve(body.conv1, body.bn1, images))
        features = body.maxpool(_without_padding(features, padding_mask, stride=2))
        levels = []
        for stage, before in zip(self.stages, (4, *self.strides), strict=False):
            features = run(partial(_run_stage, stage, before), self.activation_checkpointing, features, padding_mask)
            levels.append(features)
        return levels


def _build_body(name: BackboneName, normalization: Normalization, dilation: bool) -> resnet.ResNet:
    norm_layer = cast(type[nn.Module], FrozenBatchNorm2d if normalization == "frozen" else nn.BatchNorm2d)
    if name == "resnet-tiny":
        return TinyResNet(norm_layer, dilation)
    if name not in ("resnet50", "resnet101") and dilation:
        raise ConfigError(f"backbone {name!r} cannot be dilated; dilation works with resnet50 and resnet101")
    block, blocks = _BLOCKS_OF_STAGES[name]
    return resnet.ResNet(block, blocks, norm_layer=norm_layer, replace_stride_with_dilation=[False, False, dilation])


def _first_convolution(in_channels: int, width: int) -> nn.Conv2d:
    convolution = nn.Conv2d(in_channels, width, kernel_size=7, stride=2, padding=3, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return convolution


def _stem(body: resnet.ResNet) -> Iterator[nn.Module]:
    yield from (body.conv1, body.bn1)


def _output_channels(block: nn.Module) -> int:
    convolutions = [module for name, module in block.named_children() if name.startswith("conv")]
    return cast(nn.Conv2d, convolutions[-1]).out_channels


def _stride(block: nn.Module) -> int:
    assert isinstance(block, resnet.Bottleneck | resnet.BasicBlock)
    return cast(int, block.stride)


def _run_stage(
    stage: nn.Sequential, stride: int, features: Float[Tensor, "B _ _ _"], padding_mask: Bool[Tensor, "B H W"] | None
) -> Float[Tensor, "B _ _ _"]:
    """Run the blocks of a stage, whose input has that stride."""
    for block in stage:
        features = _run_block(block, stride, features, padding_mask)
        stride *= _stride(block)
    return features


def _run_block(
    block: nn.Module, stride: int, features: Float[Tensor, "B _ _ _"], padding_mask: Bool[Tensor, "B H W"] | None
) -> Float[Tensor, "B _ _ _"]:
    """Run a residual block, with padding held at zero before its 3 x 3 convolutions."""
    if isinstance(block, resnet.Bottleneck):
        change = block.relu(_convolve(block.conv1, block.bn1, features))
        change = block.relu(_convolve(block.conv2, block.bn2, _without_padding(change, padding_mask, stride)))
        change = _convolve(block.conv3, block.bn3, change)
    else:
        assert isinstance(block, resnet.BasicBlock)
        change = block.relu(_convolve(block.conv1, block.bn1, _without_padding(features, padding_mask, stride)))
        change = _convolve(block.conv2, block.bn2, _without_padding(change, padding_mask, stride * block.stride))
    kept = features if block.downsample is None else _convolve(block.downsample[0], block.downsample[1], features)
    return cast(Tensor, block.relu(change.add_(kept)))  # nobody needs the change by itself


def _convolve(convolution: nn.Conv2d, norm: nn.Module, features: Float[Tensor, "B _ _ _"]) -> Float[Tensor, "B _ _ _"]:
    if not isinstance(norm, FrozenBatchNorm2d):
        return cast(Tensor, norm(convolution(features)))
    return convolve_scaled(convolution, norm, features)


def convolve_scaled(convolution: nn.Conv2d, norm: Any, features: Float[Tensor, "B _ _ _"]) -> Float[Tensor, "B _ _ _"]:
    """Convolve and normalise; frozen batch norm is multiplied into the filters, which are few, not into their output.

    Args:
        convolution: without a bias.
        norm: frozen, with weight, bias, running_mean, running_var and eps.
        features: its input.
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
    """weight * scale for a constant scale; the gradient, which is nobody else's, is scaled in place."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(scale)
        return weight * scale

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0].mul_(ctx.saved_tensors[0]), None


def _scaled(weight: Tensor, scale: Tensor) -> Tensor:
    if torch.compiler.is_compiling() or not (weight.requires_grad and torch.is_grad_enabled()):
        return weight * scale
    return cast(Tensor, _Scale.apply(weight, scale))


def _without_padding(
    features: Float[Tensor, "B C h w"], padding_mask: Bool[Tensor, "B H W"] | None, stride: int
) -> Float[Tensor, "B C h w"]:
    if padding_mask is None:
        return features
    at_stride = padding_mask_at(padding_mask, (features.shape[-2], features.shape[-1]), stride=stride)
    return features.masked_fill(at_stride[:, None], 0.0)
