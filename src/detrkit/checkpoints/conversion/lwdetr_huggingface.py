"""LW-DETR in Hugging Face's format: entry names and config fields; those of the decoder are shared by RF-DETR."""

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from detrkit.checkpoints.conversion import detr_huggingface
from detrkit.checkpoints.conversion.deformable_detr_official import ATTENTION_PROJECTIONS
from detrkit.checkpoints.conversion.detr_huggingface import DECODER, DECODER_LAYER
from detrkit.checkpoints.conversion.key_mapping import (
    Rule,
    mlp_rules,
    rename_from_detrkit,
    rename_to_detrkit,
    without_step_counters,
)
from detrkit.checkpoints.conversion.lwdetr_official import merge_tables, projector_rules, split_tables
from detrkit.config.model import PROJECTOR_SCALES, ModelConfig
from detrkit.models.backbones.vit import VARIANTS

MODEL_TYPE = "lw_detr"
MODEL_CLASS = "LwDetrForObjectDetection"
IMAGE_PROCESSOR = "DeformableDetrImageProcessor"

CONV_NORM = (("convolution.", "conv."), ("norm.", "norm."))
_BACKBONE, _LEVEL = "model.backbone.backbone.", "model.backbone.projector.scale_layers.{n}."
# of the decoder, the heads and the selection of queries
TRANSFORMER_RULES: list[Rule] = [
    ("decoder.layers.{n}.self_attention.query_projection.", f"{DECODER_LAYER}self_attn.q_proj."),
    ("decoder.layers.{n}.self_attention.key_projection.", f"{DECODER_LAYER}self_attn.k_proj."),
    ("decoder.layers.{n}.self_attention.value_projection.", f"{DECODER_LAYER}self_attn.v_proj."),
    ("decoder.layers.{n}.self_attention.output_projection.", f"{DECODER_LAYER}self_attn.o_proj."),
    ("decoder.layers.{n}.self_attention_residual.norm.", f"{DECODER_LAYER}self_attn_layer_norm."),
    *(
        (f"decoder.layers.{{n}}.cross_attention.{own}", f"{DECODER_LAYER}cross_attn.{name}")
        for own, name in ATTENTION_PROJECTIONS.items()
    ),
    ("decoder.layers.{n}.cross_attention_residual.norm.", f"{DECODER_LAYER}cross_attn_layer_norm."),
    ("decoder.layers.{n}.feed_forward.expand.", f"{DECODER_LAYER}mlp.fc1."),
    ("decoder.layers.{n}.feed_forward.contract.", f"{DECODER_LAYER}mlp.fc2."),
    ("decoder.layers.{n}.feed_forward_residual.norm.", f"{DECODER_LAYER}layer_norm."),
    ("decoder.norm.", f"{DECODER}layernorm."),
    *mlp_rules("decoder.query_position_encoding.position_head.", f"{DECODER}ref_point_head."),
    ("query_source.groups.{n}.memory_projection.", "model.enc_output.{n}."),
    ("query_source.groups.{n}.memory_norm.", "model.enc_output_norm.{n}."),
    ("query_source.groups.{n}.class_head.", "model.enc_out_class_embed.{n}."),
    *mlp_rules("query_source.groups.{n}.box_head.", "model.enc_out_bbox_embed.{n}.", num_layers=3),
    ("query_source.content", "model.query_feat.weight"),
    ("query_source.box_deltas", "model.reference_point_embed.weight"),
    ("heads.class_head.", "class_embed."),
    *mlp_rules("heads.box_head.", "bbox_embed.", num_layers=3),
]
_BLOCK, _OTHER_BLOCK = "backbone.blocks.{n}.", f"{_BACKBONE}encoder.layer.{{n}}."
# of files, and of live models
_FILE_ATTENTION = {"query": "attention.query", "key": "attention.key", "value": "attention.value", "output": "output"}
_LIVE_ATTENTION = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "output": "o_proj"}
_RULES: list[Rule] = [
    ("backbone.patch_embedding.", f"{_BACKBONE}embeddings.projection."),
    ("backbone.positions", f"{_BACKBONE}embeddings.position_embeddings"),
    (f"{_BLOCK}attention_norm.", f"{_OTHER_BLOCK}layernorm_before."),
    *(
        (f"{_BLOCK}attention.{own}_projection.", f"{_OTHER_BLOCK}attention.{name}.")
        for names in (_FILE_ATTENTION, _LIVE_ATTENTION)
        for own, name in names.items()
    ),
    (f"{_BLOCK}attention_scale", f"{_OTHER_BLOCK}gamma_1"),
    (f"{_BLOCK}feed_forward_norm.", f"{_OTHER_BLOCK}layernorm_after."),
    (f"{_BLOCK}feed_forward.expand.", f"{_OTHER_BLOCK}intermediate.fc1."),
    (f"{_BLOCK}feed_forward.contract.", f"{_OTHER_BLOCK}intermediate.fc2."),
    (f"{_BLOCK}feed_forward_scale", f"{_OTHER_BLOCK}gamma_2"),
    *projector_rules(
        fuse=f"{_LEVEL}projector_layer.",
        parts=("conv1.", "conv2.", "bottlenecks.{n}.conv1.", "bottlenecks.{n}.conv2."),
        norm=f"{_LEVEL}layer_norm.",
        sampler=f"{_LEVEL}sampling_layers.{{n}}.layers.{{n}}.",
        conv_norm=CONV_NORM,
    ),
    *TRANSFORMER_RULES,
]
computed_entries = detr_huggingface.computed_entries


def matches(names: Collection[str]) -> bool:
    """Return whether entries are those of Hugging Face's LW-DETR."""
    return f"{_BACKBONE}encoder.layer.0.gamma_1" in names and "model.reference_point_embed.weight" in names


def to_detrkit(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename Hugging Face's entries to detrkit's."""
    return split_tables(rename_to_detrkit(without_step_counters(state), _RULES))


def from_detrkit(state: Mapping[str, Tensor], native_backbone: bool = False) -> dict[str, Tensor]:
    """Rename detrkit's entries to those of Hugging Face's files; the backbone is always Hugging Face's own."""
    return rename_from_detrkit(merge_tables(state), _RULES)


def fields_from_config(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of `ModelConfig` that ``config.json`` holds and the weights do not show."""
    backbone = content.get("backbone_config") or {}
    fields = common_fields_from_config(content)
    if (layers := backbone.get("out_indices")) is not None:
        fields["out_layers"] = tuple(layers)
    if (windowed := backbone.get("window_block_indices")) is not None:
        count = backbone.get("num_hidden_layers", 12)
        fields["global_layers"] = tuple(layer for layer in range(count) if layer not in windowed)
    return {**fields, "num_windows": round(backbone.get("num_windows", 16) ** 0.5)}


def config_fields(config: ModelConfig) -> dict[str, Any]:
    """Return the architecture's own fields of ``config.json``."""
    variant, layers = VARIANTS[config.backbone], range(config.backbone_layers)  # type: ignore[index]  # of a ViT
    return {
        **common_config_fields(config),
        "projector_scale_factors": list(PROJECTOR_SCALES[config.num_feature_levels]),
        "backbone_config": {
            "model_type": "lw_detr_vit",
            "hidden_size": variant.width,
            "num_attention_heads": variant.num_heads,
            "num_hidden_layers": config.backbone_layers,
            "num_channels": config.in_channels,
            "patch_size": config.patch_size,
            "image_size": config.published_side,
            "pretrain_image_size": config.position_grid * config.patch_size,
            "num_windows": config.num_windows**2,
            "window_block_indices": [layer for layer in layers if layer not in config.global_layers],
            "out_indices": list(config.out_layers),
            "out_features": [f"stage{layer}" for layer in config.out_layers],
        },
    }


def common_fields_from_config(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of the decoder that ``config.json`` of LW-DETR and RF-DETR holds."""
    return {
        "num_heads": content.get("decoder_self_attention_heads", 8),
        "cross_attention_heads": content.get("decoder_cross_attention_heads", 16),
        "num_points": content.get("decoder_n_points", 4),
        "dropout": content.get("dropout", 0.0),
    }


def common_config_fields(config: ModelConfig) -> dict[str, Any]:
    """Return the fields of the decoder in ``config.json`` of LW-DETR and RF-DETR."""
    return {
        "d_model": config.hidden_dim,
        "num_queries": config.num_queries,
        "group_detr": config.group_detr,
        "dropout": config.dropout,
        "decoder_layers": config.decoder_layers,
        "decoder_ffn_dim": config.dim_feedforward,
        "decoder_n_points": config.num_points,
        "decoder_self_attention_heads": config.num_heads,
        "decoder_cross_attention_heads": config.cross_attention_heads or config.num_heads,
        "decoder_activation_function": config.activation,
    }
