"""Settings without an effect, which are refused: whoever changed one expects an effect.

Importing this module does not import torch.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from detrkit.config.model import ModelConfig
from detrkit.config.setting_groups import AuxiliaryQueriesConfig
from detrkit.config.training import TrainingConfig, setting_field
from detrkit.errors import ConfigError, arg

if TYPE_CHECKING:
    from detrkit.config.run import RunConfig

STRONG_AUGMENTATION = (
    "photometric",
    "scale_jitter",
    "mosaic",
    "mixup",
    "zoom_out",
    "iou_crop",
    "multi_scale",
)  # end at `strong_aug_until`
# whether settings have no effect, their names, and why
_Unused = Iterable[tuple[bool, tuple[str, ...], str]]


def check_settings_with_effect(model: ModelConfig, settings: TrainingConfig) -> None:
    """Check that no setting was changed that has no effect.

    Raises:
        ConfigError: one was.
    """
    unused = [
        *_unused_by_queries(settings.auxiliary_queries),
        *_unused_by_schedule(settings),
        *_unused_by_augmentation(settings),
        *_unused_by_model(model),
    ]
    for is_unused, names, reason in unused:
        for name in names:
            if is_unused and settings[name] != setting_field(name).default:
                raise ConfigError(f"{arg(name, settings[name])} has no effect: {reason}")


def _unused_by_queries(auxiliary: AuxiliaryQueriesConfig) -> _Unused:
    return [
        (
            not auxiliary.has_denoising,
            ("box_noise", "box_noise_scale", "label_noise_ratio"),
            f"there are no denoising queries. Set {arg('denoising', 5)}, for example, or leave it out.",
        ),
        (
            not auxiliary.hybrid_queries,
            ("hybrid_repeats",),
            f"there are no hybrid queries. Set {arg('hybrid_queries', 300)}, for example, or leave it out.",
        ),
    ]


def _unused_by_schedule(settings: TrainingConfig) -> _Unused:
    scheduler = settings.schedule.lr_scheduler
    return [
        (
            scheduler != "step",
            ("lr_drop",),
            f"{arg('lr_scheduler', scheduler)} does not drop the learning rate. Leave one of the two out.",
        ),
        (
            scheduler != "flat_cosine",
            ("flat_until", "cosine_until"),
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
    ]


def _unused_by_augmentation(settings: TrainingConfig) -> _Unused:
    augmentation = settings.augmentation
    transforms = ("horizontal_flip", "vertical_flip", "rotate90", "crop", *STRONG_AUGMENTATION)
    return [
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
    ]


def _unused_by_model(model: ModelConfig) -> _Unused:
    return [
        (
            model.class_scores == "sigmoid",
            ("eos_coef",),
            "it weights the no-object class of softmax scores, and this model has sigmoid scores. Leave it out.",
        ),
        (
            model.decoder != "fine_grained",
            ("fgl_loss_coef", "ddf_loss_coef"),
            f"it is for edge distributions of {arg('decoder', 'fine_grained')}. Leave it out.",
        ),
        (
            model.decoder != "fine_grained",
            ("match_union",),
            f"it is for {arg('decoder', 'fine_grained')}. Leave it out.",
        ),
        (
            model.class_scores != "sigmoid",
            ("quality_matching_from",),
            "it is for sigmoid scores, and this model has softmax scores. Leave it out.",
        ),
        (
            model.drop_path == 0,
            ("drop_path_schedule", "drop_path_cutoff"),
            f"this model has no stochastic depth. Set {arg('drop_path', 0.1)} of a ViT, or leave it out.",
        ),
        (
            not model.mask_head,
            ("mask_loss_coef", "dice_loss_coef"),
            "this model predicts no masks. Leave it out, or choose one that ends in -panoptic, or rfdetr-seg-nano.",
        ),
        (
            not model.is_deformable,
            ("offset_lr_factor",),
            "it is for sampling offsets of deformable attention, which this model does not have. Leave it out.",
        ),
    ]


def check_overrides_with_effect(config: "RunConfig", model: ModelConfig, preset: ModelConfig) -> None:
    """Check that no field of the model was changed that has no effect.

    Raises:
        ConfigError: one was.
    """
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
