"""RT-DETR in the official format (lyuwenyu/RT-DETR, `rtdetr_pytorch`): entry names and training arguments.

The rules are shared by RT-DETRv2 and D-FINE, whose code derives from RT-DETR's.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from torch import Tensor

from detrkit.checkpoints.conversion import detr_official
from detrkit.checkpoints.conversion.key_mapping import (
    Rule,
    merge_in_proj,
    mlp_rules,
    rename_from_detrkit,
    rename_to_detrkit,
    split_in_proj,
)
from detrkit.config.model import ModelConfig

computed_entries = detr_official.computed_entries
CONV_NORM = (("convolution.", "conv."), ("norm.", "norm."))


def conv_norm_rules(detrkit: str, other: str, names: tuple[tuple[str, str], ...] = CONV_NORM) -> list[Rule]:
    """Return rules for a `ConvNorm`, whose parts have `names` in detrkit and in the other format."""
    return [(detrkit + own, other + name) for own, name in names]


def attention_rules(detrkit: str, other: str) -> list[Rule]:
    """Return rules for an encoder layer, after `key_mapping.split_in_proj`."""
    names = {
        "self_attention.output_projection.": "self_attn.out_proj.",
        "self_attention.": "self_attn.",
        "self_attention_residual.norm.": "norm1.",
        "feed_forward.expand.": "linear1.",
        "feed_forward.contract.": "linear2.",
        "feed_forward_residual.norm.": "norm2.",
    }
    return [(detrkit + own, other + name) for own, name in names.items()]


def csp_rules(detrkit: str, other: str) -> list[Rule]:
    """Return rules for a `CSPRepLayer`."""
    return [
        *(rule for name in ("conv1.", "conv2.", "conv3.") for rule in conv_norm_rules(detrkit + name, other + name)),
        *conv_norm_rules(f"{detrkit}blocks.{{n}}.branch3x3.", f"{other}bottlenecks.{{n}}.conv1."),
        *conv_norm_rules(f"{detrkit}blocks.{{n}}.branch1x1.", f"{other}bottlenecks.{{n}}.conv2."),
    ]


def _resnet_vd_rules() -> list[Rule]:
    rules: list[Rule] = []
    for index in range(3):
        rules += conv_norm_rules(f"backbone.body.conv1.{index}.", f"backbone.conv1.conv1_{index + 1}.")
    for stage in range(4):
        block, other = f"backbone.body.layer{stage + 1}.{{n}}.", f"backbone.res_layers.{stage}.blocks.{{n}}."
        for number, branch in enumerate("abc", start=1):
            names = ((f"conv{number}.", "conv."), (f"bn{number}.", "norm."))
            rules += conv_norm_rules(block, f"{other}branch2{branch}.", names)
        # from the second stage on, the convolution follows a pooling, which the authors' names count
        shortcut = "short." if stage == 0 else "short.conv."
        rules += conv_norm_rules(f"{block}downsample.", other + shortcut, (("0.", "conv."), ("1.", "norm.")))
    return rules


RESNET_VD_RULES = _resnet_vd_rules()
# what all hybrid encoders have; the first version names the parts of the input projections by numbers
ENCODER_RULES: list[Rule] = [
    *attention_rules("encoder.attention.{n}.layers.{n}.", "encoder.encoder.{n}.layers.{n}."),
    *conv_norm_rules("encoder.lateral.{n}.", "encoder.lateral_convs.{n}."),
    *conv_norm_rules("encoder.output_projection.{n}.", "decoder.input_proj.{n}."),
    ("encoder.teacher_projection.", "encoder.feature_projector.0."),
]
INPUT_PROJECTION_RULES = conv_norm_rules("neck.projection.levels.{n}.", "encoder.input_proj.{n}.")
INPUT_PROJECTION_RULES_V1 = conv_norm_rules(
    "neck.projection.levels.{n}.", "encoder.input_proj.{n}.", (("convolution.", "0."), ("norm.", "1."))
)
CSP_FUSION_RULES: list[Rule] = [
    *csp_rules("encoder.top_down.{n}.", "encoder.fpn_blocks.{n}."),
    *csp_rules("encoder.bottom_up.{n}.", "encoder.pan_blocks.{n}."),
    *conv_norm_rules("encoder.downsample.{n}.", "encoder.downsample_convs.{n}."),
]

_LAYER, _OTHER_LAYER = "decoder.layers.{n}.", "decoder.decoder.layers.{n}."
DECODER_RULES: list[Rule] = [
    (f"{_LAYER}self_attention.output_projection.", f"{_OTHER_LAYER}self_attn.out_proj."),
    (f"{_LAYER}self_attention.", f"{_OTHER_LAYER}self_attn."),
    (f"{_LAYER}self_attention_residual.norm.", f"{_OTHER_LAYER}norm1."),
    (f"{_LAYER}cross_attention.offset_projection.", f"{_OTHER_LAYER}cross_attn.sampling_offsets."),
    (f"{_LAYER}cross_attention.weight_projection.", f"{_OTHER_LAYER}cross_attn.attention_weights."),
    (f"{_LAYER}cross_attention.value_projection.", f"{_OTHER_LAYER}cross_attn.value_proj."),
    (f"{_LAYER}cross_attention.output_projection.", f"{_OTHER_LAYER}cross_attn.output_proj."),
    (f"{_LAYER}cross_attention_residual.norm.", f"{_OTHER_LAYER}norm2."),
    (f"{_LAYER}feed_forward.expand.", f"{_OTHER_LAYER}linear1."),
    (f"{_LAYER}feed_forward.contract.", f"{_OTHER_LAYER}linear2."),
    (f"{_LAYER}feed_forward_residual.norm.", f"{_OTHER_LAYER}norm3."),
    *mlp_rules("decoder.query_position_encoding.position_head.", "decoder.query_pos_head.", num_layers=3),
    ("query_source.denoising_labels.", "decoder.denoising_class_embed."),
    ("query_source.class_head.", "decoder.enc_score_head."),
    *mlp_rules("query_source.box_head.", "decoder.enc_bbox_head.", num_layers=3),
    ("heads.class_head.{n}.", "decoder.dec_score_head.{n}."),
    *mlp_rules("heads.box_head.{n}.", "decoder.dec_bbox_head.{n}.", num_layers=3),
]
SELECTION_RULES: list[Rule] = [
    ("query_source.memory_projection.", "decoder.enc_output.proj."),
    ("query_source.memory_norm.", "decoder.enc_output.norm."),
]
_RULES: list[Rule] = [
    *RESNET_VD_RULES,
    *INPUT_PROJECTION_RULES_V1,
    *ENCODER_RULES,
    *CSP_FUSION_RULES,
    *DECODER_RULES,
    ("query_source.memory_projection.", "decoder.enc_output.0."),
    ("query_source.memory_norm.", "decoder.enc_output.1."),
]
# of files that were saved with a fixed size of images; computed for each size here
_COMPUTED = (".num_points_scale", "decoder.anchors", "decoder.valid_mask")
_VALUE_PROJECTION = "decoder.decoder.layers.0.cross_attn.value_proj.weight"


def matches(names: Collection[str]) -> bool:
    """Return whether entries are those of an official RT-DETR, of the first version."""
    return _VALUE_PROJECTION in names and "decoder.enc_output.0.weight" in names


def matches_v2(names: Collection[str]) -> bool:
    """Return whether entries are those of an official RT-DETRv2."""
    return _VALUE_PROJECTION in names and "decoder.enc_output.proj.weight" in names


def to_detrkit(state: Mapping[str, Tensor], rules: Iterable[Rule] = _RULES) -> dict[str, Tensor]:
    """Rename official entries to detrkit's; `rules` are those of a derived architecture."""
    stored = {name: tensor for name, tensor in state.items() if not name.endswith(_COMPUTED)}
    return rename_to_detrkit(split_in_proj(stored), rules)


def from_detrkit(state: Mapping[str, Tensor], rules: Iterable[Rule] = _RULES) -> dict[str, Tensor]:
    """Rename detrkit's entries to the official ones; `rules` are those of a derived architecture."""
    return merge_in_proj(rename_from_detrkit(state, rules))


_ARGUMENTS = {"num_queries": "num_queries", "num_top_queries": "max_detections"}


def fields_from_args(args: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of `ModelConfig` that files of `args_from_config` hold and the weights do not show."""
    return {field: args[name] for name, field in _ARGUMENTS.items() if args.get(name) is not None}


def args_from_config(config: ModelConfig) -> dict[str, Any]:
    """Return what the weights do not show, by the names of the authors' settings; their code ignores it."""
    return {name: getattr(config, field) for name, field in _ARGUMENTS.items()}


def fields_from_state(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the fields of `ModelConfig` that only official entries show: whether the backbone's norms were trained."""
    # batch norms count steps, frozen ones do not
    is_trained = any(name.startswith("backbone.") and name.endswith("num_batches_tracked") for name in state)
    if is_trained:
        return {"backbone_normalization": "batch", "frozen_backbone_stages": 0}
    return {}
