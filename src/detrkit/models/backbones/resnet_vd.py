"""ResNet-vd backbones of RT-DETR (He et al., "Bag of Tricks", arXiv:1812.01187, section 4.2, model D).

Three 3 x 3 convolutions replace the first one of 7 x 7, and shortcuts average 2 x 2 cells before a 1 x 1 convolution
instead of skipping three of four. The rest is a ResNet.
"""

from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor, nn

from detrkit.models.backbones.residual_blocks import make_stage
from detrkit.models.backbones.resnet import VARIANTS, ResNetBackbone, Variant, zero_cells
from detrkit.models.convolution import ConvNorm

_STEM_WIDTHS = (32, 32, 64)


class ResNetVdBody(nn.Module):
    """Weights of a ResNet-vd without its classifier, initialised as PyTorch's layers are.

    Args:
        variant: its sizes.
        norm_layer: class of the norms.
        in_channels: of the images.
    """

    def __init__(self, variant: Variant, norm_layer: type[nn.Module], in_channels: int = 3) -> None:
        super().__init__()
        block = variant.block
        self.conv1 = nn.Sequential()
        channels = in_channels
        for number, width in enumerate(_STEM_WIDTHS):
            convolution = ConvNorm(
                channels, width, 3, 2 if number == 0 else 1, activation="relu", norm_layer=norm_layer
            )
            self.conv1.append(convolution)
            channels = width
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        for number, (depth, width) in enumerate(zip(variant.depths, variant.widths, strict=True), start=1):
            stride = 1 if number == 1 else 2
            stage = make_stage(block, channels, width, depth, norm_layer, stride, pooled_shortcut=True)
            self.add_module(f"layer{number}", stage)
            channels = width * block.expansion

    @property
    def stem(self) -> list[nn.Module]:
        """The parts with weights before the first stage."""
        return [self.conv1]

    def run_stem(
        self, images: Float[Tensor, "B C H W"], padding_mask: Bool[Tensor, "B H W"] | None
    ) -> Float[Tensor, "B _ _ _"]:
        """Compute the input of the first stage, of stride 4; padding is excluded if its mask is given."""
        features = images
        for convolution in self.conv1:
            features = zero_cells(convolution(features), padding_mask, stride=2)
        return self.maxpool(features)


class ResNetVdBackbone(ResNetBackbone):
    """ResNet-vd without its classifier; returns the feature maps of all stages, of strides 4, 8, 16, 32.

    Arguments and attributes are those of `ResNetBackbone`. As published, ResNet-50-vd and -101-vd have frozen batch norms
    and a frozen stem; in ResNet-18-vd and -34-vd, everything is trained.
    """

    def _make_body(self, name: str, norm_layer: type[nn.Module], dilation: bool, in_channels: int) -> Any:
        return ResNetVdBody(VARIANTS[name], norm_layer, in_channels)
