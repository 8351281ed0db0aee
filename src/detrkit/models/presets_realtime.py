"""Presets of RT-DETR, RT-DETRv2, D-FINE, DEIM, RT-DETRv4 and DEIMv2. Importing this module does not import torch."""

from collections.abc import Mapping
from typing import Any

from detrkit.config.model import ModelConfig

_REALTIME: dict[str, Any] = {
    "num_classes": 80,  # contiguous labels of COCO
    "num_queries": 300,
    "max_detections": 300,
    "backbone_normalization": "batch",
    "frozen_backbone_stages": 0,
    "num_feature_levels": 3,
    "encoder": "hybrid",
    "encoder_layers": 1,
    "queries": "selected",
    "decoder": "deformable",
    "with_box_refine": True,
    "layerwise_heads": True,
    "class_scores": "sigmoid",
    "dim_feedforward": 1024,
    "dropout": 0.0,
}
_FROZEN: dict[str, Any] = {"backbone_normalization": "frozen", "frozen_backbone_stages": 1}
_WIDE_ENCODER: dict[str, Any] = {"encoder_dim": 384, "encoder_dim_feedforward": 2048}
_RTDETR: dict[str, dict[str, Any]] = {
    "r18": {"backbone": "resnet18-vd", "decoder_layers": 3, "fusion_expansion": 0.5},
    "r34": {"backbone": "resnet34-vd", "decoder_layers": 4, "fusion_expansion": 0.5},
    "r50-m": {"backbone": "resnet50-vd", **_FROZEN, "fusion_expansion": 0.5, "eval_decoder_layers": 3},
    "r50": {"backbone": "resnet50-vd", **_FROZEN},
    "r101": {"backbone": "resnet101-vd", **_FROZEN, **_WIDE_ENCODER},
}
_V2_NAMES = {"s": "r18", "ms": "r34", "m": "r50-m", "l": "r50", "x": "r101"}
_DFINE: dict[str, dict[str, Any]] = {
    "n": {
        "backbone": "hgnetv2-b0",
        "num_feature_levels": 2,
        "points_per_level": (6, 6),
        "hidden_dim": 128,
        "dim_feedforward": 512,
        "fusion_depth": 2,
        "fusion_expansion": 0.34,
        "decoder_layers": 3,
    },
    "s": {"backbone": "hgnetv2-b0", "fusion_depth": 1, "fusion_expansion": 0.5, "decoder_layers": 3},
    "m": {"backbone": "hgnetv2-b2", "fusion_depth": 2, "decoder_layers": 4},
    "l": {"backbone": "hgnetv2-b4", **_FROZEN},
    "x": {"backbone": "hgnetv2-b5", **_FROZEN, **_WIDE_ENCODER, "reg_scale": 8.0},
}
_DEIMV2: dict[str, Any] = {
    "num_feature_levels": 2,
    "decoder": "fine_grained",
    "decoder_layers": 3,
    "decoder_norm": "rms",
    "decoder_feed_forward": "swiglu",
    "activation": "silu",
    "layerwise_query_positions": False,
    "query_position_layers": 3,
    "selection_projection": False,
    "fusion_depth": 2,
    "fusion_expansion": 0.34,
}
_DEIMV2_LITE: dict[str, Any] = {
    "encoder_layers": 0,
    "fusion_block": "lite",
    "points_per_level": (4, 2),
    "cross_attention_gate": False,
    "shared_box_head": True,
}
# backbone, width, channels of the feed-forward networks, queries
_DEIMV2_SIZES = {
    "atto": ("hgnetv2-atto", 64, 160, 100),
    "femto": ("hgnetv2-femto", 96, 256, 150),
    "pico": ("hgnetv2-pico", 112, 320, 200),
    "n": ("hgnetv2-b0", 128, 512, 300),
}
_OBJECTS365_CLASSES = 366  # labels 1 to 365; the first row is unused


def _rtdetr(size: str, **changes: Any) -> ModelConfig:
    return ModelConfig(**{**_REALTIME, "memory_projection": True, **_RTDETR[size], **changes})


def _rtdetrv2(size: str, points: int = 4, **changes: Any) -> ModelConfig:
    return _rtdetr(_V2_NAMES[size], points_per_level=(points,) * 3, **changes)


def _deim_rtdetrv2(size: str) -> ModelConfig:
    # DEIM trains the whole backbone
    changes: dict[str, Any] = {"backbone_normalization": "batch", "frozen_backbone_stages": 0}
    if size == "m":
        changes |= {"decoder_layers": 3, "eval_decoder_layers": None}
    return _rtdetrv2(size, activation="silu", query_position_layers=3, **changes)


def _dfine(size: str, **changes: Any) -> ModelConfig:
    own = {"decoder": "fine_grained", "fusion_block": "rep_ncsp_elan", "points_per_level": (3, 6, 3), **_DFINE[size]}
    return ModelConfig(**{**_REALTIME, **own, **changes})


def _deim(size: str, **changes: Any) -> ModelConfig:
    return _dfine(size, activation="silu", backbone_normalization="batch", frozen_backbone_stages=0, **changes)


def _deimv2(size: str) -> ModelConfig:
    backbone, width, feed_forward, queries = _DEIMV2_SIZES[size]
    sizes = {"backbone": backbone, "hidden_dim": width, "dim_feedforward": feed_forward, "num_queries": queries}
    own = {"fusion_block": "rep_ncsp_elan_sum", "points_per_level": (6, 6)} if size == "n" else _DEIMV2_LITE
    return ModelConfig(**{**_REALTIME, **_DEIMV2, **own, **sizes})


REALTIME_PRESETS: Mapping[str, ModelConfig] = {
    **{f"rtdetr-{size}": _rtdetr(size) for size in ("r18", "r34", "r50-m", "r50", "r101")},
    **{f"rtdetr-{size}-obj2coco": _rtdetr(size) for size in ("r18", "r50", "r101")},
    **{f"rtdetrv2-{size}": _rtdetrv2(size) for size in _V2_NAMES},
    **{f"rtdetrv2-{size}-dsp": _rtdetrv2(size, sampling="discrete") for size in ("s", "ms", "m", "l")},
    **{f"rtdetrv2-s-sp{points}": _rtdetrv2("s", points) for points in (1, 2, 3)},
    **{f"dfine-{size}": _dfine(size) for size in _DFINE},
    **{f"dfine-{size}-obj365": _dfine(size, num_classes=_OBJECTS365_CLASSES) for size in ("s", "m", "l", "x")},
    **{f"dfine-{size}-obj2coco": _dfine(size) for size in ("s", "m", "l", "x")},
    **{f"deim-dfine-{size}": _deim(size) for size in _DFINE},
    "deim-dfine-x-obj2coco": _deim("x"),
    **{f"deim-rtdetrv2-{size}": _deim_rtdetrv2(size) for size in _V2_NAMES},
    # the teacher's features that a projection is trained to predict are those of DINOv3 ViT-B
    **{f"rtdetrv4-{size}": _deim(size, distillation_dim=768) for size in ("s", "m", "l", "x")},
    **{f"deimv2-{size}": _deimv2(size) for size in _DEIMV2_SIZES},
}
