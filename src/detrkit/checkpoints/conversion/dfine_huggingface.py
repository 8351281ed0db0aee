"""D-FINE in Hugging Face's format; other entries are named as in RT-DETR.

Its heads have ReLUs whatever the config says, so DEIM's and RT-DETRv4's models cannot be written.
"""

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from detrkit.checkpoints.conversion import rtdetr_huggingface
from detrkit.checkpoints.conversion.dfine_official import elan_rules, hgnet_rules
from detrkit.checkpoints.conversion.key_mapping import Rule, mlp_rules
from detrkit.checkpoints.conversion.realtime_fields import point_scales
from detrkit.checkpoints.conversion.rtdetr_huggingface import COMMON_RULES, CONV_NORM
from detrkit.checkpoints.conversion.rtdetr_official import conv_norm_rules
from detrkit.config.model import ModelConfig
from detrkit.models.backbones.hgnet import VARIANTS

MODEL_TYPE = "d_fine"
MODEL_CLASS = "DFineForObjectDetection"
IMAGE_PROCESSOR = "RTDetrImageProcessor"

_BACKBONE, _DECODER = "model.backbone.model.", "model.decoder."
_ELAN_NAMES = {
    "conv1.": "conv1.",
    "csp1.": "csp_rep1.",
    "conv2.": "conv2.",
    "csp2.": "csp_rep2.",
    "conv3.": "conv3.",
    "conv4.": "conv4.",
}
_RULES: list[Rule] = [
    *hgnet_rules(f"{_BACKBONE}embedder.", f"{_BACKBONE}encoder.stages.", (*CONV_NORM, ("affine.", "lab."))),
    *elan_rules("encoder.top_down.{n}.", "model.encoder.fpn_blocks.{n}.", _ELAN_NAMES),
    *elan_rules("encoder.bottom_up.{n}.", "model.encoder.pan_blocks.{n}.", _ELAN_NAMES),
    *conv_norm_rules("encoder.downsample.{n}.pointwise.", "model.encoder.downsample_convs.{n}.conv1."),
    *conv_norm_rules("encoder.downsample.{n}.depthwise.", "model.encoder.downsample_convs.{n}.conv2."),
    ("decoder.layers.{n}.cross_attention_residual.", f"{_DECODER}layers.{{n}}.gateway."),
    *mlp_rules("heads.quality_head.{n}.", f"{_DECODER}lqe_layers.{{n}}.reg_conf."),
    *mlp_rules("heads.initial_box_head.", f"{_DECODER}pre_bbox_head.", num_layers=3),
    ("heads.bins.up", f"{_DECODER}up"),
    ("heads.bins.reg_scale", f"{_DECODER}reg_scale"),
    *COMMON_RULES,
]


def matches(names: Collection[str]) -> bool:
    """Return whether entries are those of Hugging Face's D-FINE."""
    return rtdetr_huggingface.has_selection(names) and rtdetr_huggingface.is_dfine(names)


def to_detrkit(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename Hugging Face's entries to detrkit's."""
    return rtdetr_huggingface.to_detrkit(state, _RULES)


def from_detrkit(state: Mapping[str, Tensor], native_backbone: bool = False) -> dict[str, Tensor]:
    """Rename detrkit's entries to those of Hugging Face's files."""
    return rtdetr_huggingface.with_repeated_heads(rtdetr_huggingface.from_detrkit(state, rules=_RULES))


def fields_from_config(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of `ModelConfig` that ``config.json`` holds and the weights do not show."""
    fields = rtdetr_huggingface.fields_from_config(content)
    index = content.get("eval_idx", -1)
    return {
        **fields,
        "points_per_level": rtdetr_huggingface.points_per_level(content),
        "eval_decoder_layers": None if index < 0 else index + 1,
    }


def config_fields(config: ModelConfig) -> dict[str, Any]:
    """Return the architecture's own fields of ``config.json``."""
    return {
        **rtdetr_huggingface.common_config_fields(config, VARIANTS[config.backbone].channels),
        "backbone_config": _backbone_config(config),
        "decoder_n_points": list(config.sampling_points),
        "depth_mult": config.fusion_depth / 3,
        "eval_idx": -1 if config.eval_decoder_layers is None else config.eval_decoder_layers - 1,
        "max_num_bins": config.reg_max,
        "reg_scale": config.reg_scale,
    }


def computed_entries(config: ModelConfig) -> dict[str, Tensor]:
    """Return the entries of files that are no weights: the units of the sampling offsets."""
    return point_scales(config, "model.decoder.layers.{layer}.encoder_attn.num_points_scale")


def _backbone_config(config: ModelConfig) -> dict[str, Any]:
    variant = VARIANTS[config.backbone]
    stages = len(variant.channels)
    kernel_size = variant.light_kernel_size
    return {
        "model_type": "hgnet_v2",
        "stem_channels": [config.in_channels, *variant.stem],
        "stage_in_channels": [variant.stem[1], *variant.channels[:-1]],
        "stage_mid_channels": list(variant.widths),
        "stage_out_channels": list(variant.channels),
        "stage_num_blocks": list(variant.depths),
        "stage_downsample": [False, True, True, True][:stages],
        "stage_light_block": [False, False, True, True][:stages],
        "stage_kernel_size": [3, 3, kernel_size, kernel_size][:stages],
        "stage_numb_of_layers": [variant.num_layers] * stages,
        "hidden_sizes": list(variant.channels),
        "depths": [3, 4, 6, 3][:stages],
        "use_learnable_affine_block": config.has_learnable_affine_block,
        "out_indices": [index + 1 for index in range(stages - config.num_backbone_levels, stages)],
    }
