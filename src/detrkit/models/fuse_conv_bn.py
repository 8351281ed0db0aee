"""A model as it predicts quickest: norms that do nothing but scale and shift are multiplied into the filters before them.

Input: a DETR in eval mode. Output: another one, with the same answers up to rounding, for predicting alone.
"""

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from detrkit.models.detr import DETR


def fuse_conv_bn(model: DETR) -> DETR:
    """Copy a model, with the norms of its ResNet folded away; the transformer is the very same one.

    Args:
        model: left as it is. A backbone of timm's is copied unfolded.
    """
    kept = (model.positions, model.encoder, model.decoder, model.query_source, model.heads, model.mask_head)
    shared = {id(part): part for part in kept}
    copied = copy.deepcopy(model, memo=dict(shared)).eval()
    for block, convolution_name, norm_name in _pairs(copied.backbone):
        convolution, norm = block.get_submodule(convolution_name), block.get_submodule(norm_name)
        assert isinstance(convolution, nn.Conv2d)
        _replace(block, convolution_name, _with_norm(convolution, norm))
        _replace(block, norm_name, nn.Identity())
    copied.backbone.to(memory_format=torch.channels_last)
    copied.input_projection.to(memory_format=torch.channels_last)
    return copied


def _pairs(backbone: nn.Module) -> Iterator[tuple[nn.Module, str, str]]:
    """Find convolutions with their norms, by the names that torchvision's ResNets give them."""
    for module in list(backbone.modules()):
        names = dict(module.named_children())
        if isinstance(module, nn.Sequential) and len(names) == 2:
            candidates = [("0", "1")]  # the shortcut of a stage's first block
        else:
            candidates = [(f"conv{number}", f"bn{number}") for number in (1, 2, 3)]
        for convolution, norm in candidates:
            if isinstance(names.get(convolution), nn.Conv2d) and _is_affine(names.get(norm)):
                yield module, convolution, norm


def _is_affine(norm: nn.Module | None) -> bool:
    return isinstance(norm, FrozenBatchNorm2d) or type(norm) is nn.BatchNorm2d


@torch.no_grad()
def _with_norm(convolution: nn.Conv2d, norm: nn.Module) -> nn.Conv2d:
    assert isinstance(norm, FrozenBatchNorm2d | nn.BatchNorm2d)
    assert isinstance(norm.running_var, Tensor)
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    both = copy.copy(convolution)
    both._parameters = dict(convolution._parameters)
    both.weight = nn.Parameter(convolution.weight * scale[:, None, None, None], requires_grad=False)
    both.bias = nn.Parameter(norm.bias - norm.running_mean * scale, requires_grad=False)  # type: ignore[operator]
    return both


def _replace(parent: nn.Module, name: str, module: nn.Module) -> None:
    parent._modules[name] = module
