"""Fuse a model for inference: batch norms multiplied into convolutions, and only what a prediction needs."""

import copy
from collections.abc import Iterator
from typing import cast

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.ops import FrozenBatchNorm2d

from detrkit.models.detr import DETR
from detrkit.models.queries.two_stage import TwoStageQueries


def fuse_for_inference(model: DETR) -> DETR:
    """Return a faster copy of a model for inference, equal up to rounding.

    Frozen and ordinary batch norms of a ResNet are fused into the convolutions before them, the convolutions use the
    channels-last memory format, and only the last decoder layer is returned, without the encoder's proposals. (A backbone
    of timm is copied without fusing its norms.)

    Args:
        model: not changed. The copy shares the weights of everything but the backbone and the neck's projection.
    """
    names = (
        "neck.positions",
        "encoder",
        "decoder",
        "query_source",
        "heads",
        *(["mask_head"] if model.mask_head else []),
    )
    shared = [model.get_submodule(name) for name in names]
    fused = copy.deepcopy(model, memo={id(part): part for part in shared}).eval()
    for block, convolution_name, norm_name in _pairs(fused.get_submodule("backbone")):
        convolution, norm = block.get_submodule(convolution_name), block.get_submodule(norm_name)
        assert isinstance(convolution, nn.Conv2d)
        block._modules[convolution_name] = fuse_conv_bn_eval(convolution, cast(nn.BatchNorm2d, norm))
        block._modules[norm_name] = nn.Identity()
    for name in ("backbone", "neck.projection"):
        fused.get_submodule(name).to(memory_format=torch.channels_last)
    fused.decoder = copy.copy(model.decoder)
    fused.decoder.return_intermediate = False
    if isinstance(model.query_source, TwoStageQueries):
        fused.query_source = copy.copy(model.query_source)
        fused.query_source.return_proposals = False
    return fused


def _pairs(backbone: nn.Module) -> Iterator[tuple[nn.Module, str, str]]:
    """Find convolutions and the norms that follow, by their names in torchvision's ResNets."""
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
