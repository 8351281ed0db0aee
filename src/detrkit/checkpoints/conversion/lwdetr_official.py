"""LW-DETR in the official format (Atten4Vis/LW-DETR): entry names and training arguments.

The rules for everything but the backbone are shared by RF-DETR, whose code derives from LW-DETR's. The tables of all query
groups are one matrix there, and those of positions begin with the position of the class token.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from detrkit.checkpoints.conversion import detr_official
from detrkit.checkpoints.conversion.deformable_detr_official import ATTENTION_PROJECTIONS
from detrkit.checkpoints.conversion.detr_official import DECODER, DECODER_LAYER
from detrkit.checkpoints.conversion.foundation_fields import count_groups
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
from detrkit.errors import CheckpointError, arg

computed_entries = detr_official.computed_entries
PREFIX = "backbone.0."


def projector_rules(
    own: str = "neck.projection.levels.{n}.",
    *,
    fuse: str,
    parts: Sequence[str],
    norm: str,
    sampler: str | None = None,
    conv_norm: Sequence[tuple[str, str]],
) -> list[Rule]:
    """Return rules for the projector.

    Args:
        own: prefix of a level in detrkit.
        fuse: prefix of its `C2f` in the other format.
        parts: names there of its first and last convolution, and of the first and second one of its blocks.
        norm: name there of the level's norm.
        sampler: prefix there of what resamples the maps; None for none.
        conv_norm: names of the parts of a `ConvNorm` in detrkit and there.
    """
    own_parts = ("conv1.", "conv2.", "blocks.{n}.0.", "blocks.{n}.1.")
    own_sampler = f"{own}samplers.{{n}}.{{n}}."
    blocks = [(f"{own}fuse.{mine}", fuse + theirs) for mine, theirs in zip(own_parts, parts, strict=True)]
    blocks += [] if sampler is None else [(own_sampler, sampler)]
    rules = [(mine + part, theirs + name) for mine, theirs in blocks for part, name in conv_norm]
    return [*rules, *([] if sampler is None else [(own_sampler, sampler)]), (f"{own}norm.", norm)]


PROJECTOR_RULES = projector_rules(
    fuse=f"{PREFIX}projector.stages.{{n}}.0.",
    parts=("cv1.", "cv2.", "m.{n}.cv1.", "m.{n}.cv2."),
    norm=f"{PREFIX}projector.stages.{{n}}.1.",
    sampler=f"{PREFIX}projector.stages_sampling.{{n}}.{{n}}.{{n}}.",
    conv_norm=(("convolution.", "conv."), ("norm.", "bn.")),
)
# of the decoder, the heads and the selection of queries
TRANSFORMER_RULES: list[Rule] = [
    ("decoder.layers.{n}.self_attention.output_projection.", f"{DECODER_LAYER}self_attn.out_proj."),
    ("decoder.layers.{n}.self_attention.", f"{DECODER_LAYER}self_attn."),
    ("decoder.layers.{n}.self_attention_residual.norm.", f"{DECODER_LAYER}norm1."),
    *(
        (f"decoder.layers.{{n}}.cross_attention.{own}", f"{DECODER_LAYER}cross_attn.{name}")
        for own, name in ATTENTION_PROJECTIONS.items()
    ),
    ("decoder.layers.{n}.cross_attention_residual.norm.", f"{DECODER_LAYER}norm2."),
    ("decoder.layers.{n}.feed_forward.expand.", f"{DECODER_LAYER}linear1."),
    ("decoder.layers.{n}.feed_forward.contract.", f"{DECODER_LAYER}linear2."),
    ("decoder.layers.{n}.feed_forward_residual.norm.", f"{DECODER_LAYER}norm3."),
    ("decoder.norm.", f"{DECODER}norm."),
    *mlp_rules("decoder.query_position_encoding.position_head.", f"{DECODER}ref_point_head."),
    ("query_source.groups.{n}.memory_projection.", "transformer.enc_output.{n}."),
    ("query_source.groups.{n}.memory_norm.", "transformer.enc_output_norm.{n}."),
    ("query_source.groups.{n}.class_head.", "transformer.enc_out_class_embed.{n}."),
    *mlp_rules("query_source.groups.{n}.box_head.", "transformer.enc_out_bbox_embed.{n}.", num_layers=3),
    ("query_source.content", "query_feat.weight"),
    ("query_source.box_deltas", "refpoint_embed.weight"),
    ("heads.class_head.", "class_embed."),
    *mlp_rules("heads.box_head.", "bbox_embed.", num_layers=3),
]
_BLOCK, _OTHER_BLOCK = "backbone.blocks.{n}.", f"{PREFIX}encoder.blocks.{{n}}."
_RULES: list[Rule] = [
    ("backbone.patch_embedding.", f"{PREFIX}encoder.patch_embed.proj."),
    ("backbone.positions", f"{PREFIX}encoder.pos_embed"),
    (f"{_BLOCK}attention_norm.", f"{_OTHER_BLOCK}norm1."),
    (f"{_BLOCK}attention.query_projection.bias", f"{_OTHER_BLOCK}attn.q_bias"),
    (f"{_BLOCK}attention.value_projection.bias", f"{_OTHER_BLOCK}attn.v_bias"),
    (f"{_BLOCK}attention.output_projection.", f"{_OTHER_BLOCK}attn.proj."),
    (f"{_BLOCK}attention.", f"{_OTHER_BLOCK}attn."),
    (f"{_BLOCK}attention_scale", f"{_OTHER_BLOCK}gamma_1"),
    (f"{_BLOCK}feed_forward_norm.", f"{_OTHER_BLOCK}norm2."),
    (f"{_BLOCK}feed_forward.expand.", f"{_OTHER_BLOCK}mlp.fc1."),
    (f"{_BLOCK}feed_forward.contract.", f"{_OTHER_BLOCK}mlp.fc2."),
    (f"{_BLOCK}feed_forward_scale", f"{_OTHER_BLOCK}gamma_2"),
    *PROJECTOR_RULES,
    *TRANSFORMER_RULES,
]
_WINDOWS = 4  # on each side
DEFAULT_BLOCKS = 12
_QKV, _IN_PROJ = ".attn.qkv.weight", ".attn.in_proj_weight"  # query, key and value in one matrix


def matches(names: Collection[str]) -> bool:
    """Return whether entries are those of an official LW-DETR."""
    return f"{PREFIX}encoder.blocks.0.attn.q_bias" in names and "refpoint_embed.weight" in names


def to_detrkit(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename official entries to detrkit's."""
    packed = {name.replace(_QKV, _IN_PROJ): tensor for name, tensor in without_step_counters(state).items()}
    return split_tables(rename_to_detrkit(split_in_proj(packed), _RULES))


def from_detrkit(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename detrkit's entries to the official ones."""
    packed = merge_in_proj(rename_from_detrkit(merge_tables(state), _RULES))
    return {
        name.replace(_IN_PROJ, _QKV) if name.startswith(PREFIX) else name: tensor for name, tensor in packed.items()
    }


def split_tables(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Split the tables of positions and of query groups, whose names are detrkit's already."""
    split = dict(state)
    groups = count_groups(state)
    for name in ("query_source.content", "query_source.box_deltas"):
        split[name] = split[name].unflatten(0, (groups, -1))
    table = split["backbone.positions"][0]
    side = round((len(table) - 1) ** 0.5)
    split["backbone.class_position"], split["backbone.positions"] = table[0], table[1:].unflatten(0, (side, -1))
    return split


def merge_tables(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Merge the tables of positions and of query groups; the inverse of `split_tables`."""
    merged = {name: tensor for name, tensor in state.items() if name != "backbone.class_position"}
    for name in ("query_source.content", "query_source.box_deltas"):
        merged[name] = merged[name].flatten(0, 1)
    table = torch.cat([state["backbone.class_position"][None], state["backbone.positions"].flatten(0, 1)])
    merged["backbone.positions"] = table[None]
    return merged


def fields_from_args(args: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of `ModelConfig` that training arguments hold and the weights do not show."""
    fields = common_fields(args)
    after, windowed = args.get("out_feature_indexes") or [-1], args.get("window_block_indexes")
    if min(after) >= 0 and windowed is not None:  # -1 for unset
        blocks = range(args.get("vit_encoder_num_layers", DEFAULT_BLOCKS))
        fields["out_layers"] = tuple(block + 1 for block in after)
        fields["global_layers"] = tuple(block for block in blocks if block not in windowed)
    return fields


def common_fields(args: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of `fields_from_args` that RF-DETR's arguments hold, too."""
    names = {
        "sa_nheads": "num_heads",
        "ca_nheads": "cross_attention_heads",
        "dropout": "dropout",
        "drop_path": "drop_path",
    }
    fields = {field: args[name] for name, field in names.items() if args.get(name) is not None}
    if (count := args.get("num_select")) is not None:
        fields["max_detections"] = count
    return fields


def args_from_config(config: ModelConfig) -> dict[str, Any]:
    """Return what the weights do not show as arguments of the official training script.

    Raises:
        CheckpointError: the official code has another number of windows.
    """
    if config.num_windows != _WINDOWS:
        raise CheckpointError(
            f"the model has {config.num_windows} x {config.num_windows} windows, the official code of LW-DETR {_WINDOWS} x "
            f"{_WINDOWS}; use {arg('to', 'detrkit')}"
        )
    return {
        **common_args(config),
        "out_feature_indexes": [layer - 1 for layer in config.out_layers],
    }


def common_args(config: ModelConfig) -> dict[str, Any]:
    """Return the arguments that RF-DETR's code has, too."""
    return {
        "vit_encoder_num_layers": config.backbone_layers,
        "window_block_indexes": [one for one in range(config.backbone_layers) if one not in config.global_layers],
        "sa_nheads": config.num_heads,
        "ca_nheads": config.cross_attention_heads or config.num_heads,
        "dropout": config.dropout,
        "drop_path": config.drop_path,
        "num_select": config.max_detections,
        "num_queries": config.num_queries,
        "group_detr": config.group_detr,
    }


def fields_from_state(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return no fields of `ModelConfig`: what official entries show, detrkit's show, too."""
    return {}
