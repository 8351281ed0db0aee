"""Rules across settings, of models and of training runs. Importing this module does not import torch.

Rules within one field (types, ranges) stand with the field; rules that need the data or the hardware, where known.
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from detrkit.config.model import ModelConfig
from detrkit.config.training import TrainingConfig, setting_field
from detrkit.errors import ConfigError, arg

if TYPE_CHECKING:
    from detrkit.config.run import RunConfig

LENGTHS = ("epochs", "steps", "minutes")  # of a run, of which one is given
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
STRONG_AUGMENTATION = (
    "photometric",
    "scale_jitter",
    "mosaic",
    "mixup",
    "zoom_out",
    "iou_crop",
    "multi_scale",
)  # end at `strong_aug_until`
Rules = Iterable[tuple[bool, str]]  # whether a rule is broken, and the message if it is


def check_model(model: ModelConfig) -> None:
    """Check the fields of a model's configuration against each other.

    Raises:
        ConfigError: two do not fit together.
    """
    _check([*_size_rules(model), *_part_rules(model), *_backbone_rules(model), *_hybrid_rules(model)])


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
            model.mask_head and bool(model.hidden_dim % mask_width or model.num_heads % 8),
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
    defaults = {name: ModelConfig.model_fields[name].default for name in HYBRID_SETTINGS}
    only_hybrid = next((name for name, default in defaults.items() if getattr(model, name) != default), None)
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


def _part_rules(model: ModelConfig) -> Rules:
    references = f"Set {arg('queries', 'points')} or {arg('queries', 'anchors')}."
    queries, two_stage = arg("queries", model.queries), arg("queries", "two_stage")
    positions = arg("position_embedding", model.position_embedding)
    encoder_adds = model.encoder_positions == "input" or (
        model.encoder_layers > 0 and model.encoder_positions != "none"
    )
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
    """Rules for the decoders of RT-DETR and D-FINE."""
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
    ]


def check_given(settings: Mapping[str, Any]) -> None:
    """Check settings that were given together, by name.

    Raises:
        ConfigError: two contradict each other, or one comes from the data.
    """
    lengths = [arg(name) for name in LENGTHS if settings.get(name) is not None]
    _check(
        [
            (
                len(lengths) > 1,
                f"{' and '.join(lengths)} exclude each other: each gives the length of the run. Leave one in.",
            ),
            (
                "num_classes" in settings,
                f"{arg('num_classes', settings.get('num_classes'))} cannot be set: the number of classes comes from the "
                "dataset. Leave it out.",
            ),
        ]
    )


def check_seed(seed: int) -> None:
    """Check a seed, from which those of several generators are derived.

    Raises:
        ConfigError: it is negative or too large.
    """
    if not 0 <= seed < 2**62:
        raise ConfigError(f"{arg('seed', seed)} is out of range; use 0 or more, and less than 2 to the power of 62")


def check_run(config: "RunConfig", model: ModelConfig, preset: ModelConfig) -> None:
    """Check the settings of a run against each other and against its model.

    Args:
        config: settings, with the defaults of the model filled in.
        model: the preset with the run's overrides.
        preset: the preset itself.

    Raises:
        ConfigError: two settings contradict each other, or one has no effect.
    """
    settings = config.training
    _check(_first_weights_rules(config, model))
    check_auxiliary_queries(model, settings)
    check_augmentation(settings, model.in_channels)
    check_evaluation(settings)
    _check_settings_with_effect(model, settings)
    _check_overrides_with_effect(config, model, preset)


def check_auxiliary_queries(model: ModelConfig, settings: TrainingConfig) -> None:
    """Check training-only queries and box losses against each other and the model.

    Raises:
        ConfigError: one does not fit.
    """
    auxiliary, loss = settings.auxiliary_queries, settings.loss
    enabled = [
        name
        for name, is_on in {
            "denoising": auxiliary.denoising > 0,
            "denoising_queries": auxiliary.denoising_queries > 0,
            "query_groups": auxiliary.query_groups > 1,
            "hybrid_queries": auxiliary.hybrid_queries > 0,
            "look_forward_twice": loss.look_forward_twice,
        }.items()
        if is_on
    ]
    is_selected = model.queries == "selected"
    contrastive = arg("contrastive_denoising", auxiliary.contrastive_denoising)
    twice = arg("look_forward_twice", loss.look_forward_twice)
    _check(
        [
            (
                auxiliary.contrastive_denoising and not auxiliary.has_denoising,
                f"{contrastive} needs denoising copies to add negatives to, but {arg('denoising', 0)}. "
                f"Set {arg('denoising', 5)}, for example.",
            ),
            (
                auxiliary.contrastive_denoising and not auxiliary.box_noise_scale,
                f"{contrastive} needs noise that makes negatives differ from the objects, but "
                f"{arg('box_noise_scale', auxiliary.box_noise_scale)}. Set {arg('box_noise_scale', 0.4)}, for example.",
            ),
            (
                0 < auxiliary.hybrid_queries < auxiliary.hybrid_repeats,
                f"{arg('hybrid_queries', auxiliary.hybrid_queries)} is less than the "
                f"{arg('hybrid_repeats', auxiliary.hybrid_repeats)} matches of a single object. Use more queries: "
                "repeats times the objects of an image.",
            ),
            (
                auxiliary.denoising > 0 and auxiliary.denoising_queries > 0,
                f"{arg('denoising', auxiliary.denoising)} and {arg('denoising_queries', auxiliary.denoising_queries)} "
                "exclude each other: each gives the number of copies. Leave one in.",
            ),
            (
                is_selected and auxiliary.has_denoising and not auxiliary.contrastive_denoising,
                f"{arg('queries', 'selected')} needs denoising with negatives, as published. Set "
                f"{arg('contrastive_denoising', True)}.",
            ),
            (
                is_selected and (auxiliary.query_groups > 1 or auxiliary.hybrid_queries > 0),
                f"{arg('query_groups')} and {arg('hybrid_queries')} do not work with {arg('queries', 'selected')}, whose "
                "cells are selected once. Leave them out.",
            ),
            (
                loss.look_forward_twice and not model.with_box_refine,
                f"{twice} needs a model whose layers refine each other's boxes. Leave it out, or choose such a model "
                "(detrkit-s, detrkit-m, deformable-detr-r50-refine).",
            ),
            (
                loss.look_forward_twice and (model.decoder == "conditional" or is_selected),
                f"{twice} has no effect: Conditional DETR, DAB-DETR, RT-DETR and D-FINE already pass gradients to the "
                "layer before, as published. Leave it out.",
            ),
            (
                loss.cls_loss != "default" and model.class_scores != "sigmoid",
                f"{arg('cls_loss', loss.cls_loss)} needs sigmoid class scores, but the model has {model.class_scores} "
                f"scores. Leave it out, or set {arg('class_scores', 'sigmoid')}.",
            ),
            (
                settings.optimizer.trains_masks_only(model) and bool(enabled),
                f"{', '.join(map(arg, enabled))} only trains boxes, which {_freeze(settings)} keeps frozen. Leave one of "
                "the two out.",
            ),
        ]
    )


def check_augmentation(settings: TrainingConfig, channels: int) -> None:
    """Check augmentation against the channels of the images.

    Raises:
        ConfigError: a transform is not defined for so many channels.
    """
    photometric = settings.augmentation.photometric
    _check(
        [
            (
                bool(photometric) and channels not in (1, 3),
                f"{arg('photometric', photometric)} is for RGB or grey images, and these have {channels} channels. Set "
                "it to 0.",
            )
        ]
    )


def check_evaluation(settings: TrainingConfig) -> None:
    """Check that no setting depends on scores of images that are trained on.

    Raises:
        ConfigError: one does.
    """
    for name, value in (("patience", settings.evaluation.patience), ("overfit", settings.overfit)):
        if settings.train_on_val and value:
            raise ConfigError(
                f"{arg('train_on_val', True)} leaves no images for evaluation, which {arg(name, value)} needs. Leave one "
                "of the two out."
            )


def _first_weights_rules(config: "RunConfig", model: ModelConfig) -> Rules:
    settings = config.training
    return [
        (
            settings.optimizer.trains_masks_only(model) and config.origin != "detector",
            f"{_freeze(settings)} leaves only the mask head trainable, but the boxes it builds on are untrained. Pass "
            f"{arg('weights')} of a model trained on boxes, or do not freeze.",
        )
    ]


def _freeze(settings: TrainingConfig) -> str:
    frozen = settings.optimizer.freeze
    return arg("freeze", frozen[0] if len(frozen) == 1 else list(frozen)) if frozen else arg("lr_overrides")


def _check_settings_with_effect(model: ModelConfig, settings: TrainingConfig) -> None:
    """Check that no setting was changed that has no effect."""
    augmentation, scheduler = settings.augmentation, settings.schedule.lr_scheduler
    transforms = ("horizontal_flip", "vertical_flip", "rotate90", "crop", *STRONG_AUGMENTATION)
    auxiliary, hybrid = settings.auxiliary_queries, settings.auxiliary_queries.hybrid_queries
    without_effect: list[tuple[bool, tuple[str, ...], str]] = [
        (
            not auxiliary.has_denoising,
            ("box_noise", "box_noise_scale", "label_noise_ratio"),
            f"there are no denoising queries. Set {arg('denoising', 5)}, for example, or leave it out.",
        ),
        (
            not hybrid,
            ("hybrid_repeats",),
            f"there are no hybrid queries. Set {arg('hybrid_queries', 300)}, for example, or leave it out.",
        ),
        (
            model.class_scores == "sigmoid",
            ("eos_coef",),
            "it weights the no-object class of softmax scores, and this model has sigmoid scores. Leave it out.",
        ),
        (
            scheduler != "step",
            ("lr_drop",),
            f"{arg('lr_scheduler', scheduler)} does not drop the learning rate. Leave one of the two out.",
        ),
        (
            scheduler != "flat_cosine",
            ("flat_until",),
            f"it is for {arg('lr_scheduler', 'flat_cosine')}, found {arg('lr_scheduler', scheduler)}. Leave it out.",
        ),
        (
            not settings.schedule.warmup_steps,
            ("warmup",),
            f"there is no warm-up. Set {arg('warmup_steps', 1000)}, for example, or leave it out.",
        ),
        (
            not settings.ema.ema_decay,
            ("ema_warmup_steps",),
            f"there is no moving average. Set {arg('ema_decay', 0.999)}, for example, or leave it out.",
        ),
        (
            not (augmentation.mosaic or augmentation.mixup),
            ("mosaic_until",),
            f"there is neither mosaic nor mixup. Set {arg('mosaic', 0.5)}, for example, or leave it out.",
        ),
        (
            not settings.keep_aspect_ratio,
            ("crop", "train_scale", "scale_jitter"),
            f"{arg('keep_aspect_ratio', False)} stretches all images to one size. Leave one of the two out.",
        ),
        (
            not augmentation.augment,
            transforms,
            f"{arg('augment', False)} disables augmentation. Leave one of the two out.",
        ),
        (
            not any(getattr(augmentation, name) for name in STRONG_AUGMENTATION),
            ("strong_aug_until", "strong_aug_from"),
            f"there is no strong augmentation. Set {arg('mosaic', 0.5)}, for example, or leave it out.",
        ),
        (
            model.decoder != "fine_grained",
            ("fgl_loss_coef", "ddf_loss_coef"),
            f"it is for edge distributions of {arg('decoder', 'fine_grained')}. Leave it out.",
        ),
        (
            not model.mask_head,
            ("mask_loss_coef", "dice_loss_coef"),
            "this model predicts no masks. Leave it out, or choose a model that ends in -panoptic.",
        ),
        (
            not model.is_deformable,
            ("offset_lr_factor",),
            "it is for sampling offsets of deformable attention, which this model does not have. Leave it out.",
        ),
    ]
    for is_unused, names, reason in without_effect:
        for name in names:
            if is_unused and settings[name] != setting_field(name).default:
                raise ConfigError(f"{arg(name, settings[name])} has no effect: {reason}")


def _check_overrides_with_effect(config: "RunConfig", model: ModelConfig, preset: ModelConfig) -> None:
    """Check that no field of the model was changed that has no effect."""
    positions = model.position_embedding
    without_effect = {
        "num_points": (not model.is_deformable, "this model has no deformable attention"),
        "points_per_level": (not model.is_deformable, "this model has no deformable attention"),
        "sampling": (not model.is_deformable, "this model has no deformable attention"),
        "query_position_layers": (model.queries != "selected", f"it is for {arg('queries', 'selected')}"),
        "reg_max": (model.decoder != "fine_grained", f"it is for {arg('decoder', 'fine_grained')}"),
        "reg_scale": (model.decoder != "fine_grained", f"it is for {arg('decoder', 'fine_grained')}"),
        "max_detections": (
            model.class_scores == "softmax",
            "it is for sigmoid scores, and this model has softmax scores",
        ),
        "max_position_embeddings": (positions != "learned", f"it is for {arg('position_embedding', 'learned')}"),
        "position_temperature": (positions != "sine", f"it is for {arg('position_embedding', 'sine')}"),
        "scaled_positions": (
            not model.encoder_layers or positions == "none",
            "this model has no encoder layers that use position encodings",
        ),
    }
    for name, (is_unused, reason) in without_effect.items():
        value = config.model_overrides.get(name, getattr(preset, name))
        if is_unused and value != getattr(preset, name):
            raise ConfigError(f"{arg(name, value)} has no effect: {reason}. Leave it out.")


def _check(rules: Rules) -> None:
    for is_broken, message in rules:
        if is_broken:
            raise ConfigError(message)
