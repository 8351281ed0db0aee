"""Rules across the fields of a model's configuration. Importing this module does not import torch."""

from collections.abc import Iterable, Sequence

from detrkit.config.model import PROJECTOR_SCALES, ModelConfig
from detrkit.errors import ConfigError, arg

HYBRID_SETTINGS = (  # of the hybrid encoder only
    "encoder_dim",
    "encoder_dim_feedforward",
    "attention_levels",
    "fusion_block",
    "fusion_depth",
    "fusion_expansion",
    "memory_projection",
    "distillation_dim",
)
FINE_GRAINED_SETTINGS = (  # of the fine_grained decoder only
    "decoder_norm",
    "decoder_feed_forward",
    "cross_attention_gate",
    "shared_box_head",
    "layerwise_query_positions",
)
VIT_SETTINGS = (  # of ViT backbones only
    "backbone_layers",
    "patch_size",
    "num_windows",
    "global_layers",
    "out_layers",
    "position_grid",
    "num_register_tokens",
    "drop_path",
    "projector_norm",
)
Rules = Iterable[tuple[bool, str]]  # whether a rule is broken, and the message if it is


def check_rules(rules: Rules) -> None:
    """Raise the error of the first rule that is broken.

    Raises:
        ConfigError: one is.
    """
    for is_broken, message in rules:
        if is_broken:
            raise ConfigError(message)


def check_image_size(size: Sequence[int], divisor: int) -> None:
    """Check that an image can be cut into patches and windows of a ViT.

    Args:
        size: (height, width) in pixels.
        divisor: see `ModelConfig.size_divisor`.

    Raises:
        ConfigError: it cannot.
    """
    if all(side and side % divisor == 0 for side in size):
        return
    below, above = ([max(1, (side + step) // divisor) * divisor for side in size] for step in (0, divisor - 1))
    raise ConfigError(
        f"images of {size[0]} x {size[1]} pixels (height x width) cannot be cut into patches and windows of this model: "
        f"sides must be multiples of {divisor}. The nearest are {below[0]} x {below[1]} and {above[0]} x {above[1]}."
    )


def check_model(model: ModelConfig) -> None:
    """Check the fields of a model's configuration against each other.

    Raises:
        ConfigError: two do not fit together.
    """
    check_rules(
        [
            *_size_rules(model),
            *_query_rules(model),
            *_position_rules(model),
            *_backbone_rules(model),
            *_hybrid_rules(model),
            *_vit_rules(model),
            *_mixed_rules(model),
        ]
    )


def _size_rules(model: ModelConfig) -> Rules:
    width, heads = arg("hidden_dim", model.hidden_dim), arg("num_heads", model.num_heads)
    points = model.points_per_level
    mask_width = 64 if model.backbone == "resnet-tiny" else 128  # halved at every stage, down to the groups of norms
    return [
        (
            bool(model.hidden_dim % model.num_heads or model.hidden_dim % 4),
            f"{width} must be a multiple of 4 and of {heads}.",
        ),
        (
            model.is_multi_scale and (model.hidden_dim % 32 != 0 or model.hidden_dim == 32),
            f"{width} must be 64, 96, 128 and so on: the feature maps of multi-scale models are normalised in 32 groups.",
        ),
        (
            model.has_panoptic_head and bool(model.hidden_dim % mask_width or model.num_heads % 8),
            f"{arg('mask_head', True)} needs {arg('hidden_dim')} to be a multiple of {mask_width} and "
            f"{arg('num_heads')} of 8 with this backbone, found {model.hidden_dim} and {model.num_heads}.",
        ),
        (
            model.eval_decoder_layers is not None and model.eval_decoder_layers > model.decoder_layers,
            f"{arg('eval_decoder_layers', model.eval_decoder_layers)} is more than the model has: "
            f"{arg('decoder_layers', model.decoder_layers)}.",
        ),
        (
            points is not None and len(points) != model.num_feature_levels,
            f"{arg('points_per_level', points and list(points))} needs a number for each of the "
            f"{model.num_feature_levels} feature maps.",
        ),
    ]


def _backbone_rules(model: ModelConfig) -> Rules:
    backbone = arg("backbone", model.backbone)
    is_hgnet = model.backbone.startswith("hgnetv2-")
    return [
        (
            model.dilation
            and (is_hgnet or model.backbone.endswith("-vd") or model.backbone in ("resnet18", "resnet34")),
            f"{backbone} cannot be dilated; resnet50, resnet101 and resnet-tiny can. Leave out {arg('dilation')}.",
        ),
        (
            model.learnable_affine_block is not None and not is_hgnet,
            f"{arg('learnable_affine_block', model.learnable_affine_block)} is for HGNetV2 backbones, found {backbone}. "
            "Leave it out.",
        ),
    ]


def _hybrid_rules(model: ModelConfig) -> Rules:
    encoder, width = arg("encoder", model.encoder), arg("encoder_dim", model.encoder_dim)
    only_hybrid = _first_changed(model, HYBRID_SETTINGS)
    found = arg(only_hybrid, getattr(model, only_hybrid)) if only_hybrid else ""
    positions = arg("position_embedding", model.position_embedding)
    return [
        (
            not model.is_hybrid and only_hybrid is not None,
            f"{found} is for {arg('encoder', 'hybrid')}, found {encoder}. Leave it out.",
        ),
        (
            model.is_hybrid and bool(model.encoder_width % model.num_heads or model.encoder_width % 4),
            f"{width} must be a multiple of 4 and of {arg('num_heads', model.num_heads)}.",
        ),
        (
            model.is_hybrid and model.decoder in ("dense", "conditional"),
            f"{encoder} has no position encodings for {arg('decoder', model.decoder)}. Set {arg('decoder', 'deformable')}.",
        ),
        (
            model.is_hybrid and model.num_feature_levels > 3,
            f"{encoder} fuses at most 3 feature maps, found {arg('num_feature_levels', model.num_feature_levels)}.",
        ),
        (
            model.fusion_block == "lite" and model.num_feature_levels != 2,
            f"{arg('fusion_block', 'lite')} fuses 2 feature maps, found "
            f"{arg('num_feature_levels', model.num_feature_levels)}.",
        ),
        (
            model.is_hybrid and model.attention_levels > model.num_feature_levels,
            f"{arg('attention_levels', model.attention_levels)} exceeds "
            f"{arg('num_feature_levels', model.num_feature_levels)}.",
        ),
        (
            model.is_hybrid and (model.scaled_positions or model.position_embedding != "sine"),
            f"{encoder} has sine positions, found {positions} and {arg('scaled_positions', model.scaled_positions)}. Leave "
            "them out.",
        ),
    ]


def _first_changed(model: ModelConfig, settings: Iterable[str]) -> str | None:
    """Return the first of the settings that differs from its default."""
    return next((name for name in settings if getattr(model, name) != ModelConfig.model_fields[name].default), None)


def _vit_rules(model: ModelConfig) -> Rules:
    backbone, changed = arg("backbone", model.backbone), _first_changed(model, VIT_SETTINGS)
    found = arg(changed, getattr(model, changed)) if changed else ""
    wrong = [layer for layer in model.out_layers if not 1 <= layer <= model.backbone_layers]
    wrong_global = [layer for layer in model.global_layers if layer >= model.backbone_layers]
    layers = arg("backbone_layers", model.backbone_layers)
    return [
        (not model.is_vit and changed is not None, f"{found} is for ViT backbones, found {backbone}. Leave it out."),
        (
            model.is_vit and (bool(wrong) or len(set(model.out_layers)) < len(model.out_layers)),
            f"{arg('out_layers', list(model.out_layers))} are different numbers from 1 to {layers}.",
        ),
        (
            model.is_vit and bool(wrong_global),
            f"{arg('global_layers', list(model.global_layers))} are blocks from 0 to {model.backbone_layers - 1}.",
        ),
        (
            model.is_vit and model.num_feature_levels not in PROJECTOR_SCALES,
            f"{arg('num_feature_levels', model.num_feature_levels)} is more than {backbone} has: 1, 2 or 3.",
        ),
        (
            model.is_vit and (model.encoder_layers > 0 or not model.has_deformable_decoder),
            f"{backbone} needs {arg('encoder_layers', 0)} and {arg('decoder', 'deformable')}: its maps have no position "
            f"encodings, found {arg('encoder_layers', model.encoder_layers)} and {arg('decoder', model.decoder)}.",
        ),
        (
            model.is_vit and (model.dilation or model.is_hybrid),
            f"{backbone} does not work with {arg('dilation')} and {arg('encoder', 'hybrid')}. Leave them out.",
        ),
        (
            model.is_vit and model.has_panoptic_head,
            f"{backbone} needs {arg('queries', 'mixed')} to predict masks: it has one feature map. Leave out "
            f"{arg('mask_head')}.",
        ),
        (
            model.is_vit and model.num_feature_levels > 1 and model.patch_size % 2 == 1,
            f"{arg('patch_size', model.patch_size)} must be even with several feature maps, as the finest has half of it.",
        ),
        (
            model.num_register_tokens > 0 and not model.backbone.startswith("dinov2-"),
            f"{arg('num_register_tokens', model.num_register_tokens)} is for DINOv2 backbones, found {backbone}. Leave it "
            "out.",
        ),
    ]


def _mixed_rules(model: ModelConfig) -> Rules:
    mixed, queries, is_mixed = arg("queries", "mixed"), arg("queries", model.queries), model.queries == "mixed"
    heads = model.cross_attention_heads
    return [
        (
            is_mixed and model.decoder != "deformable",
            f"{mixed} needs {arg('decoder', 'deformable')}, found {arg('decoder', model.decoder)}.",
        ),
        (
            is_mixed and (model.with_box_refine or model.layerwise_heads),
            f"{mixed} keeps its boxes in all layers, which share their heads. Set {arg('with_box_refine', False)} and "
            f"{arg('layerwise_heads', False)}.",
        ),
        (
            is_mixed and model.class_scores != "sigmoid",
            f"{mixed} ranks cells by a sigmoid score. Set {arg('class_scores', 'sigmoid')}.",
        ),
        (
            not is_mixed and model.group_detr > 1,
            f"{arg('group_detr', model.group_detr)} is for {mixed}, found {queries}. Leave it out, or train other queries "
            f"with {arg('query_groups')}.",
        ),
        (
            heads is not None and (not model.has_deformable_decoder or model.hidden_dim % heads != 0),
            f"{arg('cross_attention_heads', heads)} is for deformable cross-attention, and must divide "
            f"{arg('hidden_dim', model.hidden_dim)}.",
        ),
    ]


def _query_rules(model: ModelConfig) -> Rules:
    references = f"Set {arg('queries', 'points')} or {arg('queries', 'anchors')}."
    queries, two_stage = arg("queries", model.queries), arg("queries", "two_stage")
    return [
        (
            model.queries == "learned" and model.decoder != "dense",
            f"{arg('decoder', model.decoder)} needs queries with reference points, but {queries} has none. {references}",
        ),
        (
            model.queries == "learned" and model.with_box_refine,
            f"{arg('with_box_refine', True)} refines reference boxes, but {queries} has none. {references}",
        ),
        (
            model.queries == "two_stage" and not model.with_box_refine,
            f"{two_stage} selects boxes to refine. Set {arg('with_box_refine', True)}.",
        ),
        (
            model.queries == "two_stage" and model.class_scores != "sigmoid",
            f"{two_stage} ranks cells by a sigmoid score. Set {arg('class_scores', 'sigmoid')}.",
        ),
        *_selected_rules(model),
        (
            model.queries != "two_stage" and model.two_stage_content != "box",
            f"{arg('two_stage_content', model.two_stage_content)} is for {two_stage}, found {queries}. Leave it out.",
        ),
        (
            model.align_cells and not (model.is_deformable or model.queries == "two_stage"),
            f"{arg('align_cells', True)} is for deformable attention and {two_stage}. Leave it out.",
        ),
    ]


def _position_rules(model: ModelConfig) -> Rules:
    positions = arg("position_embedding", model.position_embedding)
    encoder_adds = model.encoder_positions == "input" or (
        model.encoder_layers > 0 and model.encoder_positions != "none"
    )
    return [
        (
            model.is_multi_scale and model.position_embedding != "sine",
            f"{positions} does not work with several feature maps or deformable attention. Set "
            f"{arg('position_embedding', 'sine')}.",
        ),
        (
            (model.is_multi_scale or model.queries != "learned") and model.position_injections != {"attention"},
            f"{arg('encoder_positions')}, {arg('decoder_positions')} and {arg('query_positions')} other than 'attention' "
            f"need dense attention and {arg('queries', 'learned')}. Leave them out.",
        ),
        (
            model.position_embedding == "learned" and not encoder_adds and model.decoder_positions == "none",
            f"{positions} cannot be trained if positions are added nowhere. Set {arg('position_embedding', 'none')}.",
        ),
    ]


def _selected_rules(model: ModelConfig) -> Rules:
    """Rules for the decoders of RT-DETR, D-FINE and DEIMv2."""
    only_fine_grained = _first_changed(model, FINE_GRAINED_SETTINGS)
    found = arg(only_fine_grained, getattr(model, only_fine_grained)) if only_fine_grained else ""
    selected, fine_grained = arg("queries", "selected"), arg("decoder", "fine_grained")
    is_selected, is_fine_grained = model.queries == "selected", model.decoder == "fine_grained"
    return [
        (
            is_selected and not model.has_deformable_decoder,
            f"{selected} needs {arg('decoder', 'deformable')} or {fine_grained}, found {arg('decoder', model.decoder)}.",
        ),
        (
            is_selected and not model.with_box_refine,
            f"{selected} selects boxes to refine. Set {arg('with_box_refine', True)}.",
        ),
        (
            is_selected and model.class_scores != "sigmoid",
            f"{selected} ranks cells by a sigmoid score. Set {arg('class_scores', 'sigmoid')}.",
        ),
        (
            is_fine_grained and not is_selected,
            f"{fine_grained} needs {selected}, found {arg('queries', model.queries)}.",
        ),
        (
            is_fine_grained and not model.layerwise_heads,
            f"{fine_grained} has heads of its own in every layer. Set {arg('layerwise_heads', True)}.",
        ),
        (
            is_fine_grained and model.pre_norm,
            f"{fine_grained} normalises after its gates. Set {arg('pre_norm', False)}.",
        ),
        (
            not is_fine_grained and only_fine_grained is not None,
            f"{found} is for {fine_grained}, found {arg('decoder', model.decoder)}. Leave it out.",
        ),
        (
            model.decoder_feed_forward == "swiglu" and bool(model.dim_feedforward % 2),
            f"{arg('dim_feedforward', model.dim_feedforward)} must be even with {arg('decoder_feed_forward', 'swiglu')}: "
            "half of it are gates.",
        ),
        (
            not is_selected and not model.selection_projection,
            f"{arg('selection_projection', False)} is for {selected}, found {arg('queries', model.queries)}. Leave it out.",
        ),
    ]
