"""D-FINE, DEIM and RT-DETRv4 in the official format (Peterande/D-FINE), whose entries have the same names."""

from detrkit.checkpoints.conversion.key_mapping import Rule
from detrkit.checkpoints.conversion.rtdetr_official import conv_norm_rules, csp_rules

_HGNET_NAMES = (("convolution.", "conv."), ("norm.", "bn."), ("affine.", "lab."))
_LAYER = "blocks.{n}.layers.{n}."


def _hgnet_rules(prefix: str, names: tuple[tuple[str, str], ...] = _HGNET_NAMES) -> list[Rule]:
    """Return rules for HGNetV2; `prefix` is that of the other format."""
    own, stage, other = "backbone.body.", "backbone.body.stages.{n}.", f"{prefix}stages.{{n}}."
    return [
        *(
            rule
            for part in ("stem1.", "stem2a.", "stem2b.", "stem3.", "stem4.")
            for rule in conv_norm_rules(f"{own}stem.{part}", f"{prefix}stem.{part}", names)
        ),
        *conv_norm_rules(f"{stage}downsample.", f"{other}downsample.", names),
        *conv_norm_rules(f"{stage}{_LAYER}pointwise.", f"{other}{_LAYER}conv1.", names),
        *conv_norm_rules(f"{stage}{_LAYER}depthwise.", f"{other}{_LAYER}conv2.", names),
        *conv_norm_rules(stage + _LAYER, other + _LAYER, names),
        *conv_norm_rules(f"{stage}blocks.{{n}}.aggregation.{{n}}.", f"{other}blocks.{{n}}.aggregation.{{n}}.", names),
    ]


def _elan_rules(detrkit: str, other: str) -> list[Rule]:
    """Return rules for a `RepNCSPELAN4`."""
    convolutions = {"conv1.": "cv1.", "conv2.": "cv2.1.", "conv3.": "cv3.1.", "conv4.": "cv4."}
    return [
        *(rule for own, name in convolutions.items() for rule in conv_norm_rules(detrkit + own, other + name)),
        *csp_rules(f"{detrkit}csp1.", f"{other}cv2.0."),
        *csp_rules(f"{detrkit}csp2.", f"{other}cv3.0."),
    ]


HGNET_RULES = _hgnet_rules("backbone.")
ELAN_FUSION_RULES: list[Rule] = [
    *_elan_rules("encoder.top_down.{n}.", "encoder.fpn_blocks.{n}."),
    *_elan_rules("encoder.bottom_up.{n}.", "encoder.pan_blocks.{n}."),
    *conv_norm_rules("encoder.downsample.{n}.pointwise.", "encoder.downsample_convs.{n}.0.cv1."),
    *conv_norm_rules("encoder.downsample.{n}.depthwise.", "encoder.downsample_convs.{n}.0.cv2."),
]
