"""Deformable DETR in the official format (fundamentalvision/Deformable-DETR); other entries are named as in DETR."""

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from detrkit.checkpoints.conversion import detr_official
from detrkit.checkpoints.conversion.detr_official import DECODER, DECODER_LAYER, ENCODER_LAYER
from detrkit.checkpoints.conversion.key_mapping import Rule, mlp_rules
from detrkit.checkpoints.conversion.layer_heads import (
    PROPOSALS,
    merge_layer_heads,
    num_decoder_layers,
    repeat_layer_heads,
)
from detrkit.config.model import ModelConfig

ATTENTION_PROJECTIONS = {
    "offset_projection.": "sampling_offsets.",
    "weight_projection.": "attention_weights.",
    "value_projection.": "value_proj.",
    "output_projection.": "output_proj.",
}
HEAD_RULES: list[Rule] = [
    ("heads.class_head.{n}.", "class_embed.{n}."),
    *mlp_rules("heads.box_head.{n}.", "bbox_embed.{n}.", num_layers=3),
    ("query_source.class_head.", f"{PROPOSALS}class_embed."),
    *mlp_rules("query_source.box_head.", f"{PROPOSALS}bbox_embed.", num_layers=3),
]
_RULES: list[Rule] = [
    *(
        (detrkit + projection, other + name)
        for detrkit, other in (
            ("encoder.layers.{n}.self_attention.", f"{ENCODER_LAYER}self_attn."),
            ("decoder.layers.{n}.cross_attention.", f"{DECODER_LAYER}cross_attn."),
        )
        for projection, name in ATTENTION_PROJECTIONS.items()
    ),
    # the official code numbers norms in the order of its modules, which is not the order of their use
    ("decoder.layers.{n}.cross_attention_residual.norm.", f"{DECODER_LAYER}norm1."),
    ("decoder.layers.{n}.self_attention_residual.norm.", f"{DECODER_LAYER}norm2."),
    ("neck.projection.levels.{n}.convolution.", "input_proj.{n}.0."),
    ("neck.projection.levels.{n}.norm.", "input_proj.{n}.1."),
    ("neck.positions.levels", "transformer.level_embed"),
    ("query_source.point_head.", "transformer.reference_points."),
    ("query_source.memory_projection.", "transformer.enc_output."),
    ("query_source.memory_norm.", "transformer.enc_output_norm."),
    ("query_source.query_projection.", "transformer.pos_trans."),
    ("query_source.query_norm.", "transformer.pos_trans_norm."),
    *HEAD_RULES,
]


def matches(names: Collection[str]) -> bool:
    """Return whether entries are those of an official Deformable DETR."""
    return any("transformer.decoder.layers.0.cross_attn.sampling_offsets." in name for name in names)


def to_detrkit(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename official entries to detrkit's."""
    return detr_official.to_detrkit(merge_layer_heads(state, DECODER), _RULES)


def from_detrkit(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename detrkit's entries to the official ones."""
    named = detr_official.from_detrkit(state, _RULES)
    return repeat_layer_heads(named, DECODER, num_decoder_layers(state))


def fields_from_args(args: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of `ModelConfig` that training arguments hold and the weights do not show."""
    fields = detr_official.fields_from_args(args)
    if args.get("two_stage"):  # one-stage weights show their number of queries
        fields["num_queries"] = args.get("num_queries", 300)
    return fields


def args_from_config(config: ModelConfig) -> dict[str, Any]:
    """Return what the weights do not show as arguments of the official training script."""
    is_two_stage = config.queries == "two_stage"
    two_stage = {"two_stage": True, "num_queries": config.num_queries} if is_two_stage else {}
    return {**detr_official.args_from_config(config), **two_stage}


fields_from_state, computed_entries = detr_official.fields_from_state, detr_official.computed_entries
