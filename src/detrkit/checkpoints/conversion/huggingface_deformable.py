"""Hugging Face's names of DETR's successors. What they share with those of its DETR is in `huggingface`."""

from collections.abc import Mapping

from torch import Tensor

from detrkit.checkpoints.conversion.architecture import Family
from detrkit.checkpoints.conversion.deformable import (
    CONDITIONAL_PROJECTIONS,
    DEFORMABLE_PROJECTIONS,
    HEAD_RULES,
    mlp,
)
from detrkit.checkpoints.conversion.key_mapping import Rule

DECODER = "model.decoder."
MODEL_TYPES: dict[Family, tuple[str, str]] = {
    "detr": ("detr", "DetrForObjectDetection"),
    "conditional": ("conditional_detr", "ConditionalDetrForObjectDetection"),
    "dab": ("dab-detr", "DabDetrForObjectDetection"),
    "deformable": ("deformable_detr", "DeformableDetrForObjectDetection"),
}
_ENCODER_LAYER, _DECODER_LAYER = "model.encoder.layers.{n}.", "model.decoder.layers.{n}."
_IN_MEMORY = {"sa": "self_attn", "ca": "encoder_attn"}
_DAB_WORDS = {
    "self_projections.query_content.": "self_attn.self_attn_query_content_proj.",
    "self_projections.query_position.": "self_attn.self_attn_query_pos_proj.",
    "self_projections.key_content.": "self_attn.self_attn_key_content_proj.",
    "self_projections.key_position.": "self_attn.self_attn_key_pos_proj.",
    "self_projections.value.": "self_attn.self_attn_value_proj.",
    "self_attention.output_projection.": "self_attn.self_attn.output_proj.",
    "self_attention_residual.norm.": "self_attn.self_attn_layer_norm.",
    "cross_projections.query_content.": "cross_attn.cross_attn_query_content_proj.",
    "cross_projections.query_position.": "cross_attn.cross_attn_query_pos_proj.",
    "cross_projections.query_sine.": "cross_attn.cross_attn_query_pos_sine_proj.",
    "cross_projections.key_content.": "cross_attn.cross_attn_key_content_proj.",
    "cross_projections.key_position.": "cross_attn.cross_attn_key_pos_proj.",
    "cross_projections.value.": "cross_attn.cross_attn_value_proj.",
    "cross_attention.output_projection.": "cross_attn.cross_attn.output_proj.",
    "cross_attention_residual.norm.": "cross_attn.cross_attn_layer_norm.",
    "feed_forward.expand.": "mlp.fc1.",
    "feed_forward.contract.": "mlp.fc2.",
    "feed_forward.activation.": "mlp.activation_fn.",
    "feed_forward_residual.norm.": "mlp.final_layer_norm.",
}


def family_of_names(state: Mapping[str, Tensor]) -> Family:
    """Tell the architecture by its entries."""
    if any(".sampling_offsets." in name for name in state):
        return "deformable"
    if any(name.endswith("query_refpoint_embeddings.weight") for name in state):
        return "dab"
    return "conditional" if any(".decoder.ref_point_head." in name for name in state) else "detr"


def successor_rules(family: Family, in_memory: bool) -> list[Rule]:
    """Rules that come before DETR's own, for the first that fits wins."""
    if family == "conditional":
        return _conditional(in_memory)
    if family == "dab":
        return _dab()
    return _deformable() if family == "deformable" else []


def _guide() -> list[Rule]:
    return mlp("decoder.query_position_encoding.content_scale.", f"{DECODER}query_scale.")


def _conditional(in_memory: bool) -> list[Rule]:
    projections = []
    for ours, official in CONDITIONAL_PROJECTIONS.items():
        theirs = official
        if in_memory:  # sa_qcontent_proj -> self_attn.q_content_proj
            attention, _, rest = official.partition("_")
            theirs = f"{_IN_MEMORY[attention]}.{rest.replace('qcontent', 'q_content').replace('kcontent', 'k_content')}"
            theirs = theirs.replace("qpos", "q_pos").replace("kpos", "k_pos")
        projections.append((f"decoder.layers.{{n}}.{ours}", _DECODER_LAYER + theirs))
    return [*projections, *_guide(), *mlp("query_source.point_head.", f"{DECODER}ref_point_head.")]


def _dab() -> list[Rule]:
    return [
        *((f"decoder.layers.{{n}}.{ours}", _DECODER_LAYER + theirs) for ours, theirs in _DAB_WORDS.items()),
        *_guide(),
        *mlp("decoder.query_position_encoding.position_head.", f"{DECODER}ref_point_head."),
        *mlp("decoder.query_position_encoding.size_head.", f"{DECODER}ref_anchor_head."),
        *mlp("encoder.position_scale.", "model.encoder.query_scale."),
        ("encoder.layers.{n}.feed_forward.activation.", f"{_ENCODER_LAYER}activation_fn."),
        ("query_source.weight", "model.query_refpoint_embeddings.weight"),
        ("heads.class_head.", "class_embed."),
    ]


def _deformable() -> list[Rule]:
    attentions = (
        ("encoder.layers.{n}.self_attention.", f"{_ENCODER_LAYER}self_attn."),
        ("decoder.layers.{n}.cross_attention.", f"{_DECODER_LAYER}encoder_attn."),
    )
    return [
        *(
            (ours + projection, theirs + name)
            for ours, theirs in attentions
            for projection, name in DEFORMABLE_PROJECTIONS.items()
        ),
        ("input_projection.levels.{n}.convolution.", "model.input_proj.{n}.0."),
        ("input_projection.levels.{n}.norm.", "model.input_proj.{n}.1."),
        ("positions.levels", "model.level_embed"),
        ("query_source.point_head.", "model.reference_points."),
        ("query_source.memory_projection.", "model.enc_output."),
        ("query_source.memory_norm.", "model.enc_output_norm."),
        ("query_source.query_projection.", "model.pos_trans."),
        ("query_source.query_norm.", "model.pos_trans_norm."),
        *HEAD_RULES,
        ("heads.class_head.", "class_embed."),
        *((f"heads.box_head.{2 * index}.", f"bbox_embed.layers.{index}.") for index in range(3)),
    ]
