"""Published DETR architectures: how a `ModelConfig` and a state dict show which one a model has.

A new architecture is one entry in `ARCHITECTURES`, and one conversion module and one line in `registry` per format.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from detrkit.checkpoints.conversion.foundation_fields import FOUNDATION_FIELDS, foundation_fields
from detrkit.checkpoints.conversion.realtime_fields import (
    REALTIME_FIELDS,
    deimv2_fields,
    published_backbone_fields,
    realtime_fields,
)
from detrkit.config.model import ModelConfig

Architecture = Literal[
    "detr",
    "conditional-detr",
    "dab-detr",
    "deformable-detr",
    "rtdetr",
    "rtdetrv2",
    "dfine",
    "deimv2",
    "lwdetr",
    "rfdetr",
]
WITH_MASKS: Collection[Architecture] = ("detr", "rfdetr")  # published with a mask head


def _query_fields(state: Mapping[str, Tensor], num_heads: int) -> dict[str, Any]:
    return {"num_queries": state["query_source.weight"].shape[0]}


def _dab_fields(state: Mapping[str, Tensor], num_heads: int) -> dict[str, Any]:
    return {
        **_query_fields(state, num_heads),
        "activation": "prelu" if "decoder.layers.0.feed_forward.activation.weight" in state else "relu",
        "scaled_positions": "encoder.position_scale.0.weight" in state,
    }


def _deformable_fields(state: Mapping[str, Tensor], num_heads: int) -> dict[str, Any]:
    levels = state["neck.positions.levels"].shape[0]
    offsets = state["decoder.layers.0.cross_attention.offset_projection.weight"].shape[0]
    is_per_layer = "heads.class_head.0.weight" in state
    is_two_stage = "query_source.memory_projection.weight" in state
    return {
        "num_feature_levels": levels,
        "num_points": offsets // (2 * num_heads * levels),
        "queries": "two_stage" if is_two_stage else "points",
        "num_queries": 300 if is_two_stage else state["query_source.weight"].shape[0],
        "with_box_refine": is_per_layer,
        "layerwise_heads": is_per_layer,
    }


def _is_rtdetr(config: ModelConfig) -> bool:
    return config.backbone.endswith("-vd") and config.has_memory_projection and config.activation in ("relu", "silu")


def _is_deimv2(config: ModelConfig) -> bool:
    # the authors' code, or that of transformers, which projects the memory and encodes the boxes of every layer
    has_published_queries = config.selection_projection == config.layerwise_query_positions
    is_lite = config.fusion_block == "lite" and not config.encoder_layers
    has_published_encoder = is_lite or config.fusion_block == "rep_ncsp_elan_sum"
    is_hgnet = config.backbone.startswith("hgnetv2-") and config.activation in ("relu", "silu")
    return has_published_queries and has_published_encoder and is_hgnet


@dataclass(frozen=True)
class ArchitectureTraits:
    """Properties by which an architecture is recognised.

    Attributes:
        fields: fields of `ModelConfig` that the weights do not show, with their published values.
        marker: part of a name that only entries of this architecture have; empty for the original DETR.
        fields_from_weights: reads further fields from a state dict in detrkit's names and the number of heads.
        variable: fields whose values may differ from the published ones.
        is_published: whether the variable fields of a config have a published combination of values.
        fields_from_backbone: fields that follow the published training of a backbone.
        lacks: entry that others with the same marker have.
    """

    fields: Mapping[str, Any]
    marker: str
    fields_from_weights: Callable[[Mapping[str, Tensor], int], dict[str, Any]] = _query_fields
    variable: frozenset[str] = frozenset({"max_detections"})
    is_published: Callable[[ModelConfig], bool] = lambda config: True
    fields_from_backbone: Callable[[str], dict[str, Any]] = lambda backbone: {}
    lacks: str | None = None

    def has(self, names: Collection[str]) -> bool:
        """Return whether entries with these names are of this architecture."""
        return self.lacks not in names and (not self.marker or any(self.marker in name for name in names))


# DEIM and RT-DETRv4 are D-FINE with another activation; DEIM's RT-DETRv2 also encodes positions by another MLP
_REALTIME_VARIABLE = frozenset({"max_detections", "num_feature_levels", "activation"})
_DEIMV2_VARIABLE = frozenset(
    {"cross_attention_gate", "shared_box_head", "selection_projection", "layerwise_query_positions"}
)
_FOUNDATION_VARIABLE = frozenset({"max_detections", "num_feature_levels"})
ARCHITECTURES: dict[Architecture, ArchitectureTraits] = {
    "rfdetr": ArchitectureTraits(
        FOUNDATION_FIELDS,
        "backbone.mask_token",
        foundation_fields,
        _FOUNDATION_VARIABLE,
        lambda config: config.backbone.startswith("dinov2-"),
    ),
    "lwdetr": ArchitectureTraits(
        FOUNDATION_FIELDS,
        "backbone.class_position",
        foundation_fields,
        _FOUNDATION_VARIABLE,
        lambda config: config.backbone.startswith("vit-"),
    ),
    "deimv2": ArchitectureTraits(
        {**REALTIME_FIELDS, "decoder": "fine_grained", "decoder_norm": "rms", "decoder_feed_forward": "swiglu"},
        "heads.initial_box_head.",
        deimv2_fields,
        _REALTIME_VARIABLE | _DEIMV2_VARIABLE,
        _is_deimv2,
        published_backbone_fields,
        lacks="decoder.layers.0.feed_forward_residual.norm.bias",  # RMS norms have none
    ),
    "dfine": ArchitectureTraits(
        {**REALTIME_FIELDS, "decoder": "fine_grained", "fusion_block": "rep_ncsp_elan"},
        "heads.initial_box_head.",
        realtime_fields,
        _REALTIME_VARIABLE,
        lambda config: config.activation in ("relu", "silu") and config.backbone.startswith("hgnetv2-"),
        published_backbone_fields,
    ),
    # the second version is the same but for the number of sampling points, which may differ between maps
    "rtdetrv2": ArchitectureTraits(
        REALTIME_FIELDS,
        "query_source.denoising_labels.",
        realtime_fields,
        _REALTIME_VARIABLE | {"sampling"},
        lambda config: _is_rtdetr(config) and config.points_per_level is not None,
        published_backbone_fields,
    ),
    "rtdetr": ArchitectureTraits(
        REALTIME_FIELDS,
        "query_source.denoising_labels.",
        realtime_fields,
        _REALTIME_VARIABLE,
        lambda config: _is_rtdetr(config) and config.activation == "relu" and config.query_position_layers == 2,
        published_backbone_fields,
    ),
    "deformable-detr": ArchitectureTraits(
        {"encoder": "deformable", "decoder": "deformable", "class_scores": "sigmoid"},
        ".offset_projection.",
        _deformable_fields,
        frozenset({"max_detections", "queries", "num_feature_levels", "with_box_refine", "layerwise_heads"}),
        lambda config: config.queries in ("points", "two_stage") and config.layerwise_heads == config.with_box_refine,
    ),
    "dab-detr": ArchitectureTraits(
        {
            "decoder": "conditional",
            "class_scores": "sigmoid",
            "queries": "anchors",
            "with_box_refine": True,
            "position_temperature": 20.0,
            "max_detections": 300,
        },
        "decoder.query_position_encoding.position_head.",
        _dab_fields,
        frozenset({"max_detections", "activation", "scaled_positions"}),
        lambda config: config.scaled_positions,
    ),
    "conditional-detr": ArchitectureTraits(
        {"decoder": "conditional", "class_scores": "sigmoid", "queries": "points"}, ".cross_projections."
    ),
    "detr": ArchitectureTraits({}, ""),
}
# values of the original DETR, from which every architecture differs in its `fields`
_DETR_FIELDS: dict[str, Any] = {
    "encoder": "dense",
    "decoder": "dense",
    "class_scores": "softmax",
    "queries": "learned",
    "two_stage_content": "box",
    "num_feature_levels": 1,
    "align_cells": False,
    "with_box_refine": False,
    "layerwise_heads": False,
    "activation": "relu",
    "position_temperature": 10_000.0,
    "scaled_positions": False,
    "sampling": "bilinear",
    "decoder_norm": "layer",
    "decoder_feed_forward": "mlp",
    "cross_attention_gate": True,
    "shared_box_head": False,
    "selection_projection": True,
    "layerwise_query_positions": True,
}


def architecture_of_config(config: ModelConfig) -> Architecture | None:
    """Return the published architecture that a config describes, or None for a combination that was not published."""
    for architecture, traits in ARCHITECTURES.items():
        expected = {**_DETR_FIELDS, **traits.fields}
        is_equal = all(
            getattr(config, name) == value for name, value in expected.items() if name not in traits.variable
        )
        if is_equal and traits.is_published(config):
            return architecture
    return None


def architecture_of_names(names: Collection[str]) -> Architecture:
    """Return the published architecture whose parts entries in detrkit's names have."""
    return next(architecture for architecture, traits in ARCHITECTURES.items() if traits.has(names))


def architecture_of_model(names: Collection[str], config: ModelConfig) -> Architecture:
    """Return the published architecture of a model's parts; the config distinguishes versions with the same parts."""
    architecture = architecture_of_names(names)
    return "rtdetr" if architecture == "rtdetrv2" and config.points_per_level is None else architecture
