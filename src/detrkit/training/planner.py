"""What suits a model, a dataset and a start: the settings that nobody gave, and why.

`auto` chooses from the size of the set and the origin of the weights, by rules of thumb: its figures are ours, from small
sets on small machines, and not the paper's. `reference` is the paper's training (section A.4) to the letter, and for DETR's
successors that of their published code.
"""

from bisect import bisect_right
from dataclasses import dataclass
from typing import Any

from detrkit._internal.text import plural
from detrkit.config.model import ModelConfig
from detrkit.config.run import RunConfig
from detrkit.config.training import BOXES, TrainingConfig
from detrkit.config.validation import check_run
from detrkit.models.presets import preset_config
from detrkit.training.trainer import Throughput

# for small pictures and slow machines: what learns drawn shapes and eight photos in minutes
TINY = {"image_size": 256, "batch_size": 8, "lr": 5e-4, "clip_grad_norm": 1.0, "cls_loss_coef": 2.0}
# for the presets of our own, on photos: what suits blood cells and an aquarium (benchmarks/RESULTS.md)
OWN = {
    "image_size": 320,
    "train_scale": 1.25,  # the paper's sizes end where tests begin, which long training forgives
    "batch_size": 4,  # small sets want updates
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
_GENTLY = {"lr": 5e-4, "backbone_lr": 1e-4}  # for those of them that are trained already
_OF_PRESETS: dict[str, dict[str, Any]] = {"detr-tiny": TINY, "detrkit-s": OWN, "detrkit-m": OWN}
_STEPS = {"detector": 1_500, "imagenet": 6_000, "scratch": 12_000}  # however few photos there are
_EPOCHS = {"detector": 10, "imagenet": 50, "scratch": 100}  # on top of them
_DEFORMABLE = {"lr": 2e-4, "backbone_lr": 2e-5, "offset_lr_factor": 0.1}  # published main.py
_SUCCESSORS_RUN = {"epochs": 50, "lr_drop": 0.8}  # all of them drop the rates after 40 of 50 epochs
_FEW_PHOTOS = 300  # below which a detector's backbone is left alone
_LONG_RUN = 5_000  # steps
_STRONG = ("photometric", "scale_jitter", "mosaic", "mixup")  # changes of photos that end before the run does
_MAX_EVALUATIONS = 20
_EVALUATING = 0.1  # of the time that somebody gave, at most


@dataclass(frozen=True)
class Choice:
    """A setting that was chosen."""

    name: str
    value: Any
    why: str

    def __str__(self) -> str:
        return f"{self.name} {self.value}: {self.why}"


@dataclass(frozen=True)
class Plan:
    """A config without gaps, and how they were filled."""

    config: RunConfig
    choices: tuple[Choice, ...]


def plan_model(config: RunConfig) -> RunConfig:
    """Fill in what must be known before the data is opened; what was given stays.

    A backbone that starts at random must be trained, all of it, and with ordinary batch norm: frozen norm does nothing
    there, frozen stages would stay random, and the published rate is meant for one that can see already.

    Raises:
        ConfigError: no such preset or setting, or helpers that do not fit the model.
    """
    given = config.training.explicit
    model = preset_config(config.model, **config.model_overrides)
    training = _filled(config.training, _settings_of(config, model))
    check_run(config.replace(training=training), model, preset_config(config.model))
    model_overrides = config.model_overrides
    if config.origin == "imagenet" and model.backbone_normalization == "batch":
        # a backbone that can see, in place of one that a preset trains from scratch: as published
        model_overrides = {"backbone_normalization": "frozen", "frozen_backbone_stages": 2, **model_overrides}
    if config.origin == "scratch":
        model_overrides = {"backbone_normalization": "batch", "frozen_backbone_stages": 0, **model_overrides}
        if "backbone_lr" not in given:
            training = training.replace(backbone_lr=training.optimizer.lr)
    return config.model_copy(update={"model_overrides": model_overrides, "training": training})


def _settings_of(config: RunConfig, model: ModelConfig) -> dict[str, Any]:
    """What an architecture brings along, and then the preset."""
    chosen: dict[str, Any] = {"cls_loss_coef": 2.0} if model.class_scores == "sigmoid" else {}  # of focal loss
    chosen |= _DEFORMABLE if model.is_deformable else {}
    if config.recipe == "reference":
        chosen |= {"padding_invariant": False, "group_by_aspect_ratio": False}
        return chosen | (_SUCCESSORS_RUN if model.queries != "learned" else {})
    own = _OF_PRESETS.get(config.model, {})
    chosen |= own | (_GENTLY if own is OWN and config.origin == "detector" else {})
    unfit = _unfit(config.training, model)
    return {name: value for name, value in chosen.items() if name not in unfit}


def _unfit(given: TrainingConfig, model: ModelConfig) -> set[str]:
    """Helpers of a preset that what was given has no use for; model settings may have made another model of it."""
    auxiliary = given.auxiliary_queries
    unfit = set() if model.class_scores == "sigmoid" else {"iou_aware"}
    if not model.with_box_refine:
        unfit.add("look_forward_twice")
    if given.optimizer.trains_masks_only(model):
        unfit |= {"look_forward_twice", "denoising", "contrastive_denoising"}
    if not auxiliary.box_noise_scale or ("denoising" in given.explicit and not auxiliary.denoising):
        unfit.add("contrastive_denoising")
    return unfit


def plan_training(
    config: RunConfig,
    given: set[str],
    num_images: int,
    num_processes: int = 1,
    max_evaluations: int = _MAX_EVALUATIONS,
) -> Plan:
    """Fill in the rest, from the size of the set.

    Args:
        config: of `plan_model`.
        given: fields of `TrainingConfig` that somebody gave.
        num_images: to learn from.
        num_processes: that torchrun or srun started; those of `devices` are known.
        max_evaluations: that a run should have.
    """
    settings = config.training
    together = settings.batch_size * max(settings.hardware.devices, num_processes)
    model = preset_config(config.model, **config.model_overrides)
    masks_only = BOXES in settings.optimizer.freeze
    choices = (
        _reference(model, together, masks_only)
        if config.recipe == "reference"
        else _auto(config, given, num_images, together, max_evaluations)
    )
    if settings.overfit and config.recipe == "auto":
        choices = []  # learning by heart is a test: what is given and what the preset brings, and nothing else
    is_ours = config.recipe == "auto" and config.model in _OF_PRESETS
    why = f"suits {config.model}" if is_ours else "as published"
    brought = {name: Choice(name, settings[name], why) for name in _settings_of(config, model)}
    if config.origin == "scratch" and "backbone_lr" in brought:
        rate = settings.optimizer.backbone_lr
        why = "a backbone that starts at random learns as fast as the rest"
        brought["backbone_lr"] = Choice("backbone_lr", rate, why)
    choices = [*brought.values(), *choices]
    choices = [choice for choice in choices if choice.name not in given]
    training = settings.replace(**{choice.name: choice.value for choice in choices})
    return Plan(config.model_copy(update={"training": training}), tuple(choices))


def plan_within(seconds: float, pace: Throughput, config: RunConfig, given: set[str], num_images: int) -> Plan:
    """Plan as many updates as there is time for, in one process, evaluations included.

    Many photos to be judged by would leave little time to learn: no more than a tenth of it goes there, unless
    `evaluate_every` was given, or the one evaluation at the end needs more.

    Args:
        seconds: that the run may take.
        pace: measured on this machine.
        config: of `plan_model`.
        given: fields of `TrainingConfig` that somebody gave.
        num_images: to learn from.
    """
    num_batches = max(1, num_images // config.training.batch_size)
    evaluations = min(_MAX_EVALUATIONS, max(1, int(_EVALUATING * seconds / pace.evaluation)))

    def of(steps: int) -> Plan:
        training = config.training.replace(steps=steps)
        timed = config.model_copy(update={"training": training})
        return plan_training(timed, {*given, "steps"}, num_images, max_evaluations=evaluations)

    most = range(1, int(seconds / pace.step) + 1)
    steps = bisect_right(most, seconds, key=lambda steps: pace.seconds(num_batches, of(steps).config.training))
    return of(max(1, steps))


def _reference(model: ModelConfig, together: int, masks_only: bool) -> list[Choice]:
    published = 64 if model.queries == "learned" else 32 if model.is_deformable else 16
    gradient_accumulation = Choice(
        "gradient_accumulation", max(1, published // together), f"{published} photos per update, as published"
    )
    if not masks_only:
        return [gradient_accumulation]
    # section 4.4 and the published log: 25 epochs, dropped after 15
    epochs = Choice("epochs", 25, "the mask head's second stage, as published")
    return [gradient_accumulation, epochs, Choice("lr_drop", 15 / 25, "the rate falls after 15 of them")]


def _auto(config: RunConfig, given: set[str], num_images: int, together: int, max_evaluations: int) -> list[Choice]:
    settings, origin = config.training, config.origin
    steps_an_epoch = -(-max(1, num_images // together) // settings.gradient_accumulation)  # the last has fewer batches
    start = {"detector": "a trained detector", "imagenet": "an ImageNet backbone", "scratch": "random weights"}[origin]
    choices: list[Choice] = []
    judged = f"at most {max_evaluations} evaluations" if max_evaluations > 1 else "one evaluation, at the end"
    epochs = settings.epochs
    if not given & {"epochs", "steps"}:
        epochs = -(-_STEPS[origin] // steps_an_epoch) + _EPOCHS[origin]
        why = f"{_STEPS[origin]} updates for {start}, and {_EPOCHS[origin]} rounds for {plural(num_images, 'photo')}"
        choices.append(Choice("epochs", epochs, why))
    steps = settings.steps or epochs * steps_an_epoch
    epochs = -(-steps // steps_an_epoch)
    choices += [
        Choice("lr_scheduler", "step", "a drop was asked for")
        if "lr_drop" in given
        else Choice("lr_scheduler", "cosine", "the rates fall smoothly to 0, wherever the end is"),
        Choice("warmup_steps", min(1000, steps // 20), "a twentieth of the run, against a rough start"),
        Choice(
            "ema_decay", 0.999 if steps >= _LONG_RUN else 0.99, "averaged weights score better until the rates are low"
        ),
        Choice("decay_norms", False, "weight decay is meant for matrices"),
        Choice("evaluate_every", -(-epochs // max_evaluations), judged),
    ]
    if origin == "detector" and num_images < _FEW_PHOTOS:
        choices.append(
            Choice("freeze", ("backbone",), f"{plural(num_images, 'photo')}, too few to change a trained backbone")
        )
    return choices


def _filled(settings: TrainingConfig, chosen: dict[str, Any]) -> TrainingConfig:
    return settings.replace(**{name: value for name, value in chosen.items() if name not in settings.explicit})
