"""RT-DETR and RT-DETRv2 in the official format (lyuwenyu/RT-DETR, `rtdetr_pytorch` and `rtdetrv2_pytorch`)."""

from detrkit.checkpoints.conversion.key_mapping import Rule

CONV_NORM = (("convolution.", "conv."), ("norm.", "norm."))


def conv_norm_rules(detrkit: str, other: str, names: tuple[tuple[str, str], ...] = CONV_NORM) -> list[Rule]:
    """Return rules for a `ConvNorm`, whose parts have `names` in detrkit and in the other format."""
    return [(detrkit + own, other + name) for own, name in names]


def attention_rules(detrkit: str, other: str) -> list[Rule]:
    """Return rules for an encoder layer, after `key_mapping.split_in_proj`."""
    names = {
        "self_attention.output_projection.": "self_attn.out_proj.",
        "self_attention.": "self_attn.",
        "self_attention_residual.norm.": "norm1.",
        "feed_forward.expand.": "linear1.",
        "feed_forward.contract.": "linear2.",
        "feed_forward_residual.norm.": "norm2.",
    }
    return [(detrkit + own, other + name) for own, name in names.items()]


def csp_rules(detrkit: str, other: str) -> list[Rule]:
    """Return rules for a `CSPRepLayer`."""
    return [
        *(rule for name in ("conv1.", "conv2.", "conv3.") for rule in conv_norm_rules(detrkit + name, other + name)),
        *conv_norm_rules(f"{detrkit}blocks.{{n}}.branch3x3.", f"{other}bottlenecks.{{n}}.conv1."),
        *conv_norm_rules(f"{detrkit}blocks.{{n}}.branch1x1.", f"{other}bottlenecks.{{n}}.conv2."),
    ]


def _resnet_vd_rules() -> list[Rule]:
    rules: list[Rule] = []
    for index in range(3):
        rules += conv_norm_rules(f"backbone.body.conv1.{index}.", f"backbone.conv1.conv1_{index + 1}.")
    for stage in range(4):
        block, other = f"backbone.body.layer{stage + 1}.{{n}}.", f"backbone.res_layers.{stage}.blocks.{{n}}."
        for number, branch in enumerate("abc", start=1):
            names = ((f"conv{number}.", "conv."), (f"bn{number}.", "norm."))
            rules += conv_norm_rules(block, f"{other}branch2{branch}.", names)
        # from the second stage on, the convolution follows a pooling, which the authors' names count
        shortcut = "short." if stage == 0 else "short.conv."
        rules += conv_norm_rules(f"{block}downsample.", other + shortcut, (("0.", "conv."), ("1.", "norm.")))
    return rules


RESNET_VD_RULES = _resnet_vd_rules()
# what all hybrid encoders have; the first version names the parts of the input projections by numbers
ENCODER_RULES: list[Rule] = [
    *attention_rules("encoder.attention.{n}.layers.{n}.", "encoder.encoder.{n}.layers.{n}."),
    *conv_norm_rules("encoder.lateral.{n}.", "encoder.lateral_convs.{n}."),
    *conv_norm_rules("encoder.output_projection.{n}.", "decoder.input_proj.{n}."),
    ("encoder.teacher_projection.", "encoder.feature_projector.0."),
]
INPUT_PROJECTION_RULES = conv_norm_rules("neck.projection.levels.{n}.", "encoder.input_proj.{n}.")
INPUT_PROJECTION_RULES_V1 = conv_norm_rules(
    "neck.projection.levels.{n}.", "encoder.input_proj.{n}.", (("convolution.", "0."), ("norm.", "1."))
)
CSP_FUSION_RULES: list[Rule] = [
    *csp_rules("encoder.top_down.{n}.", "encoder.fpn_blocks.{n}."),
    *csp_rules("encoder.bottom_up.{n}.", "encoder.pan_blocks.{n}."),
    *conv_norm_rules("encoder.downsample.{n}.", "encoder.downsample_convs.{n}."),
]
