"""Planner: chooses the settings that were not given, from the model, the size of the dataset and the first weights.

The recipe "auto" follows rules of thumb, measured on small datasets and small machines. The recipe "reference" is the
paper's training (section A.4), and for DETR's successors that of their published code.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from detrkit._internal.text import plural
from detrkit.config.model import ModelConfig
from detrkit.config.run import RunConfig
from detrkit.config.setting_groups import BOXES
from detrkit.config.training import TrainingConfig
from detrkit.config.validation import check_run
from detrkit.models.presets import preset_config
from detrkit.training import foundation_recipes
from detrkit.training.duration import EVALUATION_SHARE, MAX_EVALUATIONS
from detrkit.training.realtime_recipes import common_settings, published_training, reference_settings

_MEASURED = "higher AP on small datasets than the published value (docs/results.md)"
_TINY_MEASURED = "fits synthetic shapes within minutes"
_PUBLISHED = "as published"
# value and reason of a setting; "" for one that is not worth a line
Defaults = Mapping[str, tuple[Any, str]]
TINY: Defaults = {
    "image_size": (256, "a tenth of the pixels of 800 px, for training on a CPU"),
    "batch_size": (8, _TINY_MEASURED),
    "lr": (5e-4, _TINY_MEASURED),
    "clip_grad_norm": (1.0, _TINY_MEASURED),
    "cls_loss_coef": (2.0, _TINY_MEASURED),
}
# for detrkit's presets on photographs: measured on blood cells and an aquarium (docs/results/blood-cells.md)
OWN: Defaults = {
    "image_size": (320, "a sixth of the pixels of 800 px, for training on a CPU; more for objects below 10 px"),
    "train_scale": (1.25, "training sizes of 0.75 to 1.25 times the evaluation size"),
    "batch_size": (4, _MEASURED),
    "lr": (1e-3, _MEASURED),
    "backbone_lr": (5e-4, _MEASURED),
    "offset_lr_factor": (1.0, ""),
    "clip_grad_norm": (1.0, ""),
    "cls_loss_coef": (3.0, _MEASURED),
    "cls_loss": ("align", "scores follow the IoU of the box (Align-DETR)"),
    "look_forward_twice": (True, "boxes also get the gradient of the next layer (DINO)"),
    "denoising": (3, "reconstructing noised boxes speeds up convergence (DN-DETR)"),
    "contrastive_denoising": (True, "noised negatives, which lower the scores of duplicates (DINO)"),
}
_OF_PRESETS: dict[str, Defaults] = {"detr-tiny": TINY, "detrkit-s": OWN, "detrkit-m": OWN}
MIN_STEPS = {"detector": 1_500, "imagenet": 6_000, "scratch": 12_000}  # by origin of the weights
_EXTRA_EPOCHS = {"detector": 10, "imagenet": 50, "scratch": 100}  # on top of them
_DEFORMABLE: Defaults = {  # published main.py
    "lr": (2e-4, _PUBLISHED),
    "backbone_lr": (2e-5, _PUBLISHED),
    "offset_lr_factor": (0.1, _PUBLISHED),
}
_FOCAL: Defaults = {"cls_loss_coef": (2.0, "focal loss, as published")}
_REFERENCE: Defaults = {"padding_invariant": (False, _PUBLISHED), "group_by_aspect_ratio": (False, _PUBLISHED)}
# all of them lower the learning rate after 40 of 50 epochs
_SUCCESSORS: Defaults = {"epochs": (50, _PUBLISHED), "lr_drop": (0.8, "after 40 of 50 epochs, as published")}
_SMALL_DATASET = 300  # images, below which the scales of real-time detectors are not varied in fine-tuning
_LONG_RUN = 5_000  # steps
_NOISE = ("denoising_queries", "box_noise", "box_noise_scale", "label_noise_ratio")  # without denoising
_MAX_WARM_UP, _WARM_UP_SHARE = 1_000, 0.05  # steps, and fraction of the run


@dataclass(frozen=True)
class Choice:
    """A setting that the planner chose.

    Attributes:
        name: of the setting.
        value: chosen.
        reason: for the value.
        source: "preset" if the model alone decides; "run" if data, weights or given settings do.
    """

    name: str
    value: Any
    reason: str
    source: Literal["preset", "run"] = "run"

    def __str__(self) -> str:
        return f"{self.name} {self.value}: {self.reason}"


@dataclass(frozen=True)
class TrainingPlan:
    """All settings of a run, and the reasons for those that were chosen.

    Attributes:
        config: without gaps.
        choices: settings that were not given, unless they keep the published default or need no reason.
        notes: about settings, data and weights, a sentence each.
        num_train, num_val, num_classes: of the dataset.
    """

    config: RunConfig
    choices: tuple[Choice, ...]
    notes: tuple[str, ...] = ()
    num_train: int = 0
    num_val: int = 0
    num_classes: int = 0


def plan_model(config: RunConfig) -> RunConfig:
    """Choose the settings that must be known before the data is opened; given settings stay.

    A randomly initialised backbone is trained completely, with ordinary batch norm: frozen norms would be the identity,
    frozen stages would stay random, and the published learning rate is meant for pretrained ones.

    Raises:
        ConfigError: a preset or setting does not exist, or two settings contradict each other.
    """
    model = preset_config(config.model, **config.model_overrides)
    defaults = _defaults(config, model)
    missing = {name: value for name, (value, _) in defaults.items() if name not in config.training.explicit}
    training = config.training.replace(**missing)
    check_run(config.replace(training=training), model, preset_config(config.model))
    overrides = config.model_overrides
    if config.origin == "imagenet" and model.backbone_normalization == "batch":
        # a pretrained backbone in a preset that trains its own from scratch: as published
        overrides = {"backbone_normalization": "frozen", "frozen_backbone_stages": 2, **overrides}
    if config.origin == "scratch":
        overrides = {"backbone_normalization": "batch", "frozen_backbone_stages": 0, **overrides}
        if "backbone_lr" not in config.training.explicit:
            training = training.replace(backbone_lr=training.optimizer.lr)
    return config.replace(model_overrides=overrides, training=training)


def _defaults(config: RunConfig, model: ModelConfig) -> Defaults:
    """Return the settings of an architecture, and then those of the preset."""
    if model.queries == "selected":
        return _realtime_defaults(config, model)
    if model.is_vit:
        return _foundation_defaults(config, model)
    defaults = dict(_FOCAL if model.class_scores == "sigmoid" else {})
    defaults |= _DEFORMABLE if model.is_deformable else {}
    if config.recipe == "reference":
        successors = _SUCCESSORS if model.queries != "learned" else {}
        defaults |= {**_REFERENCE, **successors}
        return {name: default for name, default in defaults.items() if name != "epochs" or not _has_length(config)}
    defaults |= _OF_PRESETS.get(config.model, {})
    without_use = _without_use(config.training, model)
    return {name: default for name, default in defaults.items() if name not in without_use}


def _realtime_defaults(config: RunConfig, model: ModelConfig) -> Defaults:
    """Return the settings of RT-DETR and its successors, with learning rates that keep their ratio to a given `lr`."""
    lr = config.training.explicit.get("lr")
    if config.recipe == "reference":
        defaults = {**_REFERENCE, **reference_settings(config.model, lr)}
        return {name: default for name, default in defaults.items() if name != "epochs" or not _has_length(config)}
    without_use = _without_use(config.training, model)
    return {name: one for name, one in common_settings(config.model, lr).items() if name not in without_use}


def _foundation_defaults(config: RunConfig, model: ModelConfig) -> Defaults:
    """Return the settings of LW-DETR and RF-DETR."""
    if config.recipe == "reference":
        defaults = {**_REFERENCE, **foundation_recipes.reference_settings(config.model, model, config.training)}
        return {name: default for name, default in defaults.items() if name != "epochs" or not _has_length(config)}
    without_use = _without_use(config.training, model)
    common = foundation_recipes.common_settings(config.model, model, config.training)
    return {name: one for name, one in common.items() if name not in without_use}


def _has_length(config: RunConfig) -> bool:
    """Return whether the run has a number of steps or a time limit, so that its number of epochs follows."""
    return config.training.steps is not None or config.training.minutes is not None


def _without_use(given: TrainingConfig, model: ModelConfig) -> set[str]:
    """Return settings of a preset that do not apply to the model or to given settings."""
    auxiliary = given.auxiliary_queries
    names = set() if model.class_scores == "sigmoid" else {"cls_loss"}
    if not model.with_box_refine:
        names.add("look_forward_twice")
    if given.optimizer.trains_masks_only(model):
        names |= {"look_forward_twice", "denoising", "contrastive_denoising", *_NOISE}
    explicit = given.explicit
    is_off = {"denoising", "denoising_queries"} & set(explicit) and not auxiliary.has_denoising
    if is_off or ("box_noise_scale" in explicit and not auxiliary.box_noise_scale):
        names |= {"contrastive_denoising", *(_NOISE if is_off else ())}
    if auxiliary.denoising:
        names.add("denoising_queries")
    if not given.keep_aspect_ratio and not given.augmentation.augment:
        names |= {"photometric", "zoom_out", "iou_crop", "multi_scale"}
    return names


def plan_training(config: RunConfig, given: set[str], num_images: int, num_processes: int = 1) -> TrainingPlan:
    """Choose the remaining settings, from the size of the dataset.

    Args:
        config: returned by `plan_model`.
        given: names of the settings that were given.
        num_images: training images.
        num_processes: started by torchrun or srun; those of `devices` are known.
    """
    settings = config.training
    images_per_batch = settings.batch_size * max(settings.hardware.devices, num_processes)
    model = preset_config(config.model, **config.model_overrides)
    if config.recipe == "reference":
        choices = _reference(config, model, images_per_batch)
    elif settings.overfit:
        choices = []  # a check of what was given, with the preset's settings and nothing else
    else:
        choices = [*_length(config, given, num_images, images_per_batch), *_auto(config, model, given, num_images)]
    chosen = {choice.name for choice in choices}
    of_preset = {
        name: Choice(name, settings[name], reason, "run" if name == "backbone_lr" and "lr" in given else "preset")
        for name, (_, reason) in _defaults(config, model).items()
        if name not in chosen
    }
    if config.origin == "scratch" and "backbone_lr" in of_preset:
        rate = settings.optimizer.backbone_lr
        of_preset["backbone_lr"] = Choice(
            "backbone_lr", rate, "equal to lr: the backbone starts from random weights, too"
        )
    choices = [choice for choice in (*of_preset.values(), *choices) if choice.name not in given]
    training = settings.replace(**{choice.name: choice.value for choice in choices})
    told = tuple(choice for choice in choices if choice.reason)
    return TrainingPlan(config.replace(training=training), told, tuple(_notes(training, given, num_images)))


def _reference(config: RunConfig, model: ModelConfig, images_per_batch: int) -> list[Choice]:
    training: Any = published_training(config.model) if model.queries == "selected" else None
    training = foundation_recipes.published_training(config.model) if model.is_vit else training
    published = 64 if model.queries == "learned" else 32 if model.is_deformable else 16
    published = training.batch if training is not None else published
    choices = [
        Choice(
            "gradient_accumulation", max(1, published // images_per_batch), f"{published} images per step, as published"
        )
    ]
    if config.training.minutes is not None:
        choices.append(_evaluations_by_the_clock())
    if BOXES in config.training.optimizer.freeze:
        # section 4.4 and the published log: 25 epochs, lowered after 15
        if not _has_length(config):
            choices.append(Choice("epochs", 25, "second stage of a mask head, as published"))
        choices.append(Choice("lr_drop", 15 / 25, "after 15 of 25 epochs, as published"))
    return choices


def _length(config: RunConfig, given: set[str], num_images: int, images_per_batch: int) -> list[Choice]:
    """Choose the length of a run, and the settings that depend on it."""
    settings, origin = config.training, config.origin
    if settings.minutes is not None:
        return _by_the_clock(given)
    # the last step of an epoch may accumulate fewer batches
    steps_per_epoch = -(-max(1, num_images // images_per_batch) // settings.gradient_accumulation)
    choices: list[Choice] = []
    epochs = settings.epochs
    if not given & {"epochs", "steps"}:
        epochs = -(-MIN_STEPS[origin] // steps_per_epoch) + _EXTRA_EPOCHS[origin]
        start = {"detector": "a trained detector", "imagenet": "an ImageNet backbone", "scratch": "random weights"}
        reason = (
            f"{MIN_STEPS[origin]:,} steps and {_EXTRA_EPOCHS[origin]} more epochs, to start from {start[origin]} on "
            f"{plural(num_images, 'image')}"
        )
        choices.append(Choice("epochs", epochs, reason))
    steps = settings.steps or epochs * steps_per_epoch
    epochs = -(-steps // steps_per_epoch)
    averaged = 1000 if steps >= _LONG_RUN else 100
    return [
        *choices,
        Choice("warmup_steps", min(_MAX_WARM_UP, steps // 20), f"5 % of the run, at most {_MAX_WARM_UP} steps"),
        Choice("ema_decay", 1 - 1 / averaged, f"averages the weights of the last {averaged} steps or so"),
        Choice("evaluate_every", -(-epochs // MAX_EVALUATIONS), f"at most {MAX_EVALUATIONS} evaluations"),
    ]


def _by_the_clock(given: set[str]) -> list[Choice]:
    """Choose the settings of a run with a time limit, whose number of steps is not known."""
    warm_up = f"5 % of the time, at most {_MAX_WARM_UP} steps"
    choices = [
        Choice("ema_decay", 0.999, "averages the weights of the last tenth of the steps, at most 1000 or so"),
        _evaluations_by_the_clock(),
    ]
    if "warmup_steps" in given:
        return choices
    return [
        Choice("warmup_steps", _MAX_WARM_UP, warm_up),
        Choice("warmup_until", _WARM_UP_SHARE, warm_up),
        *choices,
    ]


def _evaluations_by_the_clock() -> Choice:
    share = f"{100 * EVALUATION_SHARE:.0f} %"
    return Choice("evaluate_every", None, f"about {MAX_EVALUATIONS} evaluations, at most {share} of the time")


def _auto(config: RunConfig, model: ModelConfig, given: set[str], num_images: int) -> list[Choice]:
    """Choose the settings that do not depend on the length of the run."""
    choices = [
        Choice("lr_scheduler", "step", "lr_drop was given")
        if "lr_drop" in given
        else Choice("lr_scheduler", "cosine", "learning rates reach 0 at the end of the run", "preset"),
        Choice("decay_norms", False, "norms, biases and queries keep their size: no weight decay", "preset"),
    ]
    if config.origin == "detector" and num_images < _SMALL_DATASET and model.queries == "selected":
        reason = f"higher AP after fine-tuning with {plural(num_images, 'image')}: no zoom-out, no crop by IoU"
        choices += [Choice("zoom_out", 0.0, reason), Choice("iou_crop", 0.0, "")]
    return choices


def _notes(settings: TrainingConfig, given: set[str], num_images: int) -> Iterator[str]:
    """Warn of batches that the dataset cannot fill."""
    if settings.overfit:
        num_images = min(settings.overfit, num_images)
    size, batches = settings.batch_size, settings.gradient_accumulation
    if size > num_images and "batch_size" in given:
        yield (
            f"warning: batch_size {size} is larger than the {plural(num_images, 'training image')}: every step takes all "
            f"of them; {max(1, num_images // 8)} gives about 8 steps per epoch"
        )
    elif batches > 1 and size * batches > num_images:
        yield (
            f"warning: gradient_accumulation {batches} of batch_size {size} is more than the "
            f"{plural(num_images, 'training image')}: every step takes one epoch"
        )
