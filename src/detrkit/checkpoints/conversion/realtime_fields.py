"""Model configuration of RT-DETR, RT-DETRv2, D-FINE, DEIMv2 and other descendants from weights.

Published values stand in for what the weights do not show: the activation (DEIM's weights have the names and shapes of
D-FINE's and RT-DETRv2's), how norms of the backbone were trained, discrete sampling.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from detrkit.config.model import ModelConfig

# what all of them have in common
REALTIME_FIELDS: dict[str, Any] = {
    "encoder": "hybrid",
    "decoder": "deformable",
    "queries": "selected",
    "class_scores": "sigmoid",
    "with_box_refine": True,
    "layerwise_heads": True,
    "max_detections": 300,
}
_FROZEN: dict[str, Any] = {"backbone_normalization": "frozen", "frozen_backbone_stages": 1}
_TRAINED: dict[str, Any] = {"backbone_normalization": "batch", "frozen_backbone_stages": 0}
_FROZEN_BACKBONES = ("resnet50-vd", "resnet101-vd", "hgnetv2-b4", "hgnetv2-b5", "hgnetv2-b6")
_NUM_QUERIES = 300
_DEIMV2_NUM_QUERIES = {64: 100, 96: 150, 112: 200}  # by width
_PUBLISHED_EXPANSIONS = (1.0, 0.5, 0.34)  # of D-FINE, whose widths are rounded
_PUBLISHED_POINTS = {2: (6, 6), 3: (3, 6, 3)}  # of D-FINE
_LITE_POINTS = (4, 2)


def realtime_fields(state: Mapping[str, Tensor], num_heads: int) -> dict[str, Any]:
    """Read the fields of `ModelConfig` that weights in detrkit's names show."""
    levels = count_modules(state, "neck.projection.levels") + _is_lite(state)
    return {
        "num_queries": _NUM_QUERIES,
        "dropout": 0.0,
        "num_feature_levels": levels,
        **_encoder_fields(state),
        **_decoder_fields(state, num_heads, levels),
    }


def deimv2_fields(state: Mapping[str, Tensor], num_heads: int) -> dict[str, Any]:
    """Read the fields of `ModelConfig` that weights of DEIMv2 in detrkit's names show."""
    is_projected = "query_source.memory_projection.weight" in state  # in the variant of transformers, which has ReLUs
    width = state["heads.class_head.0.weight"].shape[1]
    return {
        **realtime_fields(state, num_heads),
        "num_queries": _DEIMV2_NUM_QUERIES.get(width, _NUM_QUERIES) if _is_lite(state) else _NUM_QUERIES,
        "activation": "relu" if is_projected else "silu",
        "cross_attention_gate": "decoder.layers.0.cross_attention_residual.gate.weight" in state,
        "shared_box_head": "heads.box_head.0.weight" in state,
        "selection_projection": is_projected,
        "layerwise_query_positions": is_projected,
    }


def count_modules(state: Mapping[str, Tensor], name: str) -> int:
    """Count the numbered modules of a name."""
    start = name + "."
    return len({entry.removeprefix(start).split(".")[0] for entry in state if entry.startswith(start)})


def published_backbone_fields(backbone: str) -> dict[str, Any]:
    """Return whether the published training of a backbone kept its norms and stem frozen."""
    return _FROZEN if backbone in _FROZEN_BACKBONES else _TRAINED


def point_scales(config: ModelConfig, name: str) -> dict[str, Tensor]:
    """Return entries of published files that are no weights: the units of the sampling offsets of every decoder layer.

    Args:
        config: of the model.
        name: of an entry, with "{layer}".
    """
    scales = torch.tensor([1 / count for count in config.sampling_points for _ in range(count)])
    return {name.format(layer=layer): scales.clone() for layer in range(config.decoder_layers)}


def _encoder_fields(state: Mapping[str, Tensor]) -> dict[str, Any]:
    width = state["neck.projection.levels.0.convolution.weight"].shape[0]
    decoder_width = state["heads.class_head.0.weight"].shape[1]
    decoder_feed_forward = state["decoder.layers.0.feed_forward.expand.weight"].shape[0]
    expand = state.get("encoder.attention.0.layers.0.feed_forward.expand.weight")
    feed_forward = decoder_feed_forward if expand is None else expand.shape[0]
    teacher = state.get("encoder.teacher_projection.weight")
    is_elan = "encoder.top_down.0.csp1.conv1.convolution.weight" in state
    is_packed = is_elan and "encoder.top_down.0.csp1.conv2.convolution.weight" not in state
    csp = "encoder.top_down.0." + ("csp1." if is_elan else "")
    hidden = state[f"{csp}conv1.convolution.weight"].shape[0] // (2 if is_packed else 1)
    added = "lite" if _is_lite(state) else "rep_ncsp_elan_sum"
    return {
        "encoder_dim": None if width == decoder_width else width,
        "encoder_layers": count_modules(state, "encoder.attention.0.layers"),
        "attention_levels": max(1, count_modules(state, "encoder.attention")),
        "encoder_dim_feedforward": None if feed_forward == decoder_feed_forward else feed_forward,
        "fusion_block": added if is_packed else "rep_ncsp_elan" if is_elan else "csp_rep",
        "fusion_depth": count_modules(state, f"{csp}blocks"),
        "fusion_expansion": _expansion(hidden, width, is_elan),
        "memory_projection": not is_elan and "encoder.output_projection.0.convolution.weight" in state,
        "distillation_dim": None if teacher is None else teacher.shape[0],
    }


def _expansion(hidden: int, width: int, is_elan: bool) -> float:
    """Return the inner width of the fusing blocks relative to the outer one: the published number if it fits."""
    fitting = (one for one in _PUBLISHED_EXPANSIONS if is_elan and round(one * width // 2) == hidden)
    return next(fitting, (2 if is_elan else 1) * hidden / width)


def _decoder_fields(state: Mapping[str, Tensor], num_heads: int, levels: int) -> dict[str, Any]:
    layers = count_modules(state, "decoder.layers")
    weights = state["decoder.layers.0.cross_attention.weight_projection.weight"]
    position_layers = sum(
        name.startswith("decoder.query_position_encoding.position_head.") and name.endswith("weight") for name in state
    )
    # DEIM's RT-DETRv2 has three layers and no ReLU; only RT-DETRv4, which has no ReLU either, learns from a teacher
    is_silu = position_layers == 3 or "encoder.teacher_projection.weight" in state
    fields: dict[str, Any] = {
        "activation": "silu" if is_silu else "relu",
        "query_position_layers": position_layers,
    }
    scale = state.get("heads.bins.reg_scale")
    if scale is None:
        fields["num_points"] = len(weights) // (num_heads * levels)
    else:
        fields |= {
            "reg_max": _edge_outputs(state) // 4 - 1,
            "reg_scale": float(scale),
            "points_per_level": _LITE_POINTS if _is_lite(state) else _PUBLISHED_POINTS.get(levels),
        }
    is_r50_m = "backbone.body.layer1.2.conv3.weight" in state and layers == 6 and _is_narrow(state)
    return {**fields, "eval_decoder_layers": 3 if is_r50_m else None}


def _is_lite(state: Mapping[str, Tensor]) -> bool:
    """Return whether a coarser map is pooled from the backbone's last one, as in the smallest variants of DEIMv2."""
    return "neck.projection.context.convolution.weight" in state


def _edge_outputs(state: Mapping[str, Tensor]) -> int:
    """Return the number of outputs of the box heads."""
    shared = state.get("heads.box_head.4.weight")
    return len(state["heads.box_head.0.4.weight"] if shared is None else shared)


def _is_narrow(state: Mapping[str, Tensor]) -> bool:
    """Return whether the fusing blocks have half the width: of the variants with a ResNet-50, only RT-DETR-R50-M's."""
    return "encoder.top_down.0.conv3.convolution.weight" in state and "heads.bins.up" not in state
