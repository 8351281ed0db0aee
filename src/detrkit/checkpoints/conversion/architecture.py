"""Which of the published architectures a model is: that decides how its weights are named elsewhere."""

from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor

from detrkit.config.model import ModelConfig

Family = Literal["detr", "conditional", "dab", "deformable"]

# what the weights of each family do not show, or show by its kind alone
KNOWN: dict[Family, dict[str, Any]] = {
    "detr": {},
    "conditional": {"decoder": "conditional", "class_scores": "sigmoid", "queries": "points"},
    "dab": {
        "decoder": "conditional",
        "class_scores": "sigmoid",
        "queries": "anchors",
        "with_box_refine": True,
        "position_temperature": 20.0,
        "max_detections": 300,
    },
    "deformable": {"encoder": "deformable", "decoder": "deformable", "class_scores": "sigmoid"},
}


def family_of(config: ModelConfig) -> Family | None:
    """The architecture of a model; None when it is a mixture that nobody else has."""
    for family, known in KNOWN.items():
        expected = {**_PLAIN, **known}
        found = {name: getattr(config, name) for name in expected}
        if family == "deformable":
            expected |= {
                "queries": "two_stage" if config.queries == "two_stage" else "points",
                "num_feature_levels": config.num_feature_levels,
                "with_box_refine": config.with_box_refine,
                "layerwise_heads": config.with_box_refine,
            }
        if family == "dab":
            expected |= {"activation": config.activation, "scaled_positions": True}
        expected["max_detections"] = config.max_detections
        if found == {name: expected[name] for name in found}:
            return family
    return None


_PLAIN: dict[str, Any] = {
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
    "max_detections": 100,
}


def family_of_state(state: Mapping[str, Tensor]) -> Family:
    """The architecture that weights under our names are of, as far as they are of a published one."""
    if any(".offset_projection." in name for name in state):
        return "deformable"
    if any(name.startswith("decoder.query_position_encoding.position_head.") for name in state):
        return "dab"
    return "conditional" if any(".cross_projections." in name for name in state) else "detr"
