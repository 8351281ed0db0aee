"""RT-DETR in Hugging Face's format: entry names and config fields; the rules are shared by RT-DETRv2 and D-FINE.

Reading accepts the names of files and of live models of transformers 5, which differ in the layers; writing uses those of
files.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from detrkit.checkpoints.conversion import detr_huggingface
from detrkit.checkpoints.conversion.deformable_detr_official import ATTENTION_PROJECTIONS
from detrkit.checkpoints.conversion.detr_huggingface import (
    DECODER,
    DECODER_LAYER,
    attention_rules,
    feed_forward_rules,
    resnet_config_fields,
)
from detrkit.checkpoints.conversion.key_mapping import Rule, mlp_rules, rename_from_detrkit, rename_to_detrkit
from detrkit.checkpoints.conversion.rtdetr_official import conv_norm_rules, csp_rules
from detrkit.config.model import ModelConfig
from detrkit.models.backbones import resnet

MODEL_TYPE = "rt_detr"
MODEL_CLASS = "RTDetrForObjectDetection"
IMAGE_PROCESSOR = "RTDetrImageProcessor"

CONV_NORM = (("convolution.", "convolution."), ("norm.", "normalization."))
_NUMBERED = (("convolution.", "0."), ("norm.", "1."))
_BACKBONE = "model.backbone.model."


def _backbone_rules() -> list[Rule]:
    rules = conv_norm_rules("backbone.body.conv1.{n}.", f"{_BACKBONE}embedder.embedder.{{n}}.", CONV_NORM)
    for stage in range(4):
        block, other = f"backbone.body.layer{stage + 1}.{{n}}.", f"{_BACKBONE}encoder.stages.{stage}.layers.{{n}}."
        for index in range(3):
            names = ((f"conv{index + 1}.", "convolution."), (f"bn{index + 1}.", "normalization."))
            rules += conv_norm_rules(block, f"{other}layer.{index}.", names)
        # from the second stage on, the convolution follows a pooling, which is counted
        names = (("0.", "convolution."), ("1.", "normalization."))
        rules += conv_norm_rules(f"{block}downsample.", f"{other}shortcut." + ("" if stage == 0 else "1."), names)
    return rules


def _attention_rules() -> list[Rule]:
    detrkit = "encoder.attention.{n}.layers.{n}."
    rules: list[Rule] = []
    for name in ("encoder", "aifi"):  # in files, in live models
        other = f"model.encoder.{name}.{{n}}.layers.{{n}}."
        rules += attention_rules(f"{detrkit}self_attention", f"{other}self_attn")
        rules += feed_forward_rules(detrkit, other)
        rules += _live_mlp_rules(detrkit, other)
    return rules


def _live_mlp_rules(detrkit: str, other: str) -> list[Rule]:
    """Return rules for the feed-forward networks of live models of D-FINE."""
    return [
        (f"{detrkit}feed_forward.expand.", f"{other}mlp.layers.0."),
        (f"{detrkit}feed_forward.contract.", f"{other}mlp.layers.1."),
    ]


COMMON_RULES: list[Rule] = [
    *conv_norm_rules("neck.projection.levels.{n}.", "model.encoder_input_proj.{n}.", _NUMBERED),
    *_attention_rules(),
    *conv_norm_rules("encoder.lateral.{n}.", "model.encoder.lateral_convs.{n}."),
    *conv_norm_rules("encoder.output_projection.{n}.", "model.decoder_input_proj.{n}.", _NUMBERED),
    *attention_rules("decoder.layers.{n}.self_attention", f"{DECODER_LAYER}self_attn"),
    *(
        (f"decoder.layers.{{n}}.cross_attention.{projection}", f"{DECODER_LAYER}encoder_attn.{name}")
        for projection, name in ATTENTION_PROJECTIONS.items()
    ),
    ("decoder.layers.{n}.cross_attention_residual.norm.", f"{DECODER_LAYER}encoder_attn_layer_norm."),
    *feed_forward_rules("decoder.layers.{n}.", DECODER_LAYER),
    *_live_mlp_rules("decoder.layers.{n}.", DECODER_LAYER),
    *mlp_rules("decoder.query_position_encoding.position_head.", f"{DECODER}query_pos_head."),
    ("query_source.denoising_labels.", "model.denoising_class_embed."),
    ("query_source.memory_projection.", "model.enc_output.0."),
    ("query_source.memory_norm.", "model.enc_output.1."),
    ("query_source.class_head.", "model.enc_score_head."),
    *mlp_rules("query_source.box_head.", "model.enc_bbox_head.", num_layers=3),
    ("heads.class_head.{n}.", f"{DECODER}class_embed.{{n}}."),
    *mlp_rules("heads.box_head.{n}.", f"{DECODER}bbox_embed.{{n}}.", num_layers=3),
]
_RULES: list[Rule] = [
    *_backbone_rules(),
    *csp_rules("encoder.top_down.{n}.", "model.encoder.fpn_blocks.{n}."),
    *csp_rules("encoder.bottom_up.{n}.", "model.encoder.pan_blocks.{n}."),
    *conv_norm_rules("encoder.downsample.{n}.", "model.encoder.downsample_convs.{n}."),
    *COMMON_RULES,
]
computed_entries = detr_huggingface.computed_entries
_COMPUTED = (".n_points_scale", ".num_points_scale")
_HEADS = ("class_embed.", "bbox_embed.")  # in RT-DETRv2 and D-FINE also outside of the decoder: the same tensors


def has_selection(names: Collection[str]) -> bool:
    """Return whether entries are those of a model of Hugging Face that selects queries as RT-DETR does."""
    return "model.enc_score_head.weight" in names and "model.denoising_class_embed.weight" in names


def is_v2(names: Collection[str]) -> bool:
    """Return whether such entries are those of RT-DETRv2."""
    return any(name.endswith(_COMPUTED) or name.startswith(_HEADS) for name in names)


def is_dfine(names: Collection[str]) -> bool:
    """Return whether such entries are those of D-FINE."""
    return any(name.startswith(f"{DECODER}pre_bbox_head.") for name in names)


def matches(names: Collection[str]) -> bool:
    """Return whether entries are those of Hugging Face's RT-DETR, of the first version."""
    return has_selection(names) and not is_v2(names) and not is_dfine(names)


def to_detrkit(state: Mapping[str, Tensor], rules: Iterable[Rule] = _RULES) -> dict[str, Tensor]:
    """Rename Hugging Face's entries to detrkit's; `rules` are those of a derived architecture."""
    stored: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if not name.endswith((*_COMPUTED, "num_batches_tracked")):
            stored[f"{DECODER}{name}" if name.startswith(_HEADS) else name] = tensor
    return rename_to_detrkit(stored, rules)


def from_detrkit(
    state: Mapping[str, Tensor], native_backbone: bool = False, rules: Iterable[Rule] = _RULES
) -> dict[str, Tensor]:
    """Rename detrkit's entries to those of Hugging Face's files; the backbone is always Hugging Face's own."""
    return rename_from_detrkit(state, rules)


def with_repeated_heads(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Add the heads once more under the names that RT-DETRv2 and D-FINE also have."""
    short = {name.removeprefix(DECODER): tensor for name, tensor in state.items()}
    return {**state, **{name: tensor for name, tensor in short.items() if name.startswith(_HEADS)}}


def points_per_level(content: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the number of sampling points on each feature map, which ``config.json`` may hold as one number."""
    points = content.get("decoder_n_points", 4)
    return tuple(points) if isinstance(points, list) else (points,) * content.get("num_feature_levels", 3)


def fields_from_config(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of `ModelConfig` that ``config.json`` holds and the weights do not show."""
    return {
        "num_heads": content.get("decoder_attention_heads", 8),
        "num_queries": content.get("num_queries", 300),
        "dropout": content.get("dropout", 0.0),
    }


def config_fields(config: ModelConfig) -> dict[str, Any]:
    """Return the architecture's own fields of ``config.json``."""
    channels = resnet.VARIANTS[config.backbone].channels
    return {**common_config_fields(config, channels), "backbone_config": _backbone_config(config)}


def common_config_fields(config: ModelConfig, channels: Sequence[int]) -> dict[str, Any]:
    """Return the fields of ``config.json`` that RT-DETR, RT-DETRv2 and D-FINE have in common, besides the backbone.

    Args:
        config: of the model.
        channels: of the stages of the backbone.
    """
    levels, strides = config.num_feature_levels, list(config.strides)
    return {
        "d_model": config.hidden_dim,
        "encoder_hidden_dim": config.encoder_width,
        "encoder_in_channels": list(channels[-levels:]),
        "feat_strides": strides,
        "encode_proj_layers": [levels - 1 - number for number in reversed(range(config.attention_levels))],
        "encoder_ffn_dim": config.encoder_dim_feedforward or config.dim_feedforward,
        "hidden_expansion": config.fusion_expansion,
        "num_feature_levels": levels,
        "decoder_in_channels": [config.encoder_width] * levels,
        "decoder_n_points": config.num_points,
        "decoder_activation_function": config.activation,
        "freeze_backbone_batch_norms": config.backbone_normalization == "frozen",
    }


def _backbone_config(config: ModelConfig) -> dict[str, Any]:
    return {"model_type": "rt_detr_resnet", **resnet_config_fields(config.backbone), "out_indices": [2, 3, 4]}
