"""Conditional DETR in the official format (Atten4Vis/ConditionalDETR); other entries are named as in DETR."""

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from detrkit.checkpoints.conversion import detr_official
from detrkit.checkpoints.conversion.detr_official import DECODER, DECODER_LAYER
from detrkit.checkpoints.conversion.key_mapping import Rule, mlp_rules
from detrkit.config.model import ModelConfig

ATTENTION_PROJECTIONS = {
    "self_projections.query_content.": "sa_qcontent_proj.",
    "self_projections.query_position.": "sa_qpos_proj.",
    "self_projections.key_content.": "sa_kcontent_proj.",
    "self_projections.key_position.": "sa_kpos_proj.",
    "self_projections.value.": "sa_v_proj.",
    "cross_projections.query_content.": "ca_qcontent_proj.",
    "cross_projections.query_position.": "ca_qpos_proj.",
    "cross_projections.query_sine.": "ca_qpos_sine_proj.",
    "cross_projections.key_content.": "ca_kcontent_proj.",
    "cross_projections.key_position.": "ca_kpos_proj.",
    "cross_projections.value.": "ca_v_proj.",
}
RULES: list[Rule] = [
    *((f"decoder.layers.{{n}}.{detrkit}", DECODER_LAYER + other) for detrkit, other in ATTENTION_PROJECTIONS.items()),
    ("decoder.layers.{n}.cross_attention.output_projection.", f"{DECODER_LAYER}cross_attn.out_proj."),
    *mlp_rules("decoder.query_position_encoding.content_scale.", f"{DECODER}query_scale."),
    *mlp_rules("query_source.point_head.", f"{DECODER}ref_point_head."),
]


def matches(names: Collection[str]) -> bool:
    """Return whether entries are those of an official Conditional DETR."""
    is_dab = any(name.endswith("refpoint_embed.weight") for name in names)
    return not is_dab and any("transformer.decoder.layers.0.ca_qcontent_proj." in name for name in names)


def to_detrkit(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename official entries to detrkit's."""
    return detr_official.to_detrkit(state, RULES)


def from_detrkit(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename detrkit's entries to the official ones."""
    return detr_official.from_detrkit(state, RULES)


def fields_from_args(args: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of `ModelConfig` that training arguments hold and the weights do not show."""
    return detr_official.fields_from_args(args)


def args_from_config(config: ModelConfig) -> dict[str, Any]:
    """Return what the weights do not show as arguments of the official training script."""
    return detr_official.args_from_config(config)


fields_from_state, computed_entries = detr_official.fields_from_state, detr_official.computed_entries
