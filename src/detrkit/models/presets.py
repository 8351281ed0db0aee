"""Presets: names of model configurations. Importing this module does not import torch."""

from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from detrkit.config.model import ModelConfig
from detrkit.errors import ConfigError, arg, did_you_mean
from detrkit.models.presets_foundation import FOUNDATION_PRESETS
from detrkit.models.presets_realtime import REALTIME_PRESETS
from detrkit.models.presets_refused import REFUSED_PRESETS

if TYPE_CHECKING:
    from detrkit.models.detr import DETR


def _detr(**changes: Any) -> dict[str, ModelConfig]:
    name = "detr-" + {"resnet50": "r50", "resnet101": "r101"}[changes["backbone"]]
    name += "-dc5" if changes.get("dilation") else ""
    return {
        name: ModelConfig(**changes),
        f"{name}-panoptic": ModelConfig(**changes, mask_head=True, num_classes=250),
    }


def _four_backbones(name: str, **changes: Any) -> dict[str, ModelConfig]:
    """Return presets for the four backbones that Conditional DETR and DAB-DETR were published with."""
    return {
        f"{name}-{short}{suffix}": ModelConfig(backbone=backbone, dilation=dilation, **changes)
        for short, backbone in (("r50", "resnet50"), ("r101", "resnet101"))
        for suffix, dilation in (("", False), ("-dc5", True))
    }


_CONDITIONAL: dict[str, Any] = {"decoder": "conditional", "class_scores": "sigmoid", "num_queries": 300}
_DEFORMABLE: dict[str, Any] = {
    "encoder": "deformable",
    "decoder": "deformable",
    "class_scores": "sigmoid",
    "queries": "points",
    "num_queries": 300,
    "dim_feedforward": 1024,
}
_REFINE: dict[str, Any] = {"num_feature_levels": 4, "with_box_refine": True, "layerwise_heads": True}
# fastest to learn on small datasets: benchmarks/convergence.py, docs/decisions
_DETRKIT: dict[str, Any] = {
    **_DEFORMABLE,
    **_REFINE,
    "queries": "two_stage",
    "two_stage_content": "memory",
    "align_cells": True,
    "decoder_layers": 3,
    "dropout": 0.0,
}
_TABLE_TRANSFORMER: dict[str, Any] = {"backbone": "resnet18", "pre_norm": True}

PRESETS: dict[str, ModelConfig] = {
    **_detr(backbone="resnet50"),
    **_detr(backbone="resnet50", dilation=True),
    **_detr(backbone="resnet101"),
    **_detr(backbone="resnet101", dilation=True),
    **_four_backbones("conditional-detr", **_CONDITIONAL, queries="points"),
    **_four_backbones(
        "dab-detr",
        **_CONDITIONAL,
        queries="anchors",
        with_box_refine=True,
        activation="prelu",
        position_temperature=20.0,
        scaled_positions=True,
        max_detections=300,
    ),
    "deformable-detr-r50": ModelConfig(**_DEFORMABLE, num_feature_levels=4),
    "deformable-detr-r50-single-scale": ModelConfig(**_DEFORMABLE),
    "deformable-detr-r50-single-scale-dc5": ModelConfig(**_DEFORMABLE, dilation=True),
    "deformable-detr-r50-refine": ModelConfig(**_DEFORMABLE, **_REFINE),
    "deformable-detr-r50-two-stage": ModelConfig(**{**_DEFORMABLE, **_REFINE, "queries": "two_stage"}),
    "detr-r18": ModelConfig(backbone="resnet18"),
    "table-transformer-detection": ModelConfig(**_TABLE_TRANSFORMER, num_classes=2, num_queries=15),
    "table-transformer-structure-recognition": ModelConfig(**_TABLE_TRANSFORMER, num_classes=6, num_queries=125),
    **REALTIME_PRESETS,
    **FOUNDATION_PRESETS,
    "detr-tiny": ModelConfig(
        backbone="resnet-tiny",
        backbone_normalization="batch",
        frozen_backbone_stages=0,
        dilation=True,
        num_queries=25,
        hidden_dim=128,
        encoder_layers=2,
        decoder_layers=3,
        dim_feedforward=512,
        dropout=0.0,
        pre_norm=True,
    ),
    "detrkit-s": ModelConfig(
        **{
            **_DETRKIT,
            "backbone": "resnet-tiny",
            "backbone_normalization": "batch",
            "frozen_backbone_stages": 0,
            "num_feature_levels": 2,
            "num_queries": 50,
            "hidden_dim": 128,
            "encoder_layers": 0,
            "dim_feedforward": 512,
        }
    ),
    "detrkit-m": ModelConfig(
        **{
            **_DETRKIT,
            "backbone": "resnet18",
            "num_feature_levels": 3,
            "num_queries": 100,
            "hidden_dim": 256,
            "encoder_layers": 1,
        }
    ),
}


def preset_config(name: str, **overrides: Any) -> ModelConfig:
    """Return the configuration of a preset.

    Args:
        name: of the preset.
        overrides: fields of `ModelConfig` to change.

    Raises:
        ConfigError: the preset or a field does not exist, its licence forbids it, or a value is out of range or contradicts
            another.
    """
    if name in REFUSED_PRESETS:
        raise ConfigError(f"{arg('model', name)} is not included: {REFUSED_PRESETS[name]}.")
    if name not in PRESETS:
        raise ConfigError(f"{arg('model', name)} is not a preset; {did_you_mean(name, PRESETS, 'detrkit models')}")
    for field in overrides:
        if field not in ModelConfig.model_fields:
            hint = did_you_mean(field, ModelConfig.model_fields, "detrkit config")
            raise ConfigError(f"{arg(field)} is not a setting of models; {hint}")
    try:
        return ModelConfig.model_validate({**PRESETS[name].model_dump(), **overrides})
    except ValidationError as error:
        first = error.errors()[0]
        reason = first["msg"][:1].lower() + first["msg"][1:]
        raise ConfigError(f"{arg(str(first['loc'][0]), first['input'])}: {reason}") from None


def build_model(name: str, num_classes: int | None = None, **overrides: Any) -> "DETR":
    """Build a model by the name of its preset, with random weights. Nothing is downloaded.

    Args:
        name: "detr-r50", "detr-r50-dc5", "detr-r101", "detr-r101-dc5", each also with "-panoptic"; "detr-r18",
            "detr-tiny"; "detrkit-s", "detrkit-m"; "conditional-detr-..." and "dab-detr-..." with the same four backbones;
            "deformable-detr-r50", also with "-single-scale", "-single-scale-dc5", "-refine" and "-two-stage";
            "table-transformer-detection" and "table-transformer-structure-recognition"; "rtdetr-r18" to "rtdetr-r101",
            "rtdetrv2-s" to "-x", "dfine-n" to "-x", "deim-dfine-n" to "-x", "deim-rtdetrv2-s" to "-x", "rtdetrv4-s" to
            "-x", "deimv2-atto", "-femto", "-pico" and "-n", "lwdetr-tiny" to "-xlarge", "rfdetr-nano" to "-large",
            "rfdetr-seg-nano" to "-2xlarge", and others that `detrkit.list_models` lists.
        num_classes: number of classes K, without "no object". Default: the preset's (91, or 250 for panoptic, 2 and 6 for
            Table Transformer, 80 for RT-DETR and its descendants).
        overrides: fields of `ModelConfig` to change.

    Returns:
        The model, in train mode; `model.config` is its `ModelConfig`.

    Raises:
        ConfigError: the preset or a field does not exist, or a value is out of range or contradicts another.
    """
    from detrkit.models.build import model_from_config

    if num_classes is not None:
        overrides["num_classes"] = num_classes
    return model_from_config(preset_config(name, **overrides))
