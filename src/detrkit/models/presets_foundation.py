"""Presets of LW-DETR, RF-DETR and its instance segmentation: a plain ViT. Importing this module does not import torch."""

from collections.abc import Mapping
from typing import Any

from detrkit.config.model import ModelConfig

_COMMON: dict[str, Any] = {
    "num_classes": 91,  # category ids of COCO; label 0 is unused
    "num_queries": 300,
    "max_detections": 300,
    "frozen_backbone_stages": 0,
    "encoder_layers": 0,
    "queries": "mixed",
    "group_detr": 13,
    "decoder": "deformable",
    "decoder_layers": 3,
    "cross_attention_heads": 16,
    "num_points": 2,
    "class_scores": "sigmoid",
    "dropout": 0.0,
}
# two feature maps, of half and twice the ViT's stride, and a wider transformer
_WIDE: dict[str, Any] = {
    "num_feature_levels": 2,
    "hidden_dim": 384,
    "num_heads": 12,
    "cross_attention_heads": 24,
    "num_points": 4,
}
_LWDETR_LAYERS: dict[int, dict[str, Any]] = {
    6: {"backbone_layers": 6, "global_layers": (1, 3, 5), "out_layers": (2, 4, 6)},
    10: {"backbone_layers": 10, "global_layers": (2, 4, 5, 8), "out_layers": (3, 5, 6, 10)},
}
_LWDETR: dict[str, dict[str, Any]] = {
    "tiny": {"backbone": "vit-tiny", **_LWDETR_LAYERS[6], "num_queries": 100, "max_detections": 100},
    "small": {"backbone": "vit-tiny", **_LWDETR_LAYERS[10]},
    "medium": {"backbone": "vit-small", **_LWDETR_LAYERS[10]},
    "large": {"backbone": "vit-small", **_LWDETR_LAYERS[10], **_WIDE, "drop_path": 0.1},
    "xlarge": {"backbone": "vit-base", **_LWDETR_LAYERS[10], **_WIDE, "drop_path": 0.1},
}
# searched by the authors, and the first release
_RFDETR_LAYERS: dict[str, Any] = {"global_layers": (3, 6, 9), "out_layers": (3, 6, 9, 12), "num_windows": 2}
_RFDETR_BASE: dict[str, Any] = {
    "patch_size": 14,
    "num_windows": 4,
    "global_layers": (2, 5, 8, 11),
    "out_layers": (2, 5, 8, 11),
    "position_grid": 37,
}
_RFDETR: dict[str, dict[str, Any]] = {
    "nano": {**_RFDETR_LAYERS, "position_grid": 24, "decoder_layers": 2},
    "small": {**_RFDETR_LAYERS, "position_grid": 32},
    "medium": {**_RFDETR_LAYERS, "position_grid": 36, "decoder_layers": 4},
    "base": _RFDETR_BASE,
    "large": {**_RFDETR_LAYERS, "position_grid": 44, "decoder_layers": 4},
    "large-deprecated": {**_RFDETR_BASE, **_WIDE, "backbone": "dinov2-base"},
}
# instance segmentation: side of the position table, decoder layers, queries
_RFDETR_SEG: dict[str, tuple[int, int, int]] = {
    "nano": (26, 4, 100),
    "small": (32, 4, 100),
    "medium": (36, 5, 200),
    "large": (42, 5, 200),
    "xlarge": (52, 6, 300),
    "2xlarge": (64, 6, 300),
    "preview": (36, 4, 200),
}
_OBJECTS365_CLASSES = 366  # labels 1 to 365; the first row is unused


def _lwdetr(size: str, **changes: Any) -> ModelConfig:
    return ModelConfig(**{**_COMMON, "num_windows": 4, **_LWDETR[size], **changes})


def _rfdetr(size: str) -> ModelConfig:
    return ModelConfig(**{**_COMMON, "backbone": "dinov2-small", "projector_norm": "layer", **_RFDETR[size]})


def _rfdetr_seg(size: str) -> ModelConfig:
    grid, layers, queries = _RFDETR_SEG[size]
    changes = {
        **_RFDETR_LAYERS,
        "mask_head": True,
        "patch_size": 12,
        "num_windows": 1 if size == "nano" else 2,
        "position_grid": grid,
        "decoder_layers": layers,
        "num_queries": queries,
        "max_detections": queries,
    }
    return ModelConfig(**{**_COMMON, "backbone": "dinov2-small", "projector_norm": "layer", **changes})


FOUNDATION_PRESETS: Mapping[str, ModelConfig] = {
    **{f"lwdetr-{size}": _lwdetr(size) for size in _LWDETR},
    **{f"lwdetr-{size}-obj365": _lwdetr(size, num_classes=_OBJECTS365_CLASSES) for size in _LWDETR},
    **{f"rfdetr-{size}": _rfdetr(size) for size in _RFDETR},
    **{f"rfdetr-seg-{size}": _rfdetr_seg(size) for size in _RFDETR_SEG},
}
