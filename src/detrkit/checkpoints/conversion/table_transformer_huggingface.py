"""Table Transformer in Hugging Face's format: a DETR with pre-norm layers, whose encoder ends with a norm.

Entries are named as in files of DETR, also in live models. The published models detect tables, and their structure, with a
ResNet-18.
"""

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from detrkit.checkpoints.conversion import detr_huggingface
from detrkit.checkpoints.conversion.key_mapping import Rule
from detrkit.config.model import ModelConfig

MODEL_TYPE = "table-transformer"
MODEL_CLASS = "TableTransformerForObjectDetection"
IMAGE_PROCESSOR = "DetrImageProcessor"

_RULES: list[Rule] = [
    ("encoder.norm.", "model.encoder.layernorm."),
    ("neck.positions.rows.", "model.backbone.position_embedding.row_embeddings."),
    ("neck.positions.columns.", "model.backbone.position_embedding.column_embeddings."),
]


def matches(names: Collection[str]) -> bool:
    """Return whether entries are those of Hugging Face's Table Transformer."""
    return "model.encoder.layernorm.weight" in names and detr_huggingface.matches(names)


def to_detrkit(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename Hugging Face's entries to detrkit's; raises `CheckpointError` if one has no counterpart."""
    return detr_huggingface.to_detrkit(state, _RULES)


def from_detrkit(state: Mapping[str, Tensor], native_backbone: bool = False) -> dict[str, Tensor]:
    """Rename detrkit's entries to those of Hugging Face's files."""
    return detr_huggingface.from_detrkit(state, native_backbone, _RULES)


def fields_from_config(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of `ModelConfig` that ``config.json`` holds and the weights do not show."""
    return {**detr_huggingface.fields_from_config(content), "pre_norm": True}


def config_fields(config: ModelConfig) -> dict[str, Any]:
    """Return the architecture's own fields of ``config.json``."""
    return {"d_model": config.hidden_dim, "auxiliary_loss": False}


computed_entries = detr_huggingface.computed_entries
