"""Model and criterion of a run."""

import logging
from pathlib import Path
from typing import Any

from detrkit.checkpoints.adapt import Adaptation, load_adapted
from detrkit.checkpoints.backbones import load_backbone_file, load_imagenet_backbone
from detrkit.checkpoints.load import load_checkpoint
from detrkit.checkpoints.named_model import UndescribedWeightsError
from detrkit.checkpoints.native import Checkpoint, Preprocessing
from detrkit.config.model import ModelConfig
from detrkit.config.run import MODEL_SETTINGS, RunConfig, read_yaml
from detrkit.config.training import TrainingConfig
from detrkit.data.categories import Categories
from detrkit.errors import CheckpointError, ConfigError, arg
from detrkit.losses.classification import classification_for
from detrkit.losses.criterion import SetCriterion
from detrkit.losses.matcher import HungarianMatcher
from detrkit.models.build import model_from_config
from detrkit.models.detr import DETR
from detrkit.models.presets import PRESETS, preset_config

_logger = logging.getLogger(__name__)


def build_model_for(
    config: RunConfig, categories: Categories, *, with_weights: bool = True, initial: DETR | None = None
) -> tuple[DETR, Adaptation | None]:
    """Build the model of a run and load its first weights, adapted where they differ.

    Args:
        config: of the run.
        categories: of its data.
        with_weights: false for a run that is resumed, whose state contains them.
        initial: model whose weights to start from, instead of those of the configuration.

    Raises:
        ConfigError: a preset or setting does not exist, or frozen parts would stay random.
        CheckpointError: the weights do not fit.
    """
    model = model_from_config(preset_config(config.model, **config.model_overrides, num_classes=len(categories)))
    if not with_weights:
        return model, None
    if initial is not None:
        model.load_state_dict(initial.state_dict())
        return model, None
    if config.backbone_weights is not None:
        load_backbone_file(model, Path(config.backbone_weights))
    if config.weights is None:
        return model, None
    if config.weights == "imagenet":
        load_imagenet_backbone(model)
        return model, None
    checkpoint = _read_weights(config.weights, model.config)
    preprocessing, channels = checkpoint.preprocessing, checkpoint.config.in_channels
    normalizes = config.training.normalize
    if preprocessing.normalization(channels) != Preprocessing(normalize=normalizes).normalization(channels):
        _logger.warning(
            "%s: these weights were trained on pixels that were normalised otherwise than here, where %s; the first epochs "
            "adapt them",
            config.weights,
            "ImageNet's mean and standard deviation are used" if normalizes else "they are only scaled to 0 .. 1",
        )
    try:
        adaptation = load_adapted(model, categories, checkpoint.state, checkpoint.categories)
    except CheckpointError as error:
        raise CheckpointError(f"{arg('weights', config.weights)}: {error.message}") from None
    _check_frozen(config, categories, checkpoint.categories, adaptation)
    return model, adaptation


def model_settings_of(model: DETR, num_classes: int) -> dict[str, Any]:
    """Return the settings that describe a built model: the closest preset, and all its fields.

    Raises:
        ConfigError: its number of classes is not that of the data.
    """
    if model.config.num_classes != num_classes:
        raise ConfigError(
            f"{arg('model')}: it was built for {model.config.num_classes} classes, but the data has {num_classes}. Build "
            f"it with num_classes={num_classes}."
        )
    fields = model.config.model_dump(include=set(MODEL_SETTINGS))
    return {"model": _closest_preset(fields), **fields}


def with_architecture_of_weights(config: RunConfig) -> RunConfig:
    """Use the architecture and image size of the weights, unless a model was chosen.

    Raises:
        CheckpointError: the weights cannot be read.
    """
    if "model" in config.model_fields_set or config.weights is None or config.origin != "detector":
        return config
    checkpoint = _read_weights(config.weights)
    fields = checkpoint.config.model_dump(include=set(MODEL_SETTINGS))
    training = config.training
    if "image_size" not in training.explicit:
        training = training.replace(image_size=checkpoint.preprocessing.image_size)
    return config.replace(
        model=_preset_of_run(Path(config.weights)) or _closest_preset(fields),
        model_overrides={**fields, **config.model_overrides},
        training=training,
    )


def build_criterion(model: ModelConfig, settings: TrainingConfig) -> SetCriterion:
    """Build the criterion of a run; the loss coefficients give the matching costs."""
    loss = settings.loss
    classification = classification_for(model.class_scores, model.num_classes, loss.eos_coef, cls_loss=loss.cls_loss)
    cls_cost = loss.cls_loss_coef * classification.default_cost / classification.default_coef
    costs = (cls_cost, loss.bbox_loss_coef, loss.giou_loss_coef)
    return SetCriterion(
        model.num_classes,
        class_scores=model.class_scores,
        cls_loss_coef=loss.cls_loss_coef,
        bbox_loss_coef=loss.bbox_loss_coef,
        giou_loss_coef=loss.giou_loss_coef,
        mask_loss_coef=loss.mask_loss_coef,
        dice_loss_coef=loss.dice_loss_coef,
        eos_coef=loss.eos_coef,
        matcher=HungarianMatcher(*costs, classification, loss.mask_loss_coef, loss.dice_loss_coef),
        padding_invariant=settings.padding_invariant,
        masks_only=settings.optimizer.trains_masks_only(model),
        classification=classification,
        mask_points=model.mask_head and not model.has_panoptic_head,
    )


def _read_weights(weights: str, model: ModelConfig | None = None) -> Checkpoint:
    """Read weights; those that do not describe their model are of the model to be trained."""
    try:
        return load_checkpoint(weights, fine_tuned=model)
    except UndescribedWeightsError as error:
        if model is None:
            raise CheckpointError(f"{arg('weights', weights)}: {error.message}") from None
        return load_checkpoint(weights, model=model)
    except CheckpointError as error:
        raise CheckpointError(f"{arg('weights', weights)}: {error.message}") from None


def _preset_of_run(weights: Path) -> str | None:
    """Return the preset of the run that the weights come from."""
    config = weights / "config.yaml"
    if not config.is_file():
        return None
    model = read_yaml(config).get("model")
    name = model.get("name") if isinstance(model, dict) else model
    return str(name) if name in PRESETS else None


def _closest_preset(fields: dict[str, Any]) -> str:
    """Return the preset of the same architecture, whose training settings apply."""
    names = ("decoder", "queries", "two_stage_content", "class_scores", "hidden_dim", "decoder_norm")
    same = [one for one, config in PRESETS.items() if all(getattr(config, name) == fields[name] for name in names)]
    return max(same, key=lambda one: _num_equal(PRESETS[one], fields), default="detr-r50")  # the first of equals


def _num_equal(config: ModelConfig, fields: dict[str, Any]) -> int:
    return sum(getattr(config, name) == value for name, value in fields.items())


def _check_frozen(config: RunConfig, categories: Categories, known: Categories, adaptation: Adaptation) -> None:
    """Check that the weights contain everything that stays frozen.

    Raises:
        ConfigError: part of it would stay random.
    """
    weights, freeze = arg("weights", config.weights), arg("freeze")
    frozen = [part for part, rate in config.training.optimizer.lr_of_parts().items() if rate == 0]
    missing = len(categories) - len(adaptation.known_classes)
    if "heads" in frozen and missing:
        raise ConfigError(
            f"{weights}: the checkpoint has {len(known)} classes and the data {len(categories)}, of which {missing} would "
            f"stay random, as {freeze} includes the heads. Train boxes on this data first, without {freeze}."
        )
    new = [name for name in adaptation.new if name.partition(".")[0] in frozen]
    if new:
        raise ConfigError(
            f"{weights}: the checkpoint has no {new[0]} and {len(new) - 1} other entries, which {freeze} keeps random. "
            "Use weights of the same architecture, or freeze fewer parts."
        )
