"""Model configuration of LW-DETR and RF-DETR from weights.

Published values stand in for what the weights do not show: heads, windows, the blocks with global attention and those whose
features are taken. They are those of the published model whose blocks, patches and number of maps the weights have.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from detrkit.checkpoints.conversion.realtime_fields import count_modules
from detrkit.models.presets_foundation import FOUNDATION_PRESETS

FOUNDATION_FIELDS: dict[str, Any] = {
    "decoder": "deformable",
    "queries": "mixed",
    "class_scores": "sigmoid",
    "frozen_backbone_stages": 0,
    "encoder_layers": 0,
}
_HEAD_WIDTH, _CROSS_HEAD_WIDTH = 32, 16  # of all published models
_BACKBONES = {(192, False): "vit-tiny", (384, False): "vit-small", (768, False): "vit-base"}
_BACKBONES |= {(384, True): "dinov2-small", (768, True): "dinov2-base"}


def count_groups(state: Mapping[str, Tensor]) -> int:
    """Count the query groups."""
    return count_modules(state, "query_source.groups")


def foundation_fields(state: Mapping[str, Tensor], num_heads: int) -> dict[str, Any]:
    """Read the fields of `ModelConfig` that weights in detrkit's names show; `num_heads` does not matter."""
    content = state["query_source.content"]
    groups, num_queries, width = content.shape
    weights = state["decoder.layers.0.cross_attention.weight_projection.weight"]
    levels = count_modules(state, "neck.projection.levels")
    has_running_stats = "neck.projection.levels.0.fuse.conv1.norm.running_mean" in state
    return {
        "num_queries": num_queries,
        "max_detections": num_queries,
        "group_detr": groups,
        "dropout": 0.0,
        "num_heads": width // _HEAD_WIDTH,
        "cross_attention_heads": width // _CROSS_HEAD_WIDTH,
        "num_feature_levels": levels,
        "num_points": len(weights) // (width // _CROSS_HEAD_WIDTH * levels),
        "projector_norm": "batch" if has_running_stats else "layer",
        **_backbone_fields(state, levels),
    }


def vit_name(state: Mapping[str, Tensor]) -> str | None:
    """Return the name of a ViT backbone; None if it is another one."""
    weight = state.get("backbone.patch_embedding.weight")
    return None if weight is None else _BACKBONES.get((weight.shape[0], "backbone.tokens" in state))


def _backbone_fields(state: Mapping[str, Tensor], levels: int) -> dict[str, Any]:
    weight, tokens = state["backbone.patch_embedding.weight"], state.get("backbone.tokens")
    fields = {
        "backbone": vit_name(state),
        "backbone_layers": count_modules(state, "backbone.blocks"),
        "patch_size": weight.shape[-1],
        "position_grid": state["backbone.positions"].shape[0],
        "num_register_tokens": 0 if tokens is None else len(tokens) - 1,
    }
    shown = {**fields, "num_feature_levels": levels}
    published = next(
        (one for one in FOUNDATION_PRESETS.values() if all(getattr(one, name) == shown[name] for name in shown)), None
    ) or next(
        (
            one
            for one in FOUNDATION_PRESETS.values()
            if (one.backbone_layers, one.patch_size) == (fields["backbone_layers"], fields["patch_size"])
        ),
        next(iter(FOUNDATION_PRESETS.values())),
    )
    hidden = ("num_windows", "global_layers", "out_layers", "drop_path")
    return {**fields, **{name: getattr(published, name) for name in hidden}}
