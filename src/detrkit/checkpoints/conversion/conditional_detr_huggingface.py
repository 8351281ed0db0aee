"""Conditional DETR in Hugging Face's format; other entries are named as in DETR."""

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from detrkit.checkpoints.conversion import detr_huggingface
from detrkit.checkpoints.conversion.conditional_detr_official import ATTENTION_PROJECTIONS
from detrkit.checkpoints.conversion.detr_huggingface import DECODER, DECODER_LAYER
from detrkit.checkpoints.conversion.key_mapping import Rule, mlp_rules
from detrkit.config.model import ModelConfig

MODEL_TYPE = "conditional_detr"
MODEL_CLASS = "ConditionalDetrForObjectDetection"
IMAGE_PROCESSOR = "ConditionalDetrImageProcessor"


def _live_name(official: str) -> str:
    """Return a projection's name in a live model: ``sa_qcontent_proj`` is ``self_attn.q_content_proj`` there."""
    attention, _, projection = official.partition("_")
    for letter in "qk":
        projection = projection.replace(f"{letter}content", f"{letter}_content").replace(
            f"{letter}pos", f"{letter}_pos"
        )
    return f"{'self_attn' if attention == 'sa' else 'encoder_attn'}.{projection}"


_PROJECTIONS = [(f"decoder.layers.{{n}}.{detrkit}", other) for detrkit, other in ATTENTION_PROJECTIONS.items()]
_RULES: list[Rule] = [
    *((detrkit, DECODER_LAYER + other) for detrkit, other in _PROJECTIONS),
    *((detrkit, DECODER_LAYER + _live_name(other)) for detrkit, other in _PROJECTIONS),
    *mlp_rules("decoder.query_position_encoding.content_scale.", f"{DECODER}query_scale."),
    *mlp_rules("query_source.point_head.", f"{DECODER}ref_point_head."),
]


def matches(names: Collection[str]) -> bool:
    """Return whether entries are those of Hugging Face's Conditional DETR."""
    projections = [f"model.decoder.layers.0.{name}" for name in ("ca_qcontent_proj.", "encoder_attn.q_content_proj.")]
    return any(projection in name for name in names for projection in projections)


def to_detrkit(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename Hugging Face's entries to detrkit's."""
    return detr_huggingface.to_detrkit(state, _RULES)


def from_detrkit(state: Mapping[str, Tensor], native_backbone: bool = False) -> dict[str, Tensor]:
    """Rename detrkit's entries to those of Hugging Face's files."""
    return detr_huggingface.from_detrkit(state, native_backbone, _RULES)


def fields_from_config(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of `ModelConfig` that ``config.json`` holds and the weights do not show."""
    return detr_huggingface.fields_from_config(content)


def config_fields(config: ModelConfig) -> dict[str, Any]:
    """Return the architecture's own fields of ``config.json``."""
    return detr_huggingface.config_fields(config)


computed_entries = detr_huggingface.computed_entries
