"""Residual blocks of ResNets (He et al., arXiv:1512.03385), with torchvision's names of weights.

The modules hold weights; `models/backbones/resnet.py` runs them. Importing torchvision, which has the same, takes 4 s.
"""

from torch import nn


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions, of ResNet-18 and -34.

    Args:
        in_channels: of its input.
        width: channels of the convolutions.
        norm_layer: class of the norms.
        stride: of the first convolution.
        dilation: must be 1.
        pooled_shortcut: project the block's input by average pooling and a convolution without a stride (ResNet-vd).
    """

    expansion = 1  # channels of the output by width

    def __init__(
        self,
        in_channels: int,
        width: int,
        norm_layer: type[nn.Module],
        stride: int = 1,
        dilation: int = 1,
        *,
        pooled_shortcut: bool = False,
    ) -> None:
        super().__init__()
        if dilation != 1:
            raise NotImplementedError("basic blocks are not dilated")
        self.conv1 = _convolution(in_channels, width, 3, stride)
        self.bn1 = norm_layer(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = _convolution(width, width, 3)
        self.bn2 = norm_layer(width)
        self.downsample = _shortcut(in_channels, width, norm_layer, stride, pooled_shortcut)
        self.stride = stride
        self.pools_shortcut = pooled_shortcut and stride > 1


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 and 1 x 1 convolutions, of ResNet-50 and -101; the 3 x 3 one has the stride ("v1.5").

    Args:
        in_channels: of its input.
        width: channels of the first two convolutions.
        norm_layer: class of the norms.
        stride: of the 3 x 3 convolution.
        dilation: of the 3 x 3 convolution.
        pooled_shortcut: as of `BasicBlock`.
    """

    expansion = 4  # channels of the output by width

    def __init__(
        self,
        in_channels: int,
        width: int,
        norm_layer: type[nn.Module],
        stride: int = 1,
        dilation: int = 1,
        *,
        pooled_shortcut: bool = False,
    ) -> None:
        super().__init__()
        out_channels = width * self.expansion
        self.conv1 = _convolution(in_channels, width, 1)
        self.bn1 = norm_layer(width)
        self.conv2 = _convolution(width, width, 3, stride, dilation)
        self.bn2 = norm_layer(width)
        self.conv3 = _convolution(width, out_channels, 1)
        self.bn3 = norm_layer(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(in_channels, out_channels, norm_layer, stride, pooled_shortcut)
        self.stride = stride
        self.pools_shortcut = pooled_shortcut and stride > 1


Block = type[BasicBlock] | type[Bottleneck]


def make_stage(
    block: Block,
    in_channels: int,
    width: int,
    num_blocks: int,
    norm_layer: type[nn.Module],
    stride: int = 1,
    *,
    dilated: bool = False,
    pooled_shortcut: bool = False,
) -> nn.Sequential:
    """Build a stage of blocks, of which the first has the stride.

    Args:
        block: class of the blocks.
        in_channels: of the stage's input.
        width: of the blocks.
        num_blocks: number of blocks.
        norm_layer: class of the norms.
        stride: of the stage.
        dilated: keep the resolution, and dilate the convolutions of all blocks but the first by the stride instead.
        pooled_shortcut: of the first block, see `BasicBlock`.
    """
    dilation = stride if dilated else 1
    first = block(in_channels, width, norm_layer, 1 if dilated else stride, pooled_shortcut=pooled_shortcut)
    out_channels = width * block.expansion
    return nn.Sequential(
        first, *(block(out_channels, width, norm_layer, dilation=dilation) for _ in range(num_blocks - 1))
    )


def _convolution(in_channels: int, out_channels: int, size: int, stride: int = 1, dilation: int = 1) -> nn.Conv2d:
    padding = dilation * (size // 2)
    return nn.Conv2d(in_channels, out_channels, size, stride, padding, dilation, bias=False)


def _shortcut(
    in_channels: int, out_channels: int, norm_layer: type[nn.Module], stride: int, pooled: bool
) -> nn.Sequential | None:
    """Return the projection of a block's input to the shape of its output; None if it has that shape.

    In ResNet-vd, the first block of every stage has one, and it follows the pooling.
    """
    if pooled:
        stride = 1
    elif stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(_convolution(in_channels, out_channels, 1, stride), norm_layer(out_channels))
