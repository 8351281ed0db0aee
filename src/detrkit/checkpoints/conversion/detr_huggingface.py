"""DETR in Hugging Face's format: entry names, class names and config fields.

Reading accepts every form these names have had: files (the same in every version) and live models since version 5 of
transformers, each with a timm backbone ("facebook/detr-resnet-50") or Hugging Face's own ResNet (revision "no_timm").
Writing uses the names of files. The rules are shared by the architectures whose code derives from DETR's.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from torch import Tensor

from detrkit.checkpoints.conversion.key_mapping import (
    Rule,
    mlp_rules,
    rename_from_detrkit,
    rename_to_detrkit,
    without_step_counters,
)
from detrkit.config.model import ModelConfig
from detrkit.models.backbones.residual_blocks import BasicBlock
from detrkit.models.backbones.resnet import VARIANTS

MODEL_TYPE = "detr"
MODEL_CLASS = "DetrForObjectDetection"
IMAGE_PROCESSOR = "DetrImageProcessor"

ENCODER_LAYER, DECODER_LAYER, DECODER = "model.encoder.layers.{n}.", "model.decoder.layers.{n}.", "model.decoder."
FILE_BACKBONE, LIVE_BACKBONE = "model.backbone.conv_encoder.model.", "model.backbone.model."


def attention_rules(detrkit: str, other: str) -> list[Rule]:
    """Return rules for dense attention and the norm after it."""
    return [
        (f"{detrkit}.query_projection.", f"{other}.q_proj."),
        (f"{detrkit}.key_projection.", f"{other}.k_proj."),
        (f"{detrkit}.value_projection.", f"{other}.v_proj."),
        (f"{detrkit}.output_projection.", f"{other}.out_proj."),
        (f"{detrkit}.output_projection.", f"{other}.o_proj."),  # live models
        (f"{detrkit}_residual.norm.", f"{other}_layer_norm."),
    ]


def feed_forward_rules(detrkit: str, other: str) -> list[Rule]:
    """Return rules for the feed-forward network of a layer and the norm after it."""
    return [
        (f"{detrkit}feed_forward.expand.", f"{other}fc1."),
        (f"{detrkit}feed_forward.contract.", f"{other}fc2."),
        (f"{detrkit}feed_forward.expand.", f"{other}mlp.fc1."),  # live models
        (f"{detrkit}feed_forward.contract.", f"{other}mlp.fc2."),
        (f"{detrkit}feed_forward_residual.norm.", f"{other}final_layer_norm."),
    ]


_BOX_RULES: list[Rule] = [
    ("neck.positions.rows.", "model.position_embedding.row_embeddings."),
    ("neck.positions.columns.", "model.position_embedding.column_embeddings."),
    ("neck.positions.rows.", "model.backbone.position_embedding.row_embeddings."),  # before version 5
    ("neck.positions.columns.", "model.backbone.position_embedding.column_embeddings."),
    ("neck.projection.", "model.input_projection."),
    ("query_source.", "model.query_position_embeddings."),
    *attention_rules("encoder.layers.{n}.self_attention", f"{ENCODER_LAYER}self_attn"),
    *feed_forward_rules("encoder.layers.{n}.", ENCODER_LAYER),
    *attention_rules("decoder.layers.{n}.self_attention", f"{DECODER_LAYER}self_attn"),
    *attention_rules("decoder.layers.{n}.cross_attention", f"{DECODER_LAYER}encoder_attn"),
    *feed_forward_rules("decoder.layers.{n}.", DECODER_LAYER),
    ("decoder.norm.", f"{DECODER}layernorm."),
    ("heads.class_head.", "class_labels_classifier."),
    *mlp_rules("heads.box_head.", "bbox_predictor.", num_layers=3),
]


def _mask_rules() -> list[Rule]:
    rules: list[Rule] = [
        ("mask_head.attention_maps.query_projection.", "bbox_attention.q_linear."),
        ("mask_head.attention_maps.key_projection.", "bbox_attention.k_linear."),
        ("mask_head.attention_maps.query_projection.", "bbox_attention.q_proj."),  # live models, as in each second pair
        ("mask_head.attention_maps.key_projection.", "bbox_attention.k_proj."),
        ("mask_head.output.", "mask_head.out_lay."),
        ("mask_head.output.", "mask_head.output_conv."),
    ]
    stages = [f"mask_head.input_stages.{index}." for index in range(2)] + [
        f"mask_head.stages.{index}." for index in range(3)
    ]
    for index, detrkit in enumerate(stages):
        live = f"mask_head.conv{index + 1}." if index < 2 else f"mask_head.fpn_stages.{index - 2}.refine."
        rules += [
            (f"{detrkit}convolution.", f"mask_head.lay{index + 1}."),
            (f"{detrkit}norm.", f"mask_head.gn{index + 1}."),
            (f"{detrkit}convolution.", f"{live}conv."),
            (f"{detrkit}norm.", f"{live}norm."),
        ]
    for index in range(3):
        rules += [
            (f"mask_head.adapters.{index}.", f"mask_head.adapter{index + 1}."),
            (f"mask_head.adapters.{index}.", f"mask_head.fpn_stages.{index}.fpn_adapter."),
        ]
    return rules


def _native_resnet_rules(prefix: str) -> list[Rule]:
    """Return rules for Hugging Face's own ResNet."""
    rules: list[Rule] = [
        ("backbone.body.conv1.", f"{prefix}embedder.embedder.convolution."),
        ("backbone.body.bn1.", f"{prefix}embedder.embedder.normalization."),
    ]
    for stage in range(4):
        detrkit, other = f"backbone.body.layer{stage + 1}.{{n}}.", f"{prefix}encoder.stages.{stage}.layers.{{n}}."
        rules += [
            (f"{detrkit}downsample.0.", f"{other}shortcut.convolution."),
            (f"{detrkit}downsample.1.", f"{other}shortcut.normalization."),
        ]
        for index in range(3):
            rules += [
                (f"{detrkit}conv{index + 1}.", f"{other}layer.{index}.convolution."),
                (f"{detrkit}bn{index + 1}.", f"{other}layer.{index}.normalization."),
            ]
    return rules


def matches(names: Collection[str]) -> bool:
    """Return whether entries are those of Hugging Face's DETR."""
    return any("model.decoder.layers.0.encoder_attn.q_proj." in name for name in names)


def to_detrkit(
    state: Mapping[str, Tensor], extra_rules: Iterable[Rule] = (), timm_backbone: str = FILE_BACKBONE
) -> dict[str, Tensor]:
    """Rename Hugging Face's entries to detrkit's.

    Args:
        state: entries of a file or of a live model.
        extra_rules: of a derived architecture; they come first.
        timm_backbone: prefix of a timm backbone's entries in files.

    Raises:
        CheckpointError: an entry has no counterpart.
    """
    backbone = [*_native_resnet_rules(FILE_BACKBONE), *_native_resnet_rules(LIVE_BACKBONE)]
    backbone += [("backbone.body.", timm_backbone), ("backbone.body.", LIVE_BACKBONE)]
    has_masks = any(name.startswith("detr.") for name in state)
    return rename_to_detrkit(without_step_counters(state), _rules([*extra_rules, *backbone], has_masks))


def from_detrkit(
    state: Mapping[str, Tensor],
    native_backbone: bool = False,
    extra_rules: Iterable[Rule] = (),
    timm_backbone: str = FILE_BACKBONE,
) -> dict[str, Tensor]:
    """Rename detrkit's entries to those of Hugging Face's files.

    Args:
        state: entries in detrkit's names.
        native_backbone: name the backbone as Hugging Face's own ResNet instead of timm's.
        extra_rules: of a derived architecture; they come first.
        timm_backbone: prefix of a timm backbone's entries.
    """
    backbone = _native_resnet_rules(FILE_BACKBONE) if native_backbone else [("backbone.body.", timm_backbone)]
    return rename_from_detrkit(state, _rules([*extra_rules, *backbone], "mask_head.output.weight" in state))


def fields_from_config(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of `ModelConfig` that ``config.json`` holds and the weights do not show."""
    return {
        "num_heads": content.get("encoder_attention_heads", 8),
        "dropout": content.get("dropout", 0.1),
        "dilation": bool(content.get("dilation")) or _output_stride(content) == 16,
    }


def _output_stride(content: Mapping[str, Any]) -> object:
    backbone = content.get("backbone_config")
    return backbone.get("output_stride") if isinstance(backbone, dict) else None


def resnet_config_fields(name: str) -> dict[str, Any]:
    """Return the sizes of a ResNet or ResNet-vd in the configuration of transformers' own backbone."""
    variant = VARIANTS[name]
    return {
        "depths": list(variant.depths),
        "hidden_sizes": list(variant.channels),
        "layer_type": "basic" if variant.block is BasicBlock else "bottleneck",
    }


def config_fields(config: ModelConfig) -> dict[str, Any]:
    """Return the architecture's own fields of ``config.json``."""
    return {"d_model": config.hidden_dim}


def _rules(rules: Iterable[Rule], has_masks: bool) -> list[Rule]:
    rules = [*rules, *_BOX_RULES]
    return [(detrkit, f"detr.{other}") for detrkit, other in rules] + _mask_rules() if has_masks else rules


def computed_entries(config: ModelConfig) -> dict[str, Tensor]:
    """Return no entries: all that files hold are weights."""
    return {}
