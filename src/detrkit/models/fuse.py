"""Fuse a model for inference: norms and parallel convolutions multiplied into one, and only what a prediction needs."""

from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_weights

from detrkit.models.convolution import Clamp, ConvNorm, FrozenBatchNorm2d, LearnableAffine
from detrkit.models.detr import DETR
from detrkit.models.encoders.fusion import RepVGGBlock
from detrkit.models.encoders.hybrid import HybridEncoder
from detrkit.models.inference_copy import inference_copy
from detrkit.models.queries.mixed import MixedQueries
from detrkit.models.queries.two_stage import EncoderQueries


def fuse_for_inference(model: DETR) -> DETR:
    """Return a faster copy of a model for inference, in eval mode, equal up to rounding.

    Frozen and ordinary batch norms are fused into the convolutions before them, as are the learned affine maps of HGNetV2
    and the two convolutions of RepVGG blocks. Convolutions use the channels-last memory format, and only the last decoder
    layer is returned, without the encoder's proposals. (A backbone of timm is copied without fusing its norms; so are
    convolutions and norms with hooks.)

    Args:
        model: not changed. The copy shares all weights but those of `fused_weights`.
    """
    fused = inference_copy(model)
    with torch.no_grad(), torch.inference_mode(False):
        for part in _convolutional_parts(fused):
            for block, convolution_name, norm_name in _pairs(part):
                block._modules[convolution_name] = _fuse(*map(block.get_submodule, (convolution_name, norm_name)))
                block._modules[norm_name] = nn.Identity().eval()
            for module in part.modules():
                if isinstance(module, ConvNorm):
                    _fuse_activation(module)
                elif isinstance(module, RepVGGBlock):
                    _fuse_branches(module)
            for module in part.modules():
                if isinstance(module, nn.Conv2d) and isinstance(module._parameters.get("weight"), nn.Parameter):
                    weight = module.weight.detach().contiguous(memory_format=torch.channels_last)
                    module._parameters["weight"] = nn.Parameter(weight, requires_grad=False)
    fused.decoder.return_intermediate = False
    if isinstance(fused.query_source, EncoderQueries | MixedQueries):
        fused.query_source.return_proposals = False
    return fused


def fused_weights(model: DETR) -> list[Tensor]:
    """Return the tensors of which `fuse_for_inference` makes copies: later changes of them need a new fused model."""
    parts = _convolutional_parts(model)
    return [tensor for part in parts for tensor in (*part.parameters(), *part.buffers()) if tensor.is_floating_point()]


def _convolutional_parts(model: DETR) -> list[nn.Module]:
    parts = [model.get_submodule("backbone"), model.get_submodule("neck.projection")]
    return [*parts, model.encoder] if isinstance(model.encoder, HybridEncoder) else parts


def _fuse(convolution: nn.Module, norm: nn.Module) -> nn.Conv2d:
    """Return a convolution that computes a convolution and the batch norm after it."""
    assert isinstance(convolution, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d | FrozenBatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    weight, bias = fuse_conv_bn_weights(
        convolution.weight, convolution.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
    return _with_weights(convolution, weight, bias)


def _with_weights(convolution: nn.Conv2d, weight: Tensor, bias: Tensor | None) -> nn.Conv2d:
    """Return a copy of a convolution with other weights, which are not trained."""
    copied = nn.Conv2d.__new__(nn.Conv2d)  # __init__ would draw random weights
    copied.__dict__.update(convolution.__dict__)
    parameters = {name: nn.Parameter(one) for name, one in (("weight", weight), ("bias", bias)) if one is not None}
    copied.__dict__["_parameters"] = {"weight": None, "bias": None, **parameters}
    return copied.requires_grad_(False)


def _fuse_activation(block: ConvNorm) -> None:
    """Multiply a learned affine map into a convolution, and activate in place.

    For a scale s >= 0 and a bias b, s max(x, 0) + b = max(s x + b, b); for s < 0, it is min(s x + b, b).
    """
    affine, convolution = block.affine, block.convolution
    if isinstance(block.activation, nn.SiLU):
        block._modules["activation"] = nn.SiLU(inplace=True).eval()
    if not isinstance(affine, LearnableAffine) or not isinstance(block.norm, nn.Identity) or has_hooks(affine):
        return
    if isinstance(affine.scale, FakeTensor) or has_hooks(block.activation):  # fakes have no values
        return
    assert isinstance(block.activation, nn.ReLU)
    assert convolution.bias is not None
    weight, bias = convolution.weight * affine.scale, convolution.bias * affine.scale + affine.bias
    block._modules["convolution"] = _with_weights(convolution, weight, bias)
    block._modules["activation"] = Clamp(affine.bias.item(), is_minimum=affine.scale.item() >= 0).eval()
    block._modules["affine"] = nn.Identity().eval()


def _fuse_branches(block: RepVGGBlock) -> None:
    """Add the filters of the 1 x 1 convolution of a RepVGG block to the centers of those of the other one."""
    large, small = block.branch3x3, block.branch1x1
    if not (
        isinstance(small, ConvNorm) and isinstance(large.norm, nn.Identity) and isinstance(small.norm, nn.Identity)
    ):
        return  # a norm has hooks
    convolutions = large.convolution, small.convolution
    if any(map(has_hooks, (large, small, *convolutions))):
        return
    weight = convolutions[0].weight + functional.pad(convolutions[1].weight, (1, 1, 1, 1))
    bias = cast(Tensor, convolutions[0].bias) + cast(Tensor, convolutions[1].bias)
    large._modules["convolution"] = _with_weights(convolutions[0], weight, bias)
    block._modules["branch1x1"] = None
    block._modules["activation"] = nn.SiLU(inplace=True).eval()


def _pairs(part: nn.Module) -> Iterator[tuple[nn.Module, str, str]]:
    """Find convolutions and the norms that follow, by their names in `ConvNorm` and in torchvision's ResNets."""
    for module in list(part.modules()):
        names = dict(module.named_children())
        if isinstance(module, nn.Sequential) and len(names) == 2:
            candidates = [("0", "1")]  # the shortcut of a stage's first block
        else:
            candidates = [("convolution", "norm"), *((f"conv{number}", f"bn{number}") for number in (1, 2, 3))]
        for convolution, norm in candidates:
            found = (names.get(convolution), names.get(norm))
            if type(found[0]) is nn.Conv2d and _is_affine(found[1]) and not any(map(has_hooks, found)):
                yield module, convolution, norm


def _is_affine(norm: nn.Module | None) -> bool:
    return isinstance(norm, FrozenBatchNorm2d) or type(norm) is nn.BatchNorm2d


def has_hooks(module: nn.Module | None) -> bool:
    """Return whether something is called before or after a module, which therefore must stay as it is."""
    return module is not None and bool(module._forward_hooks or module._forward_pre_hooks)
