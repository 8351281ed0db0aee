"""The published names of DETR's successors.

They are those of Atten4Vis/ConditionalDETR, IDEA-Research/DAB-DETR and fundamentalvision/Deformable-DETR. What they
share with DETR's names is in `official`.
"""

from detrkit.checkpoints.conversion.architecture import Family
from detrkit.checkpoints.conversion.key_mapping import Rule
from detrkit.checkpoints.conversion.layer_heads import PROPOSALS

_ENCODER, _DECODER = "transformer.encoder.layers.{n}.", "transformer.decoder.layers.{n}."


def successor_rules(family: Family) -> list[Rule]:
    """Rules that come before DETR's own, for the first that fits wins."""
    if family == "deformable":
        return [*_deformable_attention(), *_DEFORMABLE]
    if family == "detr":
        return []
    return [*(_DAB if family == "dab" else []), *_CONDITIONAL]


def mlp(ours: str, theirs: str) -> list[Rule]:
    """Rules of two linear layers, 0 and 2 here, 0 and 1 there."""
    return [(f"{ours}0.", f"{theirs}layers.0."), (f"{ours}2.", f"{theirs}layers.1.")]


CONDITIONAL_PROJECTIONS = {
    "self_projections.query_content.": "sa_qcontent_proj.",
    "self_projections.query_position.": "sa_qpos_proj.",
    "self_projections.key_content.": "sa_kcontent_proj.",
    "self_projections.key_position.": "sa_kpos_proj.",
    "self_projections.value.": "sa_v_proj.",
    "cross_projections.query_content.": "ca_qcontent_proj.",
    "cross_projections.query_position.": "ca_qpos_proj.",
    "cross_projections.query_sine.": "ca_qpos_sine_proj.",
    "cross_projections.key_content.": "ca_kcontent_proj.",
    "cross_projections.key_position.": "ca_kpos_proj.",
    "cross_projections.value.": "ca_v_proj.",
}
DEFORMABLE_PROJECTIONS = {
    "offset_projection.": "sampling_offsets.",
    "weight_projection.": "attention_weights.",
    "value_projection.": "value_proj.",
    "output_projection.": "output_proj.",
}
HEAD_RULES: list[Rule] = [
    ("heads.class_head.{n}.", "class_embed.{n}."),
    *((f"heads.box_head.{{n}}.{2 * index}.", f"bbox_embed.{{n}}.layers.{index}.") for index in range(3)),
    ("query_source.class_head.", f"{PROPOSALS}class_embed."),
    *((f"query_source.box_head.{2 * index}.", f"{PROPOSALS}bbox_embed.layers.{index}.") for index in range(3)),
]

_CONDITIONAL: list[Rule] = [
    *((f"decoder.layers.{{n}}.{ours}", _DECODER + theirs) for ours, theirs in CONDITIONAL_PROJECTIONS.items()),
    ("decoder.layers.{n}.cross_attention.output_projection.", f"{_DECODER}cross_attn.out_proj."),
    *mlp("decoder.query_position_encoding.content_scale.", "transformer.decoder.query_scale."),
    *mlp("query_source.point_head.", "transformer.decoder.ref_point_head."),
]
_DAB: list[Rule] = [
    ("query_source.weight", "refpoint_embed.weight"),
    *mlp("decoder.query_position_encoding.position_head.", "transformer.decoder.ref_point_head."),
    *mlp("decoder.query_position_encoding.size_head.", "transformer.decoder.ref_anchor_head."),
    *mlp("encoder.position_scale.", "transformer.encoder.query_scale."),
    ("encoder.layers.{n}.feed_forward.activation.", f"{_ENCODER}activation."),
    ("decoder.layers.{n}.feed_forward.activation.", f"{_DECODER}activation."),
]


def _deformable_attention() -> list[Rule]:
    both = (
        ("encoder.layers.{n}.self_attention.", f"{_ENCODER}self_attn."),
        ("decoder.layers.{n}.cross_attention.", f"{_DECODER}cross_attn."),
    )
    return [
        (ours + projection, theirs + name)
        for ours, theirs in both
        for projection, name in DEFORMABLE_PROJECTIONS.items()
    ]


_DEFORMABLE: list[Rule] = [
    # the order of the norms is that of the published modules, not of their use
    ("decoder.layers.{n}.cross_attention_residual.norm.", f"{_DECODER}norm1."),
    ("decoder.layers.{n}.self_attention_residual.norm.", f"{_DECODER}norm2."),
    ("input_projection.levels.{n}.convolution.", "input_proj.{n}.0."),
    ("input_projection.levels.{n}.norm.", "input_proj.{n}.1."),
    ("positions.levels", "transformer.level_embed"),
    ("query_source.point_head.", "transformer.reference_points."),
    ("query_source.memory_projection.", "transformer.enc_output."),
    ("query_source.memory_norm.", "transformer.enc_output_norm."),
    ("query_source.query_projection.", "transformer.pos_trans."),
    ("query_source.query_norm.", "transformer.pos_trans_norm."),
    *HEAD_RULES,
]
