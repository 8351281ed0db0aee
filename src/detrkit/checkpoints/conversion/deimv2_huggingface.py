"""DEIMv2 with an HGNetV2 in Hugging Face's format, whose files have the names of live models.

Its code differs from that of the authors: it projects and normalises the memory before the selection, encodes the boxes of
every decoder layer as positions, and has ReLUs in its heads. Models with these settings (`FIELDS`) are converted in both
directions; the authors' weights have no counterpart.
"""

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from detrkit.checkpoints.conversion import dfine_huggingface, rtdetr_huggingface
from detrkit.checkpoints.conversion.deformable_detr_official import ATTENTION_PROJECTIONS
from detrkit.checkpoints.conversion.deimv2_official import repeat_box_head, share_box_head
from detrkit.checkpoints.conversion.dfine_official import elan_rules, hgnet_rules
from detrkit.checkpoints.conversion.key_mapping import Rule, mlp_rules
from detrkit.checkpoints.conversion.rtdetr_huggingface import CONV_NORM
from detrkit.checkpoints.conversion.rtdetr_official import conv_norm_rules
from detrkit.config.model import ModelConfig
from detrkit.errors import CheckpointError
from detrkit.models.presets_refused import DINOV3_LICENCE

MODEL_TYPE = "deimv2"
MODEL_CLASS = "Deimv2ForObjectDetection"
IMAGE_PROCESSOR = "RTDetrImageProcessor"
# settings of the presets that have to be changed for this format
FIELDS: Mapping[str, Any] = {"activation": "relu", "selection_projection": True, "layerwise_query_positions": True}

_MAPS, _ENCODER, _DECODER = "model.conv_encoder.model.", "model.encoder.", "model.decoder."
_DINOV3 = ("model.conv_encoder.backbone.", "model.conv_encoder.spatial_tuning_adapter.")
_LAYER, _OTHER = "decoder.layers.{n}.", f"{_DECODER}layers.{{n}}."
_ATTENTION, _OTHER_ATTENTION = "encoder.attention.{n}.layers.{n}.", f"{_ENCODER}aifi.{{n}}.layers.{{n}}."
_SELF_ATTENTION = {
    f"self_attention.{own}_projection.": f"self_attn.{other}_proj."
    for own, other in (("query", "q"), ("key", "k"), ("value", "v"), ("output", "o"))
}
_ELAN_NAMES = {
    "conv1.": "conv1.",
    "csp1.": "csp_rep1.",
    "conv2.": "csp_rep1.conv2.",
    "csp2.": "csp_rep2.",
    "conv3.": "csp_rep2.conv2.",
    "conv4.": "conv2.",
}
_HYBRID_RULES: list[Rule] = [
    *conv_norm_rules("neck.projection.levels.{n}.", "model.conv_encoder.encoder_input_proj.{n}."),
    *((_ATTENTION + own, _OTHER_ATTENTION + other) for own, other in _SELF_ATTENTION.items()),
    (f"{_ATTENTION}self_attention_residual.norm.", f"{_OTHER_ATTENTION}self_attn_layer_norm."),
    (f"{_ATTENTION}feed_forward.expand.", f"{_OTHER_ATTENTION}mlp.layers.0."),
    (f"{_ATTENTION}feed_forward.contract.", f"{_OTHER_ATTENTION}mlp.layers.1."),
    (f"{_ATTENTION}feed_forward_residual.norm.", f"{_OTHER_ATTENTION}final_layer_norm."),
    *conv_norm_rules("encoder.lateral.{n}.", f"{_ENCODER}lateral_convs.{{n}}."),
    *elan_rules("encoder.top_down.{n}.", f"{_ENCODER}fpn_blocks.{{n}}.", _ELAN_NAMES),
    *elan_rules("encoder.bottom_up.{n}.", f"{_ENCODER}pan_blocks.{{n}}.", _ELAN_NAMES),
    *conv_norm_rules("encoder.downsample.{n}.pointwise.", f"{_ENCODER}downsample_convs.{{n}}.conv1."),
    *conv_norm_rules("encoder.downsample.{n}.depthwise.", f"{_ENCODER}downsample_convs.{{n}}.conv2."),
]
_LITE_RULES: list[Rule] = [
    *conv_norm_rules("neck.projection.levels.{n}.", f"{_ENCODER}input_proj.{{n}}."),
    *conv_norm_rules("neck.projection.downsample.pointwise.", f"{_ENCODER}down_conv1."),
    *conv_norm_rules("neck.projection.context.", f"{_ENCODER}bi_fusion_conv."),
    *conv_norm_rules("encoder.downsample.0.pointwise.", f"{_ENCODER}down_conv2."),
    *elan_rules("encoder.top_down.0.", f"{_ENCODER}fpn_block.", _ELAN_NAMES),
    *elan_rules("encoder.bottom_up.0.", f"{_ENCODER}pan_block.", _ELAN_NAMES),
]
_COMMON_RULES: list[Rule] = [
    *hgnet_rules(f"{_MAPS}embedder.", f"{_MAPS}encoder.stages.", (*CONV_NORM, ("affine.", "lab."))),
    *((_LAYER + own, _OTHER + other) for own, other in _SELF_ATTENTION.items()),
    (f"{_LAYER}self_attention_residual.norm.", f"{_OTHER}self_attn_layer_norm."),
    *(
        (f"{_LAYER}cross_attention.{own}", f"{_OTHER}encoder_attn.{other}")
        for own, other in ATTENTION_PROJECTIONS.items()
    ),
    (f"{_LAYER}feed_forward.contract.", f"{_OTHER}mlp.down_proj."),
    (f"{_LAYER}feed_forward_residual.norm.", f"{_OTHER}final_layer_norm."),
    *mlp_rules("decoder.query_position_encoding.position_head.", f"{_DECODER}query_pos_head.", num_layers=3),
    *mlp_rules("heads.quality_head.{n}.", f"{_DECODER}lqe_layers.{{n}}.reg_conf."),
    *mlp_rules("heads.initial_box_head.", f"{_DECODER}pre_bbox_head.", num_layers=3),
    ("heads.bins.up", f"{_DECODER}up"),
    ("heads.bins.reg_scale", f"{_DECODER}reg_scale"),
    ("query_source.denoising_labels.", "model.denoising_class_embed."),
    ("query_source.memory_projection.", "model.enc_output.0."),
    ("query_source.memory_norm.", "model.enc_output.1."),
    ("query_source.class_head.", "model.enc_score_head."),
    *mlp_rules("query_source.box_head.", "model.enc_bbox_head.", num_layers=3),
    ("heads.class_head.{n}.", f"{_DECODER}class_embed.{{n}}."),
    *mlp_rules("heads.box_head.{n}.", f"{_DECODER}bbox_embed.{{n}}.", num_layers=3),
]
_GATES, _VALUES, _EXPAND = "mlp.gate_proj.", "mlp.up_proj.", "feed_forward.expand."
computed_entries = dfine_huggingface.computed_entries


def matches(names: Collection[str]) -> bool:
    """Return whether entries are those of Hugging Face's DEIMv2."""
    return f"{_DECODER}layers.0.{_GATES}weight" in names


def to_detrkit(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename Hugging Face's entries to detrkit's.

    Raises:
        CheckpointError: an entry has no counterpart, or the backbone is a DINOv3.
    """
    if any(name.startswith(_DINOV3) for name in state):
        raise CheckpointError(f"checkpoint: is a DEIMv2 that is not included: {DINOV3_LICENCE}")
    is_lite = f"{_ENCODER}bi_fusion_conv.conv.weight" in state
    rules = _rules(is_lite, is_gated=f"{_DECODER}layers.0.gateway.gate.weight" in state)
    merged: dict[str, Tensor] = {}
    expanded: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if _GATES in name:
            values = state[name.replace(_GATES, _VALUES)]
            expanded[name.removeprefix("model.").replace(_GATES, _EXPAND)] = torch.cat([tensor, values])
        elif _VALUES not in name:
            merged[name] = tensor
    renamed = {**rtdetr_huggingface.to_detrkit(merged, rules), **expanded}
    return share_box_head(renamed) if is_lite else renamed


def from_detrkit(state: Mapping[str, Tensor], native_backbone: bool = False) -> dict[str, Tensor]:
    """Rename detrkit's entries to those of Hugging Face's files."""
    is_lite = "neck.projection.context.convolution.weight" in state
    rules = _rules(is_lite, is_gated="decoder.layers.0.cross_attention_residual.gate.weight" in state)
    others: dict[str, Tensor] = {}
    split: dict[str, Tensor] = {}
    for name, tensor in repeat_box_head(state).items():
        if name.startswith("decoder.") and _EXPAND in name:
            halves = zip((_GATES, _VALUES), tensor.chunk(2), strict=True)
            split |= {f"model.{name.replace(_EXPAND, other)}": half for other, half in halves}
        else:
            others[name] = tensor
    renamed = rtdetr_huggingface.with_repeated_heads(rtdetr_huggingface.from_detrkit(others, rules=rules))
    return {**renamed, **split}


def fields_from_config(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of `ModelConfig` that ``config.json`` holds and the weights do not show."""
    return dfine_huggingface.fields_from_config(content)


def config_fields(config: ModelConfig) -> dict[str, Any]:
    """Return the architecture's own fields of ``config.json``."""
    own = dfine_huggingface.config_fields(config)
    levels = config.num_backbone_levels
    return {
        **own,
        "encoder_in_channels": own["encoder_in_channels"][-levels:],
        "encoder_type": "lite" if config.fusion_block == "lite" else "hybrid",
        "encoder_fuse_op": "sum",
        "use_gateway": config.cross_attention_gate,
        "share_bbox_head": config.shared_box_head,
    }


def _rules(is_lite: bool, is_gated: bool) -> list[Rule]:
    residual = f"{_LAYER}cross_attention_residual."
    norm = [(f"{residual}norm.", f"{_OTHER}encoder_attn_layer_norm.")]
    gate = [(residual, f"{_OTHER}gateway.")]
    return [*(_LITE_RULES if is_lite else _HYBRID_RULES), *(gate if is_gated else norm), *_COMMON_RULES]
