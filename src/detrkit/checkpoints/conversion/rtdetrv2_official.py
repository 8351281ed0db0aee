"""RT-DETRv2 in the official format (lyuwenyu/RT-DETR, `rtdetrv2_pytorch`; also DEIM's); other entries are as in RT-DETR."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from detrkit.checkpoints.conversion import rtdetr_official
from detrkit.checkpoints.conversion.key_mapping import Rule
from detrkit.checkpoints.conversion.realtime_fields import point_scales
from detrkit.checkpoints.conversion.rtdetr_official import (
    CSP_FUSION_RULES,
    DECODER_RULES,
    ENCODER_RULES,
    INPUT_PROJECTION_RULES,
    RESNET_VD_RULES,
    SELECTION_RULES,
)
from detrkit.config.model import ModelConfig
from detrkit.models.feature_maps import FeatureMaps
from detrkit.models.queries.two_stage import generate_anchors

_RULES: list[Rule] = [
    *RESNET_VD_RULES,
    *INPUT_PROJECTION_RULES,
    *ENCODER_RULES,
    *CSP_FUSION_RULES,
    *DECODER_RULES,
    *SELECTION_RULES,
]
fields_from_args, args_from_config = rtdetr_official.fields_from_args, rtdetr_official.args_from_config


def matches(names: Collection[str]) -> bool:
    """Return whether entries are those of an official RT-DETRv2."""
    return rtdetr_official.matches_v2(names)


def to_detrkit(state: Mapping[str, Tensor], rules: Iterable[Rule] = _RULES) -> dict[str, Tensor]:
    """Rename official entries to detrkit's; `rules` are those of a derived architecture."""
    return rtdetr_official.to_detrkit(state, rules)


def from_detrkit(state: Mapping[str, Tensor], rules: Iterable[Rule] = _RULES) -> dict[str, Tensor]:
    """Rename detrkit's entries to the official ones; `rules` as above."""
    return rtdetr_official.from_detrkit(state, rules)


def fields_from_state(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the fields of `ModelConfig` that only official entries show: also the sampling points on each map."""
    scales = state["decoder.decoder.layers.0.cross_attn.num_points_scale"]
    points = {"points_per_level": _points_per_level(scales), "num_points": ModelConfig().num_points}  # which is unused
    return {**rtdetr_official.fields_from_state(state), **points}


def computed_entries(config: ModelConfig) -> dict[str, Tensor]:
    """Return the entries of official files that are no weights: anchors, and the unit of sampling offsets."""
    scales = point_scales(config, "decoder.decoder.layers.{layer}.cross_attn.num_points_scale")
    return {**_anchors(config), **scales}


def _points_per_level(scales: Tensor) -> tuple[int, ...]:
    """Return the number of sampling points on each map; the unit of their offsets is divided by it."""
    points: list[int] = []
    while sum(points) < len(scales):
        points.append(round(1 / float(scales[sum(points)])))
    return tuple(points)


def _anchors(config: ModelConfig) -> dict[str, Tensor]:
    """Compute the anchors of the cells of square images, whose logits are infinite where they are invalid."""
    side = config.published_side or 640
    sizes = tuple((side // stride, side // stride) for stride in config.strides)
    num_cells = sum(height * width for height, width in sizes)
    maps = FeatureMaps(torch.zeros(1, num_cells, 1), torch.zeros(1, num_cells, 1), None, sizes)
    anchors, is_valid = generate_anchors(maps)
    is_valid = is_valid[..., None]
    return {"decoder.anchors": anchors.masked_fill(~is_valid, torch.inf), "decoder.valid_mask": is_valid}
