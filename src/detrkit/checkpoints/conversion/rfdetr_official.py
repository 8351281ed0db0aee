"""RF-DETR in the official format (roboflow/rf-detr): entry names; the rules but those of the backbone are LW-DETR's."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from detrkit.checkpoints.conversion import lwdetr_official
from detrkit.checkpoints.conversion.key_mapping import (
    Rule,
    merge_in_proj,
    rename_from_detrkit,
    rename_to_detrkit,
    split_in_proj,
    without_step_counters,
)
from detrkit.checkpoints.conversion.lwdetr_official import PREFIX, PROJECTOR_RULES, TRANSFORMER_RULES
from detrkit.config.model import ModelConfig
from detrkit.errors import CheckpointError
from detrkit.models.heads.dot_product import MASK_STRIDE

_ENCODER = f"{PREFIX}encoder.encoder."
_EMBEDDINGS = "embeddings."
_COMPUTED = "_kp_active_mask"  # a buffer of version 1.11, empty


def dinov2_rules(other: str, attention: Mapping[str, str], layers: str = "encoder.layer.{n}.") -> list[Rule]:
    """Return rules for the backbone.

    Args:
        other: prefix of the backbone in the other format.
        attention: names of the projections of attention there.
        layers: prefix of its blocks.
    """
    block, other_block = "backbone.blocks.{n}.", other + layers
    return [
        ("backbone.patch_embedding.", f"{other}{_EMBEDDINGS}patch_embeddings.projection."),
        ("backbone.positions", f"{other}{_EMBEDDINGS}position_embeddings"),
        ("backbone.tokens", f"{other}{_EMBEDDINGS}cls_token"),
        ("backbone.mask_token", f"{other}{_EMBEDDINGS}mask_token"),
        (f"{block}attention_norm.", f"{other_block}norm1."),
        *(
            (f"{block}attention.{own}_projection.", f"{other_block}attention.{name}.")
            for own, name in attention.items()
        ),
        (f"{block}attention_scale", f"{other_block}layer_scale1.lambda1"),
        (f"{block}feed_forward_norm.", f"{other_block}norm2."),
        (f"{block}feed_forward.expand.", f"{other_block}mlp.fc1."),
        (f"{block}feed_forward.contract.", f"{other_block}mlp.fc2."),
        (f"{block}feed_forward_scale", f"{other_block}layer_scale2.lambda1"),
        ("backbone.norm.", f"{other}layernorm."),
    ]


_ATTENTION = {
    "query": "attention.query",
    "key": "attention.key",
    "value": "attention.value",
    "output": "output.dense",
}


def mask_rules(
    blocks: Sequence[str], projection: str, queries: Sequence[str], query_projection: str, bias: str
) -> list[Rule]:
    """Return rules for the mask head.

    Args:
        blocks: names in the other format of the convolution, norm and projection of its blocks.
        projection: name there of the projection of cells.
        queries: names there of the norm and of the two layers of the network of queries.
        query_projection: name there of their projection.
        bias: name there of the bias of all masks.
    """
    own_blocks = ("convolution.", "norm.", "projection.")
    own_queries = ("norm.", "mlp.0.", "mlp.2.")
    return [
        *((f"mask_head.blocks.{{n}}.{own}", other) for own, other in zip(own_blocks, blocks, strict=True)),
        ("mask_head.feature_projection.", projection),
        *((f"mask_head.query_block.{own}", other) for own, other in zip(own_queries, queries, strict=True)),
        ("mask_head.query_block.projection.", query_projection),
        ("mask_head.bias", bias),
    ]


_MASKS = "segmentation_head."
_QUERY_BLOCK = f"{_MASKS}query_features_block."
_RULES: list[Rule] = [
    *dinov2_rules(_ENCODER, _ATTENTION),
    *PROJECTOR_RULES,
    *TRANSFORMER_RULES,
    *mask_rules(
        [f"{_MASKS}blocks.{{n}}.{name}." for name in ("dwconv", "norm", "pwconv1")],
        f"{_MASKS}spatial_features_proj.",
        [f"{_QUERY_BLOCK}{name}." for name in ("norm_in", "layers.0", "layers.2")],
        f"{_MASKS}query_features_proj.",
        f"{_MASKS}bias",
    ),
]
fields_from_state, computed_entries = lwdetr_official.fields_from_state, lwdetr_official.computed_entries


def fields_from_args(args: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of `ModelConfig` that training arguments hold and the weights do not show.

    Raises:
        CheckpointError: masks have another resolution.
    """
    fields = lwdetr_official.common_fields(args)
    stride = args.get("mask_downsample_ratio", MASK_STRIDE)
    if args.get("segmentation_head") and stride != MASK_STRIDE:
        raise CheckpointError(
            f"checkpoint: its masks have a value per {stride} x {stride} pixels, expected {MASK_STRIDE} x {MASK_STRIDE}; "
            "train it with the published ones"
        )
    if (windows := args.get("num_windows")) is not None:
        fields["num_windows"] = windows
    after, windowed = args.get("out_feature_indexes") or [-1], args.get("window_block_indexes")
    if min(after) > 0:  # -1 for unset
        blocks = range(args.get("vit_encoder_num_layers", lwdetr_official.DEFAULT_BLOCKS))
        # by default block n is global if the features after n blocks are taken, which are its input
        attends = [block for block in blocks if (block in after if windowed is None else block not in windowed)]
        fields |= {"out_layers": tuple(after), "global_layers": tuple(attends)}
    return fields


def args_from_config(config: ModelConfig) -> dict[str, Any]:
    """Return what the weights do not show as arguments of the official training script."""
    return {
        **lwdetr_official.common_args(config),
        "num_windows": config.num_windows,
        "out_feature_indexes": list(config.out_layers),
        "segmentation_head": config.mask_head,
        "mask_downsample_ratio": MASK_STRIDE,
    }


def matches(names: Collection[str]) -> bool:
    """Return whether entries are those of an official RF-DETR."""
    return f"{_ENCODER}{_EMBEDDINGS}cls_token" in names and "refpoint_embed.weight" in names


def to_detrkit(state: Mapping[str, Tensor], rules: list[Rule] = _RULES) -> dict[str, Tensor]:
    """Rename official entries to detrkit's."""
    stored = {name: tensor for name, tensor in without_step_counters(state).items() if not name.endswith(_COMPUTED)}
    return split_dinov2_tables(rename_to_detrkit(split_in_proj(stored), rules))


def from_detrkit(state: Mapping[str, Tensor], rules: list[Rule] = _RULES) -> dict[str, Tensor]:
    """Rename detrkit's entries to the official ones."""
    return merge_in_proj(rename_from_detrkit(merge_dinov2_tables(state), rules))


def split_dinov2_tables(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Split tables, see `lwdetr_official.split_tables`, and remove the batch axis of tokens."""
    split = lwdetr_official.split_tables(state)
    split["backbone.tokens"], split["backbone.mask_token"] = (
        split["backbone.tokens"][0],
        split["backbone.mask_token"][0],
    )
    return split


def merge_dinov2_tables(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Undo `split_dinov2_tables`."""
    merged = lwdetr_official.merge_tables(state)
    for name in ("backbone.tokens", "backbone.mask_token"):
        merged[name] = torch.stack([merged[name]])
    return merged
