"""Rules across settings of training runs. Importing this module does not import torch.

Rules within one field (types, ranges) stand with the field, those of models in `config.model_validation`; rules that need
the data or the hardware, where known.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from detrkit.config.model import ModelConfig
from detrkit.config.model_validation import Rules, check_image_size, check_rules
from detrkit.config.setting_groups import AuxiliaryQueriesConfig, LossConfig
from detrkit.config.training import TrainingConfig
from detrkit.config.without_effect import check_overrides_with_effect, check_settings_with_effect
from detrkit.errors import ConfigError, arg

if TYPE_CHECKING:
    from detrkit.config.run import RunConfig

LENGTHS = ("epochs", "steps", "minutes")  # of a run, of which one is given


def check_given(settings: Mapping[str, Any]) -> None:
    """Check settings that were given together, by name.

    Raises:
        ConfigError: two contradict each other, or one comes from the data.
    """
    lengths = [arg(name) for name in LENGTHS if settings.get(name) is not None]
    check_rules(
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
    check_rules(_first_weights_rules(config, model))
    check_auxiliary_queries(model, settings)
    check_augmentation(settings, model.in_channels)
    check_resizing(model, settings)
    check_evaluation(settings)
    check_settings_with_effect(model, settings)
    check_overrides_with_effect(config, model, preset)


def check_resizing(model: ModelConfig, settings: TrainingConfig) -> None:
    """Check that a ViT can cut the resized images into patches and windows.

    Raises:
        ConfigError: it cannot.
    """
    if not model.is_vit:
        return
    if settings.keep_aspect_ratio:
        raise ConfigError(
            f"{arg('keep_aspect_ratio', True)} gives images of all sizes, but {arg('backbone', model.backbone)} needs "
            f"sides that are multiples of {model.size_divisor}. Set {arg('keep_aspect_ratio', False)}."
        )
    check_image_size((settings.image_size, settings.image_size), model.size_divisor)


def check_auxiliary_queries(model: ModelConfig, settings: TrainingConfig) -> None:
    """Check training-only queries and box losses against each other and the model.

    Raises:
        ConfigError: one does not fit.
    """
    check_rules(
        [
            *_auxiliary_rules(settings.auxiliary_queries),
            *_selected_query_rules(model, settings.auxiliary_queries),
            *_loss_rules(model, settings.loss),
            *_frozen_box_rules(model, settings),
        ]
    )


def _auxiliary_rules(auxiliary: AuxiliaryQueriesConfig) -> Rules:
    contrastive = arg("contrastive_denoising", auxiliary.contrastive_denoising)
    return [
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
    ]


def _selected_query_rules(model: ModelConfig, auxiliary: AuxiliaryQueriesConfig) -> Rules:
    """Rules for training-only queries of RT-DETR, D-FINE, LW-DETR and RF-DETR."""
    is_selected = model.queries == "selected"
    makes_queries = auxiliary.query_groups > 1 or auxiliary.hybrid_queries > 0
    return [
        (
            model.queries == "mixed" and (auxiliary.has_denoising or makes_queries),
            f"{arg('query_groups')}, {arg('hybrid_queries')} and denoising do not work with {arg('queries', 'mixed')}, "
            f"which has groups of its own. Leave them out, or set {arg('group_detr')}.",
        ),
        (
            is_selected and auxiliary.has_denoising and not auxiliary.contrastive_denoising,
            f"{arg('queries', 'selected')} needs denoising with negatives, as published. Set "
            f"{arg('contrastive_denoising', True)}.",
        ),
        (
            is_selected and makes_queries,
            f"{arg('query_groups')} and {arg('hybrid_queries')} do not work with {arg('queries', 'selected')}, whose "
            "cells are selected once. Leave them out.",
        ),
    ]


def _loss_rules(model: ModelConfig, loss: LossConfig) -> Rules:
    passes_gradients = model.decoder == "conditional" or model.queries == "selected"
    twice = arg("look_forward_twice", loss.look_forward_twice)
    return [
        (
            loss.look_forward_twice and not model.with_box_refine,
            f"{twice} needs a model whose layers refine each other's boxes. Leave it out, or choose such a model "
            "(detrkit-s, detrkit-m, deformable-detr-r50-refine).",
        ),
        (
            loss.look_forward_twice and passes_gradients,
            f"{twice} has no effect: Conditional DETR, DAB-DETR, RT-DETR and D-FINE already pass gradients to the "
            "layer before, as published. Leave it out.",
        ),
        (
            loss.cls_loss != "default" and model.class_scores != "sigmoid",
            f"{arg('cls_loss', loss.cls_loss)} needs sigmoid class scores, but the model has {model.class_scores} "
            f"scores. Leave it out, or set {arg('class_scores', 'sigmoid')}.",
        ),
    ]


def _frozen_box_rules(model: ModelConfig, settings: TrainingConfig) -> Rules:
    auxiliary = settings.auxiliary_queries
    of_boxes = {
        "denoising": auxiliary.denoising > 0,
        "denoising_queries": auxiliary.denoising_queries > 0,
        "query_groups": auxiliary.query_groups > 1,
        "hybrid_queries": auxiliary.hybrid_queries > 0,
        "look_forward_twice": settings.loss.look_forward_twice,
    }
    enabled = [name for name, is_on in of_boxes.items() if is_on]
    return [
        (
            settings.optimizer.trains_masks_only(model) and bool(enabled),
            f"{', '.join(map(arg, enabled))} only trains boxes, which {_freeze(settings)} keeps frozen. Leave one of "
            "the two out.",
        ),
    ]


def check_augmentation(settings: TrainingConfig, channels: int) -> None:
    """Check augmentation against the channels of the images.

    Raises:
        ConfigError: a transform is not defined for so many channels.
    """
    photometric = settings.augmentation.photometric
    check_rules(
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
