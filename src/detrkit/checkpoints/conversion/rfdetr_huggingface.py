"""RF-DETR in Hugging Face's format: entry names and config fields.

Files have the names of the authors' code; live models of transformers have their own, which are read, too.
"""

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from detrkit.checkpoints.conversion import detr_huggingface, rfdetr_official
from detrkit.checkpoints.conversion.key_mapping import Rule, rename_to_detrkit
from detrkit.checkpoints.conversion.lwdetr_huggingface import (
    CONV_NORM,
    TRANSFORMER_RULES,
    common_config_fields,
    common_fields_from_config,
)
from detrkit.checkpoints.conversion.lwdetr_official import projector_rules
from detrkit.checkpoints.conversion.rfdetr_official import dinov2_rules, mask_rules, split_dinov2_tables
from detrkit.config.model import ModelConfig
from detrkit.models.backbones.vit import VARIANTS
from detrkit.models.heads.dot_product import MASK_STRIDE, QUERY_EXPANSION

MODEL_TYPE = "rf_detr"
MODEL_CLASS = "RfDetrForObjectDetection"
IMAGE_PROCESSOR = "RfDetrImageProcessor"

_BACKBONE, _PROJECTOR = "model.backbone.backbone.", "model.backbone.projector."
_ATTENTION = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "output": "o_proj"}
_LIVE_RULES: list[Rule] = [
    *dinov2_rules(_BACKBONE, _ATTENTION),
    *projector_rules(
        "neck.projection.levels.0.",
        fuse=f"{_PROJECTOR}projector_layer.",
        parts=("conv1.", "conv2.", "bottlenecks.{n}.conv1.", "bottlenecks.{n}.conv2."),
        norm=f"{_PROJECTOR}layer_norm.",
        conv_norm=CONV_NORM,
    ),
    *TRANSFORMER_RULES,
    *mask_rules(
        [f"blocks.{{n}}.{name}." for name in ("depthwise_conv", "layernorm", "pointwise_conv")],
        "spatial_features_proj.",
        [f"query_features_block.{name}." for name in ("norm", "mlp.fc1", "mlp.fc2")],
        "query_features_proj.",
        "segmentation_bias",
    ),
]
_DETECTOR = "model."  # of live models with masks, which hold a detector
_EPS = 1e-6  # of the projector's norms, as published; the default of transformers is another
computed_entries = detr_huggingface.computed_entries


def matches(names: Collection[str]) -> bool:
    """Return whether entries are those of Hugging Face's RF-DETR, of a file or a live model."""
    marker = f"{_BACKBONE}embeddings.cls_token"
    return marker in names or _DETECTOR + marker in names or rfdetr_official.matches(names)


def to_detrkit(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename Hugging Face's entries to detrkit's."""
    if rfdetr_official.matches(state):
        return rfdetr_official.to_detrkit(state)
    if f"{_DETECTOR}{_BACKBONE}embeddings.cls_token" in state:
        state = {name.removeprefix(_DETECTOR): tensor for name, tensor in state.items()}
    return split_dinov2_tables(rename_to_detrkit(state, _LIVE_RULES))


def from_detrkit(state: Mapping[str, Tensor], native_backbone: bool = False) -> dict[str, Tensor]:
    """Rename detrkit's entries to those of Hugging Face's files; the backbone is always Hugging Face's own."""
    return rfdetr_official.from_detrkit(state)


def fields_from_config(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of `ModelConfig` that ``config.json`` holds and the weights do not show."""
    backbone = content.get("backbone_config") or {}
    fields = common_fields_from_config(content)
    if (layers := backbone.get("out_indices")) is not None:
        # transformers attends globally in the blocks that follow those whose features are taken
        count = backbone.get("num_hidden_layers", 12)
        fields |= {"out_layers": tuple(layers), "global_layers": tuple(layer for layer in layers if layer < count)}
    return {
        **fields,
        "num_windows": backbone.get("num_windows", 4),
        "drop_path": backbone.get("drop_path_rate", 0.0),
    }


def config_fields(config: ModelConfig) -> dict[str, Any]:
    """Return the architecture's own fields of ``config.json``."""
    variant = VARIANTS[config.backbone]  # type: ignore[index]  # of a ViT
    return {
        **common_config_fields(config),
        "layer_norm_eps": _EPS,
        "num_feature_levels": 1,
        "mask_downsample_ratio": MASK_STRIDE,
        "intermediate_size": QUERY_EXPANSION * config.hidden_dim,
        "backbone_config": {
            "model_type": "rf_detr_dinov2",
            "hidden_size": variant.width,
            "num_attention_heads": variant.num_heads,
            "num_hidden_layers": config.backbone_layers,
            "num_channels": config.in_channels,
            "patch_size": config.patch_size,
            "image_size": config.position_grid * config.patch_size,
            "num_windows": config.num_windows,
            "drop_path_rate": config.drop_path,
            "out_features": [f"stage{layer}" for layer in config.out_layers],
            "out_indices": list(config.out_layers),
        },
    }
