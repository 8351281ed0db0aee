"""Table of conversions: one module per architecture and format.

A module of `OFFICIAL` is named ``<architecture>_official`` and provides the functions of `OfficialConversion`; a module of
`HUGGINGFACE` is named ``<architecture>_huggingface`` and provides those of `HuggingFaceConversion`.
"""

from collections.abc import Collection, Mapping
from typing import Any, Literal, Protocol, runtime_checkable

from torch import Tensor

from detrkit.checkpoints.conversion import (
    conditional_detr_huggingface,
    conditional_detr_official,
    dab_detr_huggingface,
    dab_detr_official,
    deformable_detr_huggingface,
    deformable_detr_official,
    deimv2_huggingface,
    deimv2_official,
    detr_huggingface,
    detr_official,
    dfine_huggingface,
    dfine_official,
    lwdetr_huggingface,
    lwdetr_official,
    rfdetr_huggingface,
    rfdetr_official,
    rtdetr_huggingface,
    rtdetr_official,
    rtdetrv2_huggingface,
    rtdetrv2_official,
    table_transformer_huggingface,
)
from detrkit.checkpoints.conversion.architectures import Architecture
from detrkit.config.model import ModelConfig


@runtime_checkable
class OfficialConversion(Protocol):
    """Names in the code of an architecture's authors."""

    def matches(self, names: Collection[str]) -> bool:
        """Return whether entries with these names are of this architecture and format."""

    def to_detrkit(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rename entries to detrkit's; raises `CheckpointError` if one has no counterpart."""

    def from_detrkit(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rename detrkit's entries."""

    def fields_from_args(self, args: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields of `ModelConfig` that training arguments hold and the weights do not show."""

    def args_from_config(self, config: ModelConfig) -> dict[str, Any]:
        """Return what the weights do not show as training arguments."""

    def fields_from_state(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Return the fields of `ModelConfig` that entries in these names show, and detrkit's do not."""

    def computed_entries(self, config: ModelConfig) -> dict[str, Tensor]:
        """Return entries of official files that are no weights."""


@runtime_checkable
class HuggingFaceConversion(Protocol):
    """Names in Hugging Face's transformers."""

    MODEL_TYPE: str
    MODEL_CLASS: str
    IMAGE_PROCESSOR: str

    def matches(self, names: Collection[str]) -> bool:
        """Return whether entries with these names are of this architecture and format."""

    def to_detrkit(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rename entries to detrkit's; raises `CheckpointError` if one has no counterpart."""

    def from_detrkit(self, state: Mapping[str, Tensor], native_backbone: bool = False) -> dict[str, Tensor]:
        """Rename detrkit's entries; `native_backbone` names the backbone as transformers' own ResNet, not timm's."""

    def fields_from_config(self, content: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields of `ModelConfig` that ``config.json`` holds and the weights do not show."""

    def config_fields(self, config: ModelConfig) -> dict[str, Any]:
        """Return the architecture's own fields of ``config.json``."""

    def computed_entries(self, config: ModelConfig) -> dict[str, Tensor]:
        """Return entries of files that are no weights."""


OFFICIAL: dict[Architecture, OfficialConversion] = {
    "lwdetr": lwdetr_official,  # these before Deformable DETR, whose attention they have
    "rfdetr": rfdetr_official,
    "detr": detr_official,
    "conditional-detr": conditional_detr_official,
    "dab-detr": dab_detr_official,
    "deformable-detr": deformable_detr_official,
    "rtdetr": rtdetr_official,
    "rtdetrv2": rtdetrv2_official,
    "deimv2": deimv2_official,  # before D-FINE, whose entries it has, too
    "dfine": dfine_official,
}
# the pre-norm variant of DETR is an architecture of its own there
HUGGINGFACE: dict[Architecture | Literal["table-transformer"], HuggingFaceConversion] = {
    "table-transformer": table_transformer_huggingface,  # before DETR, whose entries it has, too
    "detr": detr_huggingface,
    "conditional-detr": conditional_detr_huggingface,
    "dab-detr": dab_detr_huggingface,
    "rtdetr": rtdetr_huggingface,  # these also before Deformable DETR, whose attention they have
    "rtdetrv2": rtdetrv2_huggingface,
    "deimv2": deimv2_huggingface,  # before D-FINE, as above
    "dfine": dfine_huggingface,
    "deformable-detr": deformable_detr_huggingface,
    "lwdetr": lwdetr_huggingface,
    "rfdetr": rfdetr_huggingface,
}


def official_conversion(names: Collection[str]) -> OfficialConversion | None:
    """Return the conversion for official entries with these names, or None if they are not official."""
    return next((conversion for conversion in OFFICIAL.values() if conversion.matches(names)), None)


def huggingface_conversion(names: Collection[str]) -> HuggingFaceConversion | None:
    """Return the conversion for Hugging Face's entries with these names, or None if they are not theirs."""
    return next((conversion for conversion in HUGGINGFACE.values() if conversion.matches(names)), None)
