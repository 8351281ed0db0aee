"""Deformable DETR in Hugging Face's format; other entries are named as in DETR."""

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from detrkit.checkpoints.conversion import detr_huggingface
from detrkit.checkpoints.conversion.deformable_detr_official import ATTENTION_PROJECTIONS, HEAD_RULES
from detrkit.checkpoints.conversion.detr_huggingface import DECODER, DECODER_LAYER, ENCODER_LAYER
from detrkit.checkpoints.conversion.key_mapping import Rule, mlp_rules
from detrkit.checkpoints.conversion.layer_heads import merge_layer_heads, num_decoder_layers, repeat_layer_heads
from detrkit.config.model import ModelConfig

MODEL_TYPE = "deformable_detr"
MODEL_CLASS = "DeformableDetrForObjectDetection"
IMAGE_PROCESSOR = "DeformableDetrImageProcessor"

_RULES: list[Rule] = [
    *(
        (detrkit + projection, other + name)
        for detrkit, other in (
            ("encoder.layers.{n}.self_attention.", f"{ENCODER_LAYER}self_attn."),
            ("decoder.layers.{n}.cross_attention.", f"{DECODER_LAYER}encoder_attn."),
        )
        for projection, name in ATTENTION_PROJECTIONS.items()
    ),
    ("neck.projection.levels.{n}.convolution.", "model.input_proj.{n}.0."),
    ("neck.projection.levels.{n}.norm.", "model.input_proj.{n}.1."),
    ("neck.positions.levels", "model.level_embed"),
    ("query_source.point_head.", "model.reference_points."),
    ("query_source.memory_projection.", "model.enc_output."),
    ("query_source.memory_norm.", "model.enc_output_norm."),
    ("query_source.query_projection.", "model.pos_trans."),
    ("query_source.query_norm.", "model.pos_trans_norm."),
    *HEAD_RULES,
    ("heads.class_head.", "class_embed."),
    *mlp_rules("heads.box_head.", "bbox_embed.", num_layers=3),
]


def matches(names: Collection[str]) -> bool:
    """Return whether entries are those of Hugging Face's Deformable DETR."""
    return any("model.decoder.layers.0.encoder_attn.sampling_offsets." in name for name in names)


def to_detrkit(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename Hugging Face's entries to detrkit's."""
    return detr_huggingface.to_detrkit(merge_layer_heads(state, DECODER), _RULES)


def from_detrkit(state: Mapping[str, Tensor], native_backbone: bool = False) -> dict[str, Tensor]:
    """Rename detrkit's entries to those of Hugging Face's files."""
    named = detr_huggingface.from_detrkit(state, native_backbone, _RULES)
    return repeat_layer_heads(named, DECODER, num_decoder_layers(state))


def fields_from_config(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of `ModelConfig` that ``config.json`` holds and the weights do not show."""
    fields = detr_huggingface.fields_from_config(content)
    if content.get("two_stage"):
        fields["num_queries"] = content.get("two_stage_num_proposals", 300)
    return fields


def config_fields(config: ModelConfig) -> dict[str, Any]:
    """Return the architecture's own fields of ``config.json``."""
    return {
        **detr_huggingface.config_fields(config),
        "num_feature_levels": config.num_feature_levels,
        "encoder_n_points": config.num_points,
        "decoder_n_points": config.num_points,
        "with_box_refine": config.with_box_refine,
        "two_stage": config.queries == "two_stage",
        "two_stage_num_proposals": config.num_queries,
    }


computed_entries = detr_huggingface.computed_entries
