"""D-FINE, DEIM and RT-DETRv4 in the official format (Peterande/D-FINE), whose entries have the same names."""

from collections.abc import Collection, Iterable, Mapping

from torch import Tensor

from detrkit.checkpoints.conversion import rtdetrv2_official
from detrkit.checkpoints.conversion.key_mapping import Rule, mlp_rules
from detrkit.checkpoints.conversion.rtdetr_official import (
    DECODER_RULES,
    ENCODER_RULES,
    INPUT_PROJECTION_RULES,
    SELECTION_RULES,
    conv_norm_rules,
    csp_rules,
)

_HGNET_NAMES = (("convolution.", "conv."), ("norm.", "bn."), ("affine.", "lab."))
_LAYER = "blocks.{n}.layers.{n}."
_ELAN_CONVOLUTIONS = ("conv1.", "conv2.", "conv3.", "conv4.")
ELAN_NAMES = {
    "conv1.": "cv1.",
    "csp1.": "cv2.0.",
    "conv2.": "cv2.1.",
    "csp2.": "cv3.0.",
    "conv3.": "cv3.1.",
    "conv4.": "cv4.",
}


def hgnet_rules(stem: str, stages: str, names: tuple[tuple[str, str], ...] = _HGNET_NAMES) -> list[Rule]:
    """Return rules for HGNetV2; `stem` and `stages` are prefixes of the other format, `names` those of a `ConvNorm`."""
    own, stage, other = "backbone.body.", "backbone.body.stages.{n}.", f"{stages}{{n}}."
    return [
        *(
            rule
            for part in ("stem1.", "stem2a.", "stem2b.", "stem3.", "stem4.")
            for rule in conv_norm_rules(f"{own}stem.{part}", stem + part, names)
        ),
        *conv_norm_rules(f"{stage}downsample.", f"{other}downsample.", names),
        *conv_norm_rules(f"{stage}{_LAYER}pointwise.", f"{other}{_LAYER}conv1.", names),
        *conv_norm_rules(f"{stage}{_LAYER}depthwise.", f"{other}{_LAYER}conv2.", names),
        *conv_norm_rules(stage + _LAYER, other + _LAYER, names),
        *conv_norm_rules(f"{stage}blocks.{{n}}.aggregation.{{n}}.", f"{other}blocks.{{n}}.aggregation.{{n}}.", names),
    ]


def elan_rules(detrkit: str, other: str, names: Mapping[str, str]) -> list[Rule]:
    """Return rules for a `RepNCSPELAN4`; `names` are those of its parts in the other format."""
    return [
        *(rule for own in _ELAN_CONVOLUTIONS for rule in conv_norm_rules(detrkit + own, other + names[own])),
        *csp_rules(f"{detrkit}csp1.", other + names["csp1."]),
        *csp_rules(f"{detrkit}csp2.", other + names["csp2."]),
    ]


HGNET_RULES = hgnet_rules("backbone.stem.", "backbone.stages.")
ELAN_FUSION_RULES: list[Rule] = [
    *elan_rules("encoder.top_down.{n}.", "encoder.fpn_blocks.{n}.", ELAN_NAMES),
    *elan_rules("encoder.bottom_up.{n}.", "encoder.pan_blocks.{n}.", ELAN_NAMES),
    *conv_norm_rules("encoder.downsample.{n}.pointwise.", "encoder.downsample_convs.{n}.0.cv1."),
    *conv_norm_rules("encoder.downsample.{n}.depthwise.", "encoder.downsample_convs.{n}.0.cv2."),
]
_BINS = ("up", "reg_scale")  # stored twice
FINE_GRAINED_RULES: list[Rule] = [
    ("decoder.layers.{n}.cross_attention_residual.", "decoder.decoder.layers.{n}.gateway."),
    *mlp_rules("heads.quality_head.{n}.", "decoder.decoder.lqe_layers.{n}.reg_conf."),
    *mlp_rules("heads.initial_box_head.", "decoder.pre_bbox_head.", num_layers=3),
    *((f"heads.bins.{name}", f"decoder.{name}") for name in _BINS),
]
RULES_WITHOUT_SELECTION: list[Rule] = [
    *HGNET_RULES,
    *INPUT_PROJECTION_RULES,
    *ENCODER_RULES,
    *ELAN_FUSION_RULES,
    *FINE_GRAINED_RULES,
    *DECODER_RULES,
]
_RULES: list[Rule] = [*RULES_WITHOUT_SELECTION, *SELECTION_RULES]
fields_from_args, args_from_config = rtdetrv2_official.fields_from_args, rtdetrv2_official.args_from_config
fields_from_state, computed_entries = rtdetrv2_official.fields_from_state, rtdetrv2_official.computed_entries


def matches(names: Collection[str]) -> bool:
    """Return whether entries are those of an official D-FINE."""
    return "decoder.pre_bbox_head.layers.0.weight" in names


def to_detrkit(state: Mapping[str, Tensor], rules: Iterable[Rule] = _RULES) -> dict[str, Tensor]:
    """Rename official entries to detrkit's; `rules` are those of a derived architecture."""
    repeated = {f"decoder.decoder.{name}": f"decoder.{name}" for name in _BINS}
    # files of safetensors may hold one of two equal tensors only
    stored = {repeated.get(name, name): tensor for name, tensor in state.items() if repeated.get(name) not in state}
    renamed = rtdetrv2_official.to_detrkit(stored, rules)
    return {name: tensor.float() if name == "heads.bins.reg_scale" else tensor for name, tensor in renamed.items()}


def from_detrkit(state: Mapping[str, Tensor], rules: Iterable[Rule] = _RULES) -> dict[str, Tensor]:
    """Rename detrkit's entries to the official ones; `rules` as above."""
    renamed = rtdetrv2_official.from_detrkit(state, rules)
    return {**renamed, **{f"decoder.decoder.{name}": renamed[f"decoder.{name}"] for name in _BINS}}
