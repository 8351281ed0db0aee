"""DEIMv2 with an HGNetV2 in the official format (Intellindust-AI-Lab/DEIMv2); other entries are named as in D-FINE.

Variants with a DINOv3 are refused: weights that derive from DINOv3 have a licence of their own.
"""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from detrkit.checkpoints.conversion import dfine_official
from detrkit.checkpoints.conversion.key_mapping import Rule
from detrkit.checkpoints.conversion.rtdetr_official import conv_norm_rules
from detrkit.errors import CheckpointError
from detrkit.models.presets_refused import DINOV3_LICENCE

_LAYER, _OTHER = "decoder.layers.{n}.", "decoder.decoder.layers.{n}."
_NUMBERED = (("convolution.", "1."), ("norm.", "2."))  # after the pooling
_CONTEXT = "neck.projection.context.convolution.weight"  # only in Atto, Femto and Pico
_BOX_HEAD = "heads.box_head."
_LITE_RULES: list[Rule] = [
    *conv_norm_rules("neck.projection.downsample.pointwise.", "encoder.down_sample1.", _NUMBERED),
    *conv_norm_rules("neck.projection.context.", "encoder.bi_fusion.cv."),
    *conv_norm_rules("encoder.downsample.0.pointwise.", "encoder.down_sample2.", _NUMBERED),
    *dfine_official.elan_rules("encoder.top_down.0.", "encoder.fpn_block.", dfine_official.ELAN_NAMES),
    *dfine_official.elan_rules("encoder.bottom_up.0.", "encoder.pan_block.", dfine_official.ELAN_NAMES),
]
_DECODER_RULES: list[Rule] = [
    (f"{_LAYER}self_attention_residual.norm.weight", f"{_OTHER}norm1.scale"),
    (f"{_LAYER}feed_forward.expand.", f"{_OTHER}swish_ffn.w12."),
    (f"{_LAYER}feed_forward.contract.", f"{_OTHER}swish_ffn.w3."),
    (f"{_LAYER}feed_forward_residual.norm.weight", f"{_OTHER}norm3.scale"),
]
_CROSS_ATTENTION_NORM = f"{_LAYER}cross_attention_residual.norm.weight"
fields_from_args, args_from_config = dfine_official.fields_from_args, dfine_official.args_from_config
fields_from_state, computed_entries = dfine_official.fields_from_state, dfine_official.computed_entries


def matches(names: Collection[str]) -> bool:
    """Return whether entries are those of an official DEIMv2."""
    return "decoder.decoder.layers.0.swish_ffn.w12.weight" in names


def to_detrkit(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename official entries to detrkit's.

    Raises:
        CheckpointError: an entry has no counterpart, or the backbone is a DINOv3.
    """
    if any(name.startswith(("backbone.dinov3.", "backbone.sta.")) for name in state):
        raise CheckpointError(f"checkpoint: is a DEIMv2 that is not included: {DINOV3_LICENCE}")
    is_lite = any(name.startswith("encoder.bi_fusion.") for name in state)
    is_gated = any(".gateway." in name for name in state)
    renamed = dfine_official.to_detrkit(state, _rules(is_lite, is_gated))
    return share_box_head(renamed) if is_lite else renamed


def from_detrkit(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename detrkit's entries to the official ones."""
    is_gated = "decoder.layers.0.cross_attention_residual.gate.weight" in state
    rules = _rules(_CONTEXT in state, is_gated)
    return dfine_official.from_detrkit(repeat_box_head(state), rules)


def share_box_head(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Keep one box head if those of all layers are equal; files of safetensors hold equal ones once."""
    others = {name: tensor for name, tensor in state.items() if not name.startswith(_BOX_HEAD)}
    by_layer: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        if name.startswith(_BOX_HEAD):
            layer, _, rest = name.removeprefix(_BOX_HEAD).partition(".")
            by_layer.setdefault(layer, {})[rest] = tensor
    first, *further = by_layer.values()
    if any(not torch.equal(one[rest], tensor) for one in further for rest, tensor in first.items()):
        return dict(state)
    return {**others, **{f"{_BOX_HEAD}{rest}": tensor for rest, tensor in first.items()}}


def repeat_box_head(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Repeat a box head that all layers share for each of them; the inverse of `share_box_head`."""
    if f"{_BOX_HEAD}0.weight" not in state:
        return dict(state)
    layers = range(len({name.split(".")[2] for name in state if name.startswith("heads.class_head.")}))
    repeated: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.startswith(_BOX_HEAD):
            repeated |= {f"{_BOX_HEAD}{layer}.{name.removeprefix(_BOX_HEAD)}": tensor for layer in layers}
        else:
            repeated[name] = tensor
    return repeated


def _rules(is_lite: bool, is_gated: bool) -> list[Rule]:
    norm = f"{_OTHER}gateway.norm.scale" if is_gated else f"{_OTHER}norm2.scale"
    own = [*(_LITE_RULES if is_lite else []), (_CROSS_ATTENTION_NORM, norm), *_DECODER_RULES]
    return [*own, *dfine_official.RULES_WITHOUT_SELECTION]
