"""Training from Python: `train`, `resume`, and an estimate of the time a run takes."""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from detrkit.config.run import RunConfig, load_run_config, run_config
from detrkit.data.dataset import DatasetSplits
from detrkit.data.splits import Data, as_splits
from detrkit.distributed.devices import choose_rank_device
from detrkit.distributed.rank import rank_from_environment
from detrkit.errors import ConfigError, arg
from detrkit.models.detr import DETR
from detrkit.training.build import model_settings_of, with_architecture_of_weights
from detrkit.training.callbacks import Callback
from detrkit.training.data import TrainingData, augmented_as, has_masks, open_data
from detrkit.training.duration import TimeEstimate, estimate_duration
from detrkit.training.launch import launch
from detrkit.training.loggers import Logger, check_loggers
from detrkit.training.planner import TrainingPlan, plan_model, plan_training
from detrkit.training.result import TrainResult
from detrkit.training.run import TrainingRun, run_training
from detrkit.training.run_folder import (
    CONFIG_FILE,
    IN_MEMORY,
    check_resumable,
    refuse_dataset_folder,
    refuse_used_run_folder,
)


def train(
    data: Data,
    model: str | DETR | None = None,
    *,
    val: Data | None = None,
    classes: Sequence[str] | None = None,
    weights: str | Path | None = None,
    output: str | Path = "runs/train",
    callbacks: Sequence[Callback] = (),
    loggers: Sequence[str | Logger] = ("tensorboard",),
    minutes: float | None = None,
    **settings: Any,
) -> TrainResult:
    """Train or fine-tune a detector.

    SIGINT (Ctrl-C) and SIGTERM end the run after the current step and save it; `resume` continues it.

    Args:
        data: dataset folder in any supported format, the result of `load_dataset`, or a `torch.utils.data.Dataset` of
            `(image, target)` with `target["boxes"]` in xyxy pixels and `target["labels"]` in 0 .. K-1, as in torchvision.
        model: preset, or a model from `build_model`, whose weights are copied. Default: the architecture of `weights`;
            "detrkit-m" with ImageNet weights; otherwise "detrkit-s".
        val: validation data, as `data`; default: the validation split of `data`, or a fifth of it.
        classes: class names of a `torch` dataset.
        weights: "imagenet" for a pretrained backbone, or a checkpoint to fine-tune: run folder, file, or Hugging Face id.
        output: run folder to create.
        callbacks: called in the process that trains.
        loggers: names in `detrkit.training.loggers.LOGGERS`, or loggers; ``metrics.jsonl`` is always written.
        minutes: time limit instead of `epochs` or `steps`, from this call to its return: evaluations, checkpoints and the
            report are included. Learning rates, augmentation and evaluations follow the clock. A run that is resumed
            continues with the time that was left.
        settings: fields of `RunConfig`, `TrainingConfig` and `ModelConfig` by their names: ``epochs=50``, ``lr=1e-4``,
            ``num_queries=50``. Unset ones are chosen from model, weights and data.

    Returns:
        Metrics and folder of the best checkpoint, and a `Detector` with its weights.

    Raises:
        DatasetError: `data` or `val` cannot be read.
        ConfigError: a setting is unknown, out of range or contradicts another; or `output` holds a run.
        CheckpointError: `weights` cannot be read or do not fit.
    """
    started = time.monotonic()
    given = settings if minutes is None else {**settings, "minutes": minutes}
    config, dataset = resolve(data, model, val=val, classes=classes, weights=weights, **given)
    return train_from_config(
        config,
        output,
        dataset=dataset,
        model=model if isinstance(model, DETR) else None,
        callbacks=callbacks,
        loggers=loggers,
        started=started,
    )


def resume(
    folder: str | Path,
    *,
    data: Data | None = None,
    val: Data | None = None,
    classes: Sequence[str] | None = None,
    callbacks: Sequence[Callback] = (),
    loggers: Sequence[str | Logger] = ("tensorboard",),
) -> TrainResult:
    """Continue a run from its last saved state, bit for bit as if it had not been interrupted.

    Args:
        folder: run folder.
        data: as in `train`: the dataset of a run that was not trained on a folder, or the new place of a folder that has
            moved; by default the folder in ``config.yaml``.
        val: as in `train`, for a run that was given it.
        classes: as in `train`, likewise.
        callbacks: as in `train`.
        loggers: as in `train`.

    Returns:
        As `train`.

    Raises:
        DetrkitError: the folder holds no saved run, the run has ended, or its classes, images or settings have changed.
    """
    started = time.monotonic()
    folder = Path(folder)
    check_resumable(folder)
    check_loggers(loggers)
    config = load_run_config(folder / CONFIG_FILE)
    if data is None and config.data == IN_MEMORY:
        raise ConfigError(f"{folder}: the run was trained on a torch dataset; pass it again as {arg('data')}")
    dataset = None
    if data is not None and config.data != IN_MEMORY and isinstance(data, str | Path) and val is None:
        config = config.replace(data=str(Path(data).resolve()))
    elif data is not None:
        dataset = _read_data(data, config, val, classes)
    elif not Path(config.data).exists():
        raise ConfigError(
            f"{folder}: the dataset of the run, {config.data}, is not there any more; pass its new place as {arg('data')}"
        )
    return _run(config, folder, dataset=dataset, resume=True, callbacks=callbacks, loggers=loggers, started=started)


def estimate_time(config: RunConfig, *, dataset: DatasetSplits | None = None) -> tuple[TrainingPlan, TimeEstimate]:
    """Plan a run and time some of its steps on this machine after a warm-up, without writing anything.

    Args:
        config: settings that were given, from `run_config` or `resolve`.
        dataset: of the run; default: read from `config.data`.

    Raises:
        DetrkitError: data, settings or weights do not fit.
    """
    plan, data = prepare(config, dataset)
    run = _timed_run(plan.config, data)
    throughput = run.measure_throughput()
    return plan, estimate_duration(throughput, len(run.loader), plan.config.training, run.process.world_size)


def train_from_config(
    config: RunConfig,
    output: str | Path,
    *,
    dataset: DatasetSplits | None = None,
    model: DETR | None = None,
    callbacks: Sequence[Callback] = (),
    loggers: Sequence[str | Logger] = ("tensorboard",),
    started: float | None = None,
) -> TrainResult:
    """Train with settings from `run_config`; arguments and errors as in `train`.

    Args:
        config: settings that were given.
        output: run folder to create.
        dataset: of the run; default: read from `config.data`.
        model: initial weights.
        callbacks: as in `train`.
        loggers: as in `train`.
        started: value of `time.monotonic` from which on a time limit counts; default: now.
    """
    started = time.monotonic() if started is None else started
    output = Path(output)
    refuse_used_run_folder(output)
    check_loggers(loggers)
    if dataset is None:
        refuse_dataset_folder(output, config.data)
        config = config.replace(data=str(Path(config.data).resolve()))  # a resumed run may start elsewhere
    plan, data = prepare(config, dataset)
    return _run(
        plan.config,
        output,
        dataset=dataset,
        data=data,
        plan=plan,
        model=model,
        callbacks=callbacks,
        loggers=loggers,
        started=started,
    )


def resolve(
    data: Data,
    model: str | DETR | None = None,
    *,
    val: Data | None = None,
    classes: Sequence[str] | None = None,
    weights: str | Path | None = None,
    **settings: Any,
) -> tuple[RunConfig, DatasetSplits | None]:
    """Combine the arguments of `train` into a configuration, and read data that is more than a folder.

    Raises:
        DetrkitError: as in `train`.
    """
    is_folder = isinstance(data, str | Path) and val is None and classes is None
    given = {**settings, "data": str(data) if isinstance(data, str | Path) else IN_MEMORY}
    if weights is not None:
        if isinstance(model, DETR):
            raise ConfigError(
                f"{arg('weights', str(weights))}: {arg('model')} has weights already; leave one of them out"
            )
        given["weights"] = str(weights)
    if isinstance(model, str):
        given["model"] = model
    dataset = None
    if not is_folder or isinstance(model, DETR):
        masks = model.config.mask_head if isinstance(model, DETR) else None
        dataset = _read_data(data, run_config(given), val, classes, masks=masks)
        given["data"] = str(data) if is_folder else IN_MEMORY
    if isinstance(model, DETR):
        assert dataset is not None
        given |= model_settings_of(model, len(dataset.categories))
    return run_config(given), dataset


def prepare(config: RunConfig, dataset: DatasetSplits | None = None) -> tuple[TrainingPlan, TrainingData]:
    """Open the data and choose the settings that were not given.

    Raises:
        DetrkitError: data, settings or weights do not fit.
    """
    processes = rank_from_environment().world_size
    with_model = with_architecture_of_weights(config)
    given = set(with_model.training.explicit)
    planned = plan_model(with_model)
    data = open_data(planned, dataset)
    num_images = len(data.train)
    plan = plan_training(planned, given, num_images, processes)
    notes = [*plan.notes, *data.notes]
    if with_model is not config:
        size = with_model.training.image_size
        notes.insert(0, f"model {with_model.model} and image size {size} px are those of the weights")
    plan = replace(
        plan,
        notes=tuple(notes),
        num_train=num_images,
        num_val=len(data.val_ids),
        num_classes=len(data.categories),
    )
    return plan, augmented_as(data, plan.config)


def _read_data(
    data: Data,
    config: RunConfig,
    val: Data | None = None,
    classes: Sequence[str] | None = None,
    *,
    masks: bool | None = None,
) -> DatasetSplits:
    if masks is None:
        masks = has_masks(with_architecture_of_weights(config))
    return as_splits(data, val=val, classes=classes, format=config.format, masks=masks, seed=config.training.seed)


def _timed_run(config: RunConfig, data: TrainingData) -> TrainingRun:
    """Build a run, or the part of the first process, to time it."""
    process = rank_from_environment()
    if process.world_size == 1:
        process = replace(process, world_size=config.training.hardware.devices)
    device = choose_rank_device(config.training.hardware.device, process)
    return TrainingRun(config, data, Path(), process, device)


def _run(
    config: RunConfig,
    output: Path,
    *,
    dataset: DatasetSplits | None,
    data: TrainingData | None = None,
    resume: bool = False,
    plan: TrainingPlan | None = None,
    model: DETR | None = None,
    callbacks: Sequence[Callback],
    loggers: Sequence[str | Logger],
    started: float,
) -> TrainResult:
    """Train in this process, or launch the processes of `devices`."""
    if config.training.hardware.devices > 1 and rank_from_environment().world_size == 1:
        return launch(
            config,
            output,
            dataset=dataset,
            resume=resume,
            plan=plan,
            model=model,
            callbacks=callbacks,
            loggers=loggers,
            started=started,
        )
    return run_training(
        config,
        data or open_data(config, dataset),
        output,
        resume=resume,
        plan=plan,
        model=model,
        callbacks=callbacks,
        loggers=loggers,
        started=started,
    )
