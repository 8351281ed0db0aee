"""Fuse a model for inference: batch norms multiplied into convolutions, and only what a prediction needs."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from detrkit.models.backbones.residual_blocks import FrozenBatchNorm2d
from detrkit.models.detr import DETR
from detrkit.models.inference_copy import inference_copy
from detrkit.models.queries.two_stage import TwoStageQueries

_PARTS = ("backbone", "neck.projection")  # with convolutions


def fuse_for_inference(model: DETR) -> DETR:
    """Return a faster copy of a model for inference, in eval mode, equal up to rounding.

    Frozen and ordinary batch norms of a ResNet are fused into the convolutions before them, the convolutions use the
    channels-last memory format, and only the last decoder layer is returned, without the encoder's proposals. (A backbone
    of timm is copied without fusing its norms; so are convolutions and norms with hooks.)

    Args:
        model: not changed. The copy shares all weights but those of `fused_weights`.
    """
    fused = inference_copy(model)
    with torch.no_grad(), torch.inference_mode(False):
        for block, convolution_name, norm_name in _pairs(fused.get_submodule("backbone")):
            block._modules[convolution_name] = _fuse(*map(block.get_submodule, (convolution_name, norm_name)))
            block._modules[norm_name] = nn.Identity().eval()
        for part in _PARTS:
            for module in fused.get_submodule(part).modules():
                if isinstance(module, nn.Conv2d) and isinstance(module._parameters.get("weight"), nn.Parameter):
                    weight = module.weight.detach().contiguous(memory_format=torch.channels_last)
                    module._parameters["weight"] = nn.Parameter(weight, requires_grad=False)
    fused.decoder.return_intermediate = False
    if isinstance(fused.query_source, TwoStageQueries):
        fused.query_source.return_proposals = False
    return fused


def fused_weights(model: DETR) -> list[Tensor]:
    """Return the tensors of which `fuse_for_inference` makes copies: later changes of them need a new fused model."""
    parts = [model.get_submodule(part) for part in _PARTS]
    return [tensor for part in parts for tensor in (*part.parameters(), *part.buffers()) if tensor.is_floating_point()]


def _fuse(convolution: nn.Module, norm: nn.Module) -> nn.Conv2d:
    """Return a convolution that computes a convolution and the batch norm after it."""
    assert isinstance(convolution, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d | FrozenBatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    weight, bias = fuse_conv_bn_weights(
        convolution.weight, convolution.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
    fused = nn.Conv2d.__new__(nn.Conv2d)  # __init__ would draw random weights
    fused.__dict__.update(convolution.__dict__)
    fused.__dict__["_parameters"] = {"weight": weight, "bias": bias}
    return fused.requires_grad_(False)


def _pairs(backbone: nn.Module) -> Iterator[tuple[nn.Module, str, str]]:
    """Find convolutions and the norms that follow, by their names in torchvision's ResNets."""
    for module in list(backbone.modules()):
        names = dict(module.named_children())
        if isinstance(module, nn.Sequential) and len(names) == 2:
            candidates = [("0", "1")]  # the shortcut of a stage's first block
        else:
            candidates = [(f"conv{number}", f"bn{number}") for number in (1, 2, 3)]
        for convolution, norm in candidates:
            found = (names.get(convolution), names.get(norm))
            if type(found[0]) is nn.Conv2d and _is_affine(found[1]) and not any(map(_has_hooks, found)):
                yield module, convolution, norm


def _is_affine(norm: nn.Module | None) -> bool:
    return isinstance(norm, FrozenBatchNorm2d) or type(norm) is nn.BatchNorm2d


def _has_hooks(module: nn.Module | None) -> bool:
    return module is not None and bool(module._forward_hooks or module._forward_pre_hooks)
