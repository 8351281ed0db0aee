"""The shape of a model, read off its weights.

What weights do not show is assumed to be as published, unless the caller knows better: the number of heads, dropout,
and dilation (a DC5 model has the very tensors of its undilated twin).
"""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from detrkit.checkpoints.conversion.architecture import KNOWN, Family, family_of_state
from detrkit.config.model import BackboneName, ModelConfig
from detrkit.errors import CheckpointError

_BACKBONE_OF_BLOCKS: dict[tuple[int, ...], dict[bool, BackboneName]] = {
    (2, 2, 2, 2): {False: "resnet18"},
    (3, 4, 6, 3): {False: "resnet34", True: "resnet50"},
    (3, 4, 23, 3): {True: "resnet101"},
    (1, 1, 1): {False: "resnet-tiny"},
}


def infer_config(state: Mapping[str, Tensor], **known: Any) -> ModelConfig:
    """Read the configuration off a state dict in our names.

    Args:
        state: the weights.
        known: fields of `ModelConfig` that are known from elsewhere.

    Raises:
        CheckpointError: the weights are not a DETR's.
    """
    family = family_of_state(state)
    try:
        class_rows, width = _class_head(state).shape
        dim_feedforward = state["decoder.layers.0.feed_forward.expand.weight"].shape[0]
        in_channels = state["backbone.body.conv1.weight"].shape[1]
        shown = {**KNOWN[family], **_of_family(state, family, known.get("num_heads", 8))}
    except KeyError as error:
        raise CheckpointError(
            f"checkpoint: found no entry {error}, which every DETR has; is it another model's?"
        ) from None
    table = state.get("positions.rows.weight")
    inferred: dict[str, Any] = {
        **shown,
        "num_classes": class_rows - (family == "detr"),  # one row is no-object's
        "hidden_dim": width,
        "dim_feedforward": dim_feedforward,
        "encoder_layers": _count(state, "encoder.layers"),
        "decoder_layers": _count(state, "decoder.layers"),
        "pre_norm": "encoder.norm.weight" in state,
        "mask_head": "mask_head.output.weight" in state,
        "position_embedding": "sine" if table is None else "learned",
        "max_position_embeddings": 50 if table is None else table.shape[0],
        "backbone": _backbone(state),
        "in_channels": in_channels,
    }
    try:
        return ModelConfig.model_validate({**inferred, **known})
    except ValueError as error:
        raise CheckpointError(f"checkpoint: its shape is not one that DETR can have ({error})") from None


def _class_head(state: Mapping[str, Tensor]) -> Tensor:
    name = "heads.class_head.0.weight"
    return state[name if name in state else "heads.class_head.weight"]


def _of_family(state: Mapping[str, Tensor], family: Family, num_heads: int) -> dict[str, Any]:
    """Fields that the weights of one architecture show."""
    if family == "deformable":
        levels = state["positions.levels"].shape[0]
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
    shown: dict[str, Any] = {"num_queries": state["query_source.weight"].shape[0]}
    if family == "dab":
        shown["activation"] = "prelu" if "decoder.layers.0.feed_forward.activation.weight" in state else "relu"
        shown["scaled_positions"] = "encoder.position_scale.0.weight" in state
    return shown


def _count(state: Mapping[str, Tensor], layers: str) -> int:
    pattern = re.compile(re.escape(layers) + r"\.(\d+)\.")
    return len({match[1] for name in state if (match := pattern.match(name))})


def _backbone(state: Mapping[str, Tensor]) -> BackboneName:
    stages = sum(f"backbone.body.layer{stage}.0.conv1.weight" in state for stage in range(1, 5))
    blocks = tuple(_count(state, f"backbone.body.layer{stage}") for stage in range(1, stages + 1))
    is_bottleneck = "backbone.body.layer1.0.conv3.weight" in state
    name = _BACKBONE_OF_BLOCKS.get(blocks, {}).get(is_bottleneck)
    if name is None:
        raise CheckpointError(
            f"checkpoint: its backbone has {blocks} blocks per stage, expected those of ResNet-18, 34, 50 or 101"
        )
    return name
