"""The names of the published checkpoints (facebookresearch/detr, and its successors' code), read and written.

There the query, key and value projections of an attention are one matrix, and models with a mask head hold the box
model under `detr.`.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from detrkit.checkpoints.conversion.architecture import Family, family_of_state
from detrkit.checkpoints.conversion.deformable import successor_rules
from detrkit.checkpoints.conversion.key_mapping import Rule, to_ours, to_theirs
from detrkit.checkpoints.conversion.layer_heads import listed_by_layer, listed_once
from detrkit.checkpoints.loading import LoadReport, load_state
from detrkit.models.detr import DETR

BOX_RULES: list[Rule] = [
    ("backbone.body.", "backbone.0.body."),
    ("positions.rows.", "backbone.1.row_embed."),
    ("positions.columns.", "backbone.1.col_embed."),
    ("input_projection.", "input_proj."),
    ("query_source.", "query_embed."),
    ("encoder.layers.{n}.self_attention.output_projection.", "transformer.encoder.layers.{n}.self_attn.out_proj."),
    ("encoder.layers.{n}.self_attention.", "transformer.encoder.layers.{n}.self_attn."),
    ("encoder.layers.{n}.self_attention_residual.norm.", "transformer.encoder.layers.{n}.norm1."),
    ("encoder.layers.{n}.feed_forward.expand.", "transformer.encoder.layers.{n}.linear1."),
    ("encoder.layers.{n}.feed_forward.contract.", "transformer.encoder.layers.{n}.linear2."),
    ("encoder.layers.{n}.feed_forward_residual.norm.", "transformer.encoder.layers.{n}.norm2."),
    ("encoder.norm.", "transformer.encoder.norm."),
    ("decoder.layers.{n}.self_attention.output_projection.", "transformer.decoder.layers.{n}.self_attn.out_proj."),
    ("decoder.layers.{n}.self_attention.", "transformer.decoder.layers.{n}.self_attn."),
    ("decoder.layers.{n}.self_attention_residual.norm.", "transformer.decoder.layers.{n}.norm1."),
    (
        "decoder.layers.{n}.cross_attention.output_projection.",
        "transformer.decoder.layers.{n}.multihead_attn.out_proj.",
    ),
    ("decoder.layers.{n}.cross_attention.", "transformer.decoder.layers.{n}.multihead_attn."),
    ("decoder.layers.{n}.cross_attention_residual.norm.", "transformer.decoder.layers.{n}.norm2."),
    ("decoder.layers.{n}.feed_forward.expand.", "transformer.decoder.layers.{n}.linear1."),
    ("decoder.layers.{n}.feed_forward.contract.", "transformer.decoder.layers.{n}.linear2."),
    ("decoder.layers.{n}.feed_forward_residual.norm.", "transformer.decoder.layers.{n}.norm3."),
    ("decoder.norm.", "transformer.decoder.norm."),
    ("heads.class_head.", "class_embed."),
    ("heads.box_head.0.", "bbox_embed.layers.0."),
    ("heads.box_head.2.", "bbox_embed.layers.1."),
    ("heads.box_head.4.", "bbox_embed.layers.2."),
]
MASK_RULES: list[Rule] = [
    ("mask_head.attention_maps.query_projection.", "bbox_attention.q_linear."),
    ("mask_head.attention_maps.key_projection.", "bbox_attention.k_linear."),
    ("mask_head.input_stages.0.convolution.", "mask_head.lay1."),
    ("mask_head.input_stages.0.norm.", "mask_head.gn1."),
    ("mask_head.input_stages.1.convolution.", "mask_head.lay2."),
    ("mask_head.input_stages.1.norm.", "mask_head.gn2."),
    ("mask_head.stages.0.convolution.", "mask_head.lay3."),
    ("mask_head.stages.0.norm.", "mask_head.gn3."),
    ("mask_head.stages.1.convolution.", "mask_head.lay4."),
    ("mask_head.stages.1.norm.", "mask_head.gn4."),
    ("mask_head.stages.2.convolution.", "mask_head.lay5."),
    ("mask_head.stages.2.norm.", "mask_head.gn5."),
    ("mask_head.adapters.0.", "mask_head.adapter1."),
    ("mask_head.adapters.1.", "mask_head.adapter2."),
    ("mask_head.adapters.2.", "mask_head.adapter3."),
    ("mask_head.output.", "mask_head.out_lay."),
]
_PACKED = ("query_projection", "key_projection", "value_projection")


def load_official_state_dict(model: DETR, state_dict: Mapping[str, Tensor]) -> LoadReport:
    """Copy published weights into a model.

    Args:
        model: of the same shape.
        state_dict: the published entries, or a whole training checkpoint that holds them under "model".

    Raises:
        CheckpointError: entries are missing, unknown, or of another shape.
    """
    inner = state_dict.get("model", state_dict)
    assert isinstance(inner, Mapping)
    return load_state(model, ours_from_official(inner))


def state_dict_as_official(model: DETR) -> dict[str, Tensor]:
    """Copy a model's weights under the published names; the inverse of `load_official_state_dict`."""
    state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    return official_from_ours(state)


def official_from_ours(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename our entries to the published ones."""
    family = family_of_state(state)
    named = _pack(to_theirs(state, _rules(family, has_masks="mask_head.output.weight" in state)))
    if family == "dab":
        named |= {f"{_DECODER}{name}": tensor for name, tensor in named.items() if name.startswith("bbox_embed.")}
    if family == "deformable":
        num_layers = len({name.split(".")[2] for name in state if name.startswith("decoder.layers.")})
        named = listed_by_layer(named, _DECODER, num_layers)
    return named


def ours_from_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename published entries to ours."""
    family = _family_of_official(state)
    has_masks = any(name.startswith("detr.") for name in state)
    if family == "dab":
        state = {name: tensor for name, tensor in state.items() if not name.startswith(f"{_DECODER}bbox_embed.")}
    if family == "deformable":
        state = listed_once(state, _DECODER)
    return to_ours(_unpack(state), _rules(family, has_masks))


_DECODER = "transformer.decoder."


def _family_of_official(state: Mapping[str, Tensor]) -> Family:
    if any(".sampling_offsets." in name for name in state):
        return "deformable"
    if any(name.endswith("refpoint_embed.weight") for name in state):
        return "dab"
    return "conditional" if any(".ca_qcontent_proj." in name for name in state) else "detr"


def _rules(family: Family, has_masks: bool) -> list[Rule]:
    rules = [*successor_rules(family), *BOX_RULES]
    return rules if not has_masks else [(ours, f"detr.{theirs}") for ours, theirs in rules] + MASK_RULES


def _unpack(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Split the packed projections, and drop the step counters of ordinary batch norm."""
    unpacked = {}
    for name, tensor in state.items():
        if name.endswith("num_batches_tracked"):
            continue
        head, packed, kind = name.partition("in_proj_")
        if not packed:
            unpacked[name] = tensor
            continue
        for projection, rows in zip(_PACKED, tensor.chunk(3), strict=True):
            unpacked[f"{head}{projection}.{kind}"] = rows
    return unpacked


def _pack(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    packed = {}
    for name, tensor in state.items():
        if "attn." not in name or "_projection." not in name:
            packed[name] = tensor
            continue
        head, kind = name.rsplit(".", 1)
        attention, projection = head.rsplit(".", 1)
        if projection == _PACKED[0]:
            rows = [state[f"{attention}.{each}.{kind}"] for each in _PACKED]
            packed[f"{attention}.in_proj_{kind}"] = torch.cat(rows)
    return packed
