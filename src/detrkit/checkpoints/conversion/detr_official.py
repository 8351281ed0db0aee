"""DETR in the official format (facebookresearch/detr): entry names and training arguments.

The query, key and value projections of an attention are one matrix there, and models with a mask head hold the box model
under ``detr.``. The rules are shared by the architectures whose code derives from DETR's.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from torch import Tensor

from detrkit.checkpoints.conversion.key_mapping import (
    Rule,
    merge_in_proj,
    mlp_rules,
    rename_from_detrkit,
    rename_to_detrkit,
    split_in_proj,
    without_step_counters,
)
from detrkit.config.model import ModelConfig

ENCODER_LAYER, DECODER_LAYER = "transformer.encoder.layers.{n}.", "transformer.decoder.layers.{n}."
DECODER = "transformer.decoder."
_BOX_RULES: list[Rule] = [
    ("backbone.body.", "backbone.0.body."),
    ("neck.positions.rows.", "backbone.1.row_embed."),
    ("neck.positions.columns.", "backbone.1.col_embed."),
    ("neck.projection.", "input_proj."),
    ("query_source.", "query_embed."),
    ("encoder.layers.{n}.self_attention.output_projection.", f"{ENCODER_LAYER}self_attn.out_proj."),
    ("encoder.layers.{n}.self_attention.", f"{ENCODER_LAYER}self_attn."),
    ("encoder.layers.{n}.self_attention_residual.norm.", f"{ENCODER_LAYER}norm1."),
    ("encoder.layers.{n}.feed_forward.expand.", f"{ENCODER_LAYER}linear1."),
    ("encoder.layers.{n}.feed_forward.contract.", f"{ENCODER_LAYER}linear2."),
    ("encoder.layers.{n}.feed_forward_residual.norm.", f"{ENCODER_LAYER}norm2."),
    ("encoder.norm.", "transformer.encoder.norm."),
    ("decoder.layers.{n}.self_attention.output_projection.", f"{DECODER_LAYER}self_attn.out_proj."),
    ("decoder.layers.{n}.self_attention.", f"{DECODER_LAYER}self_attn."),
    ("decoder.layers.{n}.self_attention_residual.norm.", f"{DECODER_LAYER}norm1."),
    ("decoder.layers.{n}.cross_attention.output_projection.", f"{DECODER_LAYER}multihead_attn.out_proj."),
    ("decoder.layers.{n}.cross_attention.", f"{DECODER_LAYER}multihead_attn."),
    ("decoder.layers.{n}.cross_attention_residual.norm.", f"{DECODER_LAYER}norm2."),
    ("decoder.layers.{n}.feed_forward.expand.", f"{DECODER_LAYER}linear1."),
    ("decoder.layers.{n}.feed_forward.contract.", f"{DECODER_LAYER}linear2."),
    ("decoder.layers.{n}.feed_forward_residual.norm.", f"{DECODER_LAYER}norm3."),
    ("decoder.norm.", f"{DECODER}norm."),
    ("heads.class_head.", "class_embed."),
    *mlp_rules("heads.box_head.", "bbox_embed.", num_layers=3),
]
_MASK_RULES: list[Rule] = [
    ("mask_head.attention_maps.query_projection.", "bbox_attention.q_linear."),
    ("mask_head.attention_maps.key_projection.", "bbox_attention.k_linear."),
    ("mask_head.input_stages.0.convolution.", "mask_head.lay1."),
    ("mask_head.input_stages.0.norm.", "mask_head.gn1."),
    ("mask_head.input_stages.1.convolution.", "mask_head.lay2."),
    ("mask_head.input_stages.1.norm.", "mask_head.gn2."),
    ("mask_head.stages.0.convolution.", "mask_head.lay3."),
    ("mask_head.stages.0.norm.", "mask_head.gn3."),
    ("mask_head.stages.1.convolution.", "mask_head.lay4."),
    ("mask_head.stages.1.norm.", "mask_head.gn4."),
    ("mask_head.stages.2.convolution.", "mask_head.lay5."),
    ("mask_head.stages.2.norm.", "mask_head.gn5."),
    ("mask_head.adapters.0.", "mask_head.adapter1."),
    ("mask_head.adapters.1.", "mask_head.adapter2."),
    ("mask_head.adapters.2.", "mask_head.adapter3."),
    ("mask_head.output.", "mask_head.out_lay."),
]


def matches(names: Collection[str]) -> bool:
    """Return whether entries are those of an official DETR."""
    return any("transformer.decoder.layers.0.multihead_attn." in name for name in names)


def to_detrkit(state: Mapping[str, Tensor], extra_rules: Iterable[Rule] = ()) -> dict[str, Tensor]:
    """Rename official entries to detrkit's; `extra_rules` of a derived architecture come first."""
    has_masks = any(name.startswith("detr.") for name in state)
    return rename_to_detrkit(split_in_proj(without_step_counters(state)), _rules(extra_rules, has_masks))


def from_detrkit(state: Mapping[str, Tensor], extra_rules: Iterable[Rule] = ()) -> dict[str, Tensor]:
    """Rename detrkit's entries to the official ones; `extra_rules` of a derived architecture come first."""
    has_masks = "mask_head.output.weight" in state
    return merge_in_proj(rename_from_detrkit(state, _rules(extra_rules, has_masks)))


def fields_from_args(args: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of `ModelConfig` that training arguments hold and the weights do not show."""
    names = {"dilation": "dilation", "nheads": "num_heads", "dropout": "dropout"}
    return {field: args[name] for name, field in names.items() if name in args}


def args_from_config(config: ModelConfig) -> dict[str, Any]:
    """Return what the weights do not show as arguments of the official training script; inverse of the above."""
    return {"dilation": config.dilation, "nheads": config.num_heads, "dropout": config.dropout}


def fields_from_state(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return no fields of `ModelConfig`: what official entries show, detrkit's show, too."""
    return {}


def computed_entries(config: ModelConfig) -> dict[str, Tensor]:
    """Return no entries: all that official files hold are weights."""
    return {}


def _rules(extra_rules: Iterable[Rule], has_masks: bool) -> list[Rule]:
    rules = [*extra_rules, *_BOX_RULES]
    return [(detrkit, f"detr.{other}") for detrkit, other in rules] + _MASK_RULES if has_masks else rules
