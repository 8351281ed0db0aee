"""RT-DETRv2 in Hugging Face's format; other entries are named as in RT-DETR."""

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from detrkit.checkpoints.conversion import rtdetr_huggingface
from detrkit.checkpoints.conversion.realtime_fields import point_scales
from detrkit.config.model import ModelConfig

MODEL_TYPE = "rt_detr_v2"
MODEL_CLASS = "RTDetrV2ForObjectDetection"
IMAGE_PROCESSOR = "RTDetrImageProcessor"


def matches(names: Collection[str]) -> bool:
    """Return whether entries are those of Hugging Face's RT-DETRv2."""
    is_v2 = rtdetr_huggingface.has_selection(names) and rtdetr_huggingface.is_v2(names)
    return is_v2 and not rtdetr_huggingface.is_dfine(names)


def to_detrkit(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename Hugging Face's entries to detrkit's."""
    return rtdetr_huggingface.to_detrkit(state)


def from_detrkit(state: Mapping[str, Tensor], native_backbone: bool = False) -> dict[str, Tensor]:
    """Rename detrkit's entries to those of Hugging Face's files."""
    return rtdetr_huggingface.with_repeated_heads(rtdetr_huggingface.from_detrkit(state))


def fields_from_config(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of `ModelConfig` that ``config.json`` holds and the weights do not show."""
    return {
        **rtdetr_huggingface.fields_from_config(content),
        "points_per_level": rtdetr_huggingface.points_per_level(content),
        "num_points": ModelConfig().num_points,  # unused
        "sampling": "discrete" if content.get("decoder_method") == "discrete" else "bilinear",
    }


def config_fields(config: ModelConfig) -> dict[str, Any]:
    """Return the architecture's own fields of ``config.json``."""
    return {
        **rtdetr_huggingface.config_fields(config),
        "decoder_n_points": config.sampling_points[0],
        "decoder_n_levels": config.num_feature_levels,
        "decoder_method": "discrete" if config.sampling == "discrete" else "default",
    }


def computed_entries(config: ModelConfig) -> dict[str, Tensor]:
    """Return the entries of files that are no weights: the units of the sampling offsets."""
    return point_scales(config, "model.decoder.layers.{layer}.encoder_attn.n_points_scale")
