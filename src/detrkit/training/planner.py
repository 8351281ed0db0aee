"""Planner: chooses the settings that were not given, from the model, the size of the dataset and the first weights.

The recipe "auto" follows rules of thumb, measured on small datasets and small machines. The recipe "reference" is the
paper's training (section A.4), and for DETR's successors that of their published code.
"""

from bisect import bisect_right
from dataclasses import dataclass
from typing import Any, Literal

from detrkit._internal.text import plural
from detrkit.config.model import ModelConfig
from detrkit.config.run import RunConfig
from detrkit.config.training import BOXES, TrainingConfig
from detrkit.config.validation import check_run
from detrkit.models.presets import preset_config
from detrkit.training.duration import Throughput

# for small images and slow machines: fits synthetic shapes and eight images in minutes
TINY = {"image_size": 256, "batch_size": 8, "lr": 5e-4, "clip_grad_norm": 1.0, "cls_loss_coef": 2.0}
# for detrkit's presets on photographs: measured on blood cells and an aquarium (benchmarks/RESULTS.md)
OWN = {
    "image_size": 320,
    "train_scale": 1.25,  # the paper's training sizes end at the evaluation size, which long training compensates
    "batch_size": 4,  # small datasets need many steps
    "lr": 1e-3,
    "backbone_lr": 5e-4,
    "offset_lr_factor": 1.0,
    "clip_grad_norm": 1.0,
    "cls_loss_coef": 3.0,
    "iou_aware": True,
    "look_forward_twice": True,
    "denoising": 3,
    "contrastive_denoising": True,
}
_FINE_TUNING = {"lr": 5e-4, "backbone_lr": 1e-4}  # of detrkit's presets that start from a detector
_OF_PRESETS: dict[str, dict[str, Any]] = {"detr-tiny": TINY, "detrkit-s": OWN, "detrkit-m": OWN}
_MIN_STEPS = {"detector": 1_500, "imagenet": 6_000, "scratch": 12_000}  # by origin of the weights
_EXTRA_EPOCHS = {"detector": 10, "imagenet": 50, "scratch": 100}  # on top of them
_DEFORMABLE = {"lr": 2e-4, "backbone_lr": 2e-5, "offset_lr_factor": 0.1}  # published main.py
_SUCCESSORS = {"epochs": 50, "lr_drop": 0.8}  # all of them lower the learning rate after 40 of 50 epochs
_SMALL_DATASET = 300  # images, below which a detector's backbone stays frozen
_LONG_RUN = 5_000  # steps
_MAX_EVALUATIONS = 20
_EVALUATION_SHARE = 0.1  # of a time limit, at most


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
        choices: settings that were not given, unless they keep the published default.
        notes: about data and weights, a sentence each.
        num_train, num_val, num_classes: of the dataset.
        throughput: measured for a time limit; None without one.
    """

    config: RunConfig
    choices: tuple[Choice, ...]
    notes: tuple[str, ...] = ()
    num_train: int = 0
    num_val: int = 0
    num_classes: int = 0
    throughput: Throughput | None = None


def plan_model(config: RunConfig) -> RunConfig:
    """Choose the settings that must be known before the data is opened; given settings stay.

    A randomly initialised backbone is trained completely, with ordinary batch norm: frozen norms would be the identity,
    frozen stages would stay random, and the published learning rate is meant for pretrained ones.

    Raises:
        ConfigError: a preset or setting does not exist, or two settings contradict each other.
    """
    model = preset_config(config.model, **config.model_overrides)
    preset_settings = _preset_settings(config, model)
    missing = {name: value for name, value in preset_settings.items() if name not in config.training.explicit}
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


def _preset_settings(config: RunConfig, model: ModelConfig) -> dict[str, Any]:
    """Return the settings of an architecture, and then those of the preset."""
    settings: dict[str, Any] = {"cls_loss_coef": 2.0} if model.class_scores == "sigmoid" else {}  # of focal loss
    settings |= _DEFORMABLE if model.is_deformable else {}
    if config.recipe == "reference":
        settings |= {"padding_invariant": False, "group_by_aspect_ratio": False}
        return settings | (_SUCCESSORS if model.queries != "learned" else {})
    own = _OF_PRESETS.get(config.model, {})
    settings |= own | (_FINE_TUNING if own is OWN and config.origin == "detector" else {})
    without_use = _without_use(config.training, model)
    return {name: value for name, value in settings.items() if name not in without_use}


def _without_use(given: TrainingConfig, model: ModelConfig) -> set[str]:
    """Return settings of a preset that do not apply to the model or to given settings."""
    auxiliary = given.auxiliary_queries
    names = set() if model.class_scores == "sigmoid" else {"iou_aware"}
    if not model.with_box_refine:
        names.add("look_forward_twice")
    if given.optimizer.trains_masks_only(model):
        names |= {"look_forward_twice", "denoising", "contrastive_denoising"}
    if not auxiliary.box_noise_scale or ("denoising" in given.explicit and not auxiliary.denoising):
        names.add("contrastive_denoising")
    return names


def plan_training(
    config: RunConfig,
    given: set[str],
    num_images: int,
    num_processes: int = 1,
    max_evaluations: int = _MAX_EVALUATIONS,
) -> TrainingPlan:
    """Choose the remaining settings, from the size of the dataset.

    Args:
        config: returned by `plan_model`.
        given: names of the settings that were given.
        num_images: training images.
        num_processes: started by torchrun or srun; those of `devices` are known.
        max_evaluations: of the run.
    """
    settings = config.training
    images_per_batch = settings.batch_size * max(settings.hardware.devices, num_processes)
    model = preset_config(config.model, **config.model_overrides)
    if config.recipe == "reference":
        choices = _reference(model, images_per_batch, masks_only=BOXES in settings.optimizer.freeze)
    elif settings.overfit:
        choices = []  # a check of what was given, with the preset's settings and nothing else
    else:
        choices = _auto(config, given, num_images, images_per_batch, max_evaluations)
    is_own = config.recipe == "auto" and config.model in _OF_PRESETS
    reason = f"default of {config.model}" if is_own else "as published"
    preset_choices = {name: Choice(name, settings[name], reason, "preset") for name in _preset_settings(config, model)}
    if config.origin == "scratch" and "backbone_lr" in preset_choices:
        rate = settings.optimizer.backbone_lr
        preset_choices["backbone_lr"] = Choice("backbone_lr", rate, "the backbone is trained from scratch, as the rest")
    choices = [choice for choice in (*preset_choices.values(), *choices) if choice.name not in given]
    training = settings.replace(**{choice.name: choice.value for choice in choices})
    return TrainingPlan(config.replace(training=training), tuple(choices))


def plan_within(
    seconds: float, throughput: Throughput, config: RunConfig, given: set[str], num_images: int
) -> TrainingPlan:
    """Plan as many steps as a time limit allows, in one process, evaluations included.

    Evaluations of a large validation split would leave little time for training: they take at most a tenth of it, unless
    `evaluate_every` was given or the single evaluation at the end takes longer.

    Args:
        seconds: time limit of the run.
        throughput: measured on this machine.
        config: returned by `plan_model`.
        given: names of the settings that were given.
        num_images: training images.
    """
    num_batches = max(1, num_images // config.training.batch_size)
    evaluations = min(_MAX_EVALUATIONS, max(1, int(_EVALUATION_SHARE * seconds / throughput.evaluation)))

    def plan(steps: int) -> TrainingPlan:
        timed = config.replace(training=config.training.replace(steps=steps))
        return plan_training(timed, {*given, "steps"}, num_images, max_evaluations=evaluations)

    candidates = range(1, int(seconds / throughput.step) + 1)
    steps = bisect_right(candidates, seconds, key=lambda n: throughput.seconds(num_batches, plan(n).config.training))
    return plan(max(1, steps))


def _reference(model: ModelConfig, images_per_batch: int, *, masks_only: bool) -> list[Choice]:
    published = 64 if model.queries == "learned" else 32 if model.is_deformable else 16
    accumulation = Choice(
        "gradient_accumulation", max(1, published // images_per_batch), f"{published} images per step, as published"
    )
    if not masks_only:
        return [accumulation]
    # section 4.4 and the published log: 25 epochs, lowered after 15
    epochs = Choice("epochs", 25, "second stage of a mask head, as published")
    return [accumulation, epochs, Choice("lr_drop", 15 / 25, "lowered after 15 of 25 epochs, as published")]


def _auto(
    config: RunConfig, given: set[str], num_images: int, images_per_batch: int, max_evaluations: int
) -> list[Choice]:
    settings, origin = config.training, config.origin
    # the last step of an epoch may accumulate fewer batches
    steps_per_epoch = -(-max(1, num_images // images_per_batch) // settings.gradient_accumulation)
    images = plural(num_images, "image")
    choices: list[Choice] = []
    epochs = settings.epochs
    if not given & {"epochs", "steps"}:
        epochs = -(-_MIN_STEPS[origin] // steps_per_epoch) + _EXTRA_EPOCHS[origin]
        start = {"detector": "a trained detector", "imagenet": "an ImageNet backbone", "scratch": "random weights"}
        reason = f"{_MIN_STEPS[origin]} steps and {_EXTRA_EPOCHS[origin]} epochs, from {start[origin]} on {images}"
        choices.append(Choice("epochs", epochs, reason))
    steps = settings.steps or epochs * steps_per_epoch
    epochs = -(-steps // steps_per_epoch)
    at_most = f"at most {max_evaluations} evaluations" if max_evaluations > 1 else "one evaluation, at the end"
    choices += [
        Choice("lr_scheduler", "step", "lr_drop was given")
        if "lr_drop" in given
        else Choice("lr_scheduler", "cosine", "independent of the length of the run", "preset"),
        Choice("warmup_steps", min(1000, steps // 20), "5 % of the run, at most 1000 steps"),
        Choice("ema_decay", 0.999 if steps >= _LONG_RUN else 0.99, "matches the length of the run"),
        Choice("decay_norms", False, "weight decay of matrices only", "preset"),
        Choice("evaluate_every", -(-epochs // max_evaluations), at_most),
    ]
    if origin == "detector" and num_images < _SMALL_DATASET:
        choices.append(Choice("freeze", ("backbone",), f"{images} are too few to fine-tune a trained backbone"))
    return choices
