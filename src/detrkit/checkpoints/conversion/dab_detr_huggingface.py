"""DAB-DETR in Hugging Face's format, the same for files and live models; other entries are named as in DETR.

The shared box head is registered a second time, as part of the decoder.
"""

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from detrkit.checkpoints.conversion import detr_huggingface
from detrkit.checkpoints.conversion.detr_huggingface import DECODER, DECODER_LAYER, ENCODER_LAYER, FILE_BACKBONE
from detrkit.checkpoints.conversion.key_mapping import Rule, mlp_rules
from detrkit.config.model import ModelConfig

MODEL_TYPE = "dab-detr"
MODEL_CLASS = "DabDetrForObjectDetection"
# transformers has none of its own; Conditional DETR's takes scores for sigmoids, too
IMAGE_PROCESSOR = "ConditionalDetrImageProcessor"

_TIMM_BACKBONE = f"{FILE_BACKBONE}_backbone."
_DECODER_ENTRIES = {
    "self_projections.query_content.": "self_attn.self_attn_query_content_proj.",
    "self_projections.query_position.": "self_attn.self_attn_query_pos_proj.",
    "self_projections.key_content.": "self_attn.self_attn_key_content_proj.",
    "self_projections.key_position.": "self_attn.self_attn_key_pos_proj.",
    "self_projections.value.": "self_attn.self_attn_value_proj.",
    "self_attention.output_projection.": "self_attn.self_attn.output_proj.",
    "self_attention_residual.norm.": "self_attn.self_attn_layer_norm.",
    "cross_projections.query_content.": "cross_attn.cross_attn_query_content_proj.",
    "cross_projections.query_position.": "cross_attn.cross_attn_query_pos_proj.",
    "cross_projections.query_sine.": "cross_attn.cross_attn_query_pos_sine_proj.",
    "cross_projections.key_content.": "cross_attn.cross_attn_key_content_proj.",
    "cross_projections.key_position.": "cross_attn.cross_attn_key_pos_proj.",
    "cross_projections.value.": "cross_attn.cross_attn_value_proj.",
    "cross_attention.output_projection.": "cross_attn.cross_attn.output_proj.",
    "cross_attention_residual.norm.": "cross_attn.cross_attn_layer_norm.",
    "feed_forward.expand.": "mlp.fc1.",
    "feed_forward.contract.": "mlp.fc2.",
    "feed_forward.activation.": "mlp.activation_fn.",
    "feed_forward_residual.norm.": "mlp.final_layer_norm.",
}
_RULES: list[Rule] = [
    *((f"decoder.layers.{{n}}.{detrkit}", DECODER_LAYER + other) for detrkit, other in _DECODER_ENTRIES.items()),
    *mlp_rules("decoder.query_position_encoding.content_scale.", f"{DECODER}query_scale."),
    *mlp_rules("decoder.query_position_encoding.position_head.", f"{DECODER}ref_point_head."),
    *mlp_rules("decoder.query_position_encoding.size_head.", f"{DECODER}ref_anchor_head."),
    *mlp_rules("encoder.position_scale.", "model.encoder.query_scale."),
    ("encoder.layers.{n}.feed_forward.activation.", f"{ENCODER_LAYER}activation_fn."),
    ("query_source.weight", "model.query_refpoint_embeddings.weight"),
    ("heads.class_head.", "class_embed."),
]


def matches(names: Collection[str]) -> bool:
    """Return whether entries are those of Hugging Face's DAB-DETR."""
    return any(name.endswith("model.query_refpoint_embeddings.weight") for name in names)


def to_detrkit(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename Hugging Face's entries to detrkit's."""
    state = {name: tensor for name, tensor in state.items() if not name.startswith(f"{DECODER}bbox_embed.")}
    return detr_huggingface.to_detrkit(state, _RULES, _TIMM_BACKBONE)


def from_detrkit(state: Mapping[str, Tensor], native_backbone: bool = False) -> dict[str, Tensor]:
    """Rename detrkit's entries to those of Hugging Face's files."""
    named = detr_huggingface.from_detrkit(state, native_backbone, _RULES, _TIMM_BACKBONE)
    heads = {name: tensor for name, tensor in named.items() if name.startswith("bbox_predictor.")}
    return named | {name.replace("bbox_predictor.", f"{DECODER}bbox_embed."): head for name, head in heads.items()}


def fields_from_config(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of `ModelConfig` that ``config.json`` holds and the weights do not show."""
    return {
        **detr_huggingface.fields_from_config(content),
        "position_temperature": float(content.get("temperature_height", 20)),
    }


def config_fields(config: ModelConfig) -> dict[str, Any]:
    """Return the architecture's own fields of ``config.json``."""
    temperature = int(config.position_temperature)
    return {
        "hidden_size": config.hidden_dim,
        "temperature_height": temperature,
        "temperature_width": temperature,
        "activation_function": config.activation,
    }


computed_entries = detr_huggingface.computed_entries
