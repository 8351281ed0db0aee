"""Backbones and hybrid encoders of published RT-DETR, D-FINE and DEIMv2, with a small decoder of another kind."""

from typing import Any

import torch
from torch import Tensor

from detrkit.config.model import ModelConfig
from detrkit.models.build import model_from_config
from detrkit.models.detr import DETR
from detrkit.models.feature_maps import FeatureMaps

_HYBRID: dict[str, Any] = {
    "encoder": "hybrid",
    "encoder_layers": 1,
    "dim_feedforward": 1024,
    "num_feature_levels": 3,
    "dropout": 0.0,
    "frozen_backbone_stages": 0,
    "backbone_normalization": "batch",
    "decoder": "deformable",
    "decoder_layers": 1,
    "queries": "two_stage",
    "with_box_refine": True,
    "layerwise_heads": True,
    "class_scores": "sigmoid",
    "num_queries": 5,
}
_FROZEN: dict[str, Any] = {"frozen_backbone_stages": 1, "backbone_normalization": "frozen"}
_RTDETR: dict[str, Any] = {**_HYBRID, "memory_projection": True}
_DFINE: dict[str, Any] = {**_HYBRID, "fusion_block": "rep_ncsp_elan"}
_DEIMV2: dict[str, Any] = {**_HYBRID, "num_feature_levels": 2, "fusion_depth": 2, "fusion_expansion": 0.34}
_R18 = {**_RTDETR, "backbone": "resnet18-vd", "fusion_expansion": 0.5}
_S = {**_DFINE, "backbone": "hgnetv2-b0", "fusion_expansion": 0.5, "fusion_depth": 1}
# by the names of the golden files
PARTS: dict[str, dict[str, Any]] = {
    "rtdetr_r18vd": _R18,
    "rtdetrv2_r18vd": _R18,
    "rtdetrv2_r18vd_dsp": _R18,
    "deim_rtdetrv2_r18vd": _R18,
    "rtdetr_r34vd": {**_R18, "backbone": "resnet34-vd"},
    "rtdetr_r50vd_m": {**_RTDETR, **_FROZEN, "backbone": "resnet50-vd", "fusion_expansion": 0.5},
    "rtdetr_r50vd": {**_RTDETR, **_FROZEN, "backbone": "resnet50-vd"},
    "rtdetr_r101vd": {
        **_RTDETR,
        **_FROZEN,
        "backbone": "resnet101-vd",
        "encoder_dim": 384,
        "encoder_dim_feedforward": 2048,
    },
    "dfine_n": {
        **_DFINE,
        "backbone": "hgnetv2-b0",
        "num_feature_levels": 2,
        "hidden_dim": 128,
        "dim_feedforward": 512,
        "fusion_expansion": 0.34,
        "fusion_depth": 2,
    },
    "dfine_s": _S,
    "deim_dfine_s": _S,
    "rtdetrv4_s": {**_S, "distillation_dim": 768},
    "dfine_m": {**_DFINE, "backbone": "hgnetv2-b2", "fusion_depth": 2},
    "dfine_l": {**_DFINE, **_FROZEN, "backbone": "hgnetv2-b4"},
    "deimv2_n": {
        **_DEIMV2,
        "fusion_block": "rep_ncsp_elan_sum",
        "backbone": "hgnetv2-b0",
        "hidden_dim": 128,
        "dim_feedforward": 512,
    },
    **{
        f"deimv2_{size}": {
            **_DEIMV2,
            "fusion_block": "lite",
            "encoder_layers": 0,
            "backbone": f"hgnetv2-{size}",
            "hidden_dim": width,
        }
        for size, width in (("atto", 64), ("femto", 96), ("pico", 112))
    },
    "dfine_x": {
        **_DFINE,
        **_FROZEN,
        "backbone": "hgnetv2-b5",
        "encoder_dim": 384,
        "encoder_dim_feedforward": 2048,
    },
}


def hybrid_model(name: str, **changes: Any) -> DETR:
    """Build a model with the backbone and the encoder of a published one; its norms change their input."""
    torch.manual_seed(0)
    model = model_from_config(ModelConfig(num_classes=3, **{**PARTS[name], **changes}))
    with torch.no_grad():
        for part, tensor in model.state_dict().items():
            if part.endswith("running_var"):
                tensor.uniform_(0.5, 1.5)
            elif tensor.ndim == 1 and tensor.is_floating_point() and part.startswith(("backbone", "neck", "encoder")):
                tensor.add_(0.1 * torch.randn_like(tensor))
    return model


def run_parts(model: DETR, images: Tensor, padding_mask: Tensor | None = None) -> tuple[list[Tensor], FeatureMaps]:
    """Return the feature maps of the backbone that the encoder uses, and the output of the encoder."""
    maps = model.backbone(images, padding_mask)
    features = model.neck(maps, (images.shape[-2], images.shape[-1]), padding_mask)
    return maps[-model.config.num_backbone_levels :], model.encoder(features)


def maps_of(memory: FeatureMaps) -> list[Tensor]:
    """Return all maps of the encoder's output."""
    return [memory.map_of(level) for level in range(len(memory.sizes))]
