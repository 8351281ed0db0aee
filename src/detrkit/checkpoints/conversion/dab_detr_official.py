"""DAB-DETR in the official format (IDEA-Research/DAB-DETR); other entries are named as in Conditional DETR and DETR.

The official code registers the shared box head a second time, as part of the decoder.
"""

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from detrkit.checkpoints.conversion import conditional_detr_official, detr_official
from detrkit.checkpoints.conversion.detr_official import DECODER, DECODER_LAYER, ENCODER_LAYER
from detrkit.checkpoints.conversion.key_mapping import Rule, mlp_rules
from detrkit.config.model import ModelConfig

_RULES: list[Rule] = [
    ("query_source.weight", "refpoint_embed.weight"),
    *mlp_rules("decoder.query_position_encoding.position_head.", f"{DECODER}ref_point_head."),
    *mlp_rules("decoder.query_position_encoding.size_head.", f"{DECODER}ref_anchor_head."),
    *mlp_rules("encoder.position_scale.", "transformer.encoder.query_scale."),
    ("encoder.layers.{n}.feed_forward.activation.", f"{ENCODER_LAYER}activation."),
    ("decoder.layers.{n}.feed_forward.activation.", f"{DECODER_LAYER}activation."),
    *conditional_detr_official.RULES,
]


def matches(names: Collection[str]) -> bool:
    """Return whether entries are those of an official DAB-DETR."""
    has_decoder = any("transformer.decoder.layers.0." in name for name in names)
    return has_decoder and any(name.endswith("refpoint_embed.weight") for name in names)


def to_detrkit(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename official entries to detrkit's."""
    state = {name: tensor for name, tensor in state.items() if not name.startswith(f"{DECODER}bbox_embed.")}
    return detr_official.to_detrkit(state, _RULES)


def from_detrkit(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename detrkit's entries to the official ones."""
    named = detr_official.from_detrkit(state, _RULES)
    return named | {f"{DECODER}{name}": tensor for name, tensor in named.items() if name.startswith("bbox_embed.")}


def fields_from_args(args: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of `ModelConfig` that training arguments hold and the weights do not show."""
    fields = detr_official.fields_from_args(args)
    if "pe_temperatureH" in args:
        fields["position_temperature"] = float(args["pe_temperatureH"])
    if "num_select" in args:
        fields["max_detections"] = args["num_select"]
    return fields


def args_from_config(config: ModelConfig) -> dict[str, Any]:
    """Return what the weights do not show as arguments of the official training script."""
    return {
        **detr_official.args_from_config(config),
        "pe_temperatureH": config.position_temperature,
        "num_select": config.max_detections,
    }


fields_from_state, computed_entries = detr_official.fields_from_state, detr_official.computed_entries
