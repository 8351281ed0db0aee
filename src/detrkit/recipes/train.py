"""Training from a config: begun, or gone on with; in this process, or in several."""

from pathlib import Path
from typing import Any

from rich.console import Console

from detrkit.checkpoints.source import WEIGHTS_FILE
from detrkit.errors import ConfigError
from detrkit.recipes.config import RunConfig, load_run_config
from detrkit.recipes.data import open_data
from detrkit.recipes.launch import launch
from detrkit.recipes.run import STATE_FILE, run_training
from detrkit.terminal import plain_console
from detrkit.training.processes import process_from_environment
from detrkit.training.trainer import TrainingResult

# for small pictures and slow machines: what learns drawn shapes and eight photos in minutes
TINY_DEFAULTS = {
    "image_size": 256,
    "batch_size": 8,
    "learning_rate": 5e-4,
    "clip_norm": 1.0,
    "schedule": "cosine",
    "warmup_steps": 50,
    "class_weight": 2.0,
}


def train(config: RunConfig, output: Path, console: Console | None = None) -> TrainingResult:
    """Train as the config says, and leave a run folder.

    Raises:
        DetrkitError: of one kind or another, before anything is written.
    """
    refuse_used_folder(output)
    config = config.model_copy(update={"data": str(Path(config.data).absolute())})  # so that it can be gone on with
    return _start(with_defaults(config), output, resume=False, console=console)


def resume(folder: Path, console: Console | None = None) -> TrainingResult:
    """Go on with a run where it was saved last; everything is read from its folder.

    Raises:
        DetrkitError: it holds no run, or its dataset is not what it was.
    """
    if not (folder / "config.yaml").is_file():
        raise ConfigError(f"--resume {folder}: found no config.yaml, expected the folder of a run")
    if not (folder / STATE_FILE).is_file():
        raise ConfigError(f"--resume {folder}: found no {STATE_FILE}; the run was not saved yet, start it again")
    config = load_run_config(folder / "config.yaml", {}, {})
    # what it started from is in its state, and may be gone by now
    return _start(
        config.model_copy(update={"weights": None, "backbone_weights": None}), folder, resume=True, console=console
    )


def _start(config: RunConfig, output: Path, *, resume: bool, console: Console | None) -> TrainingResult:
    """Train in this process, or in several that are started for it."""
    if config.training.devices > 1 and process_from_environment().world == 1:
        return TrainingResult(None, 0, launch(config, output, resume))
    return run_config(config, output, resume=resume, console=console)


def run_config(
    config: RunConfig, output: Path, *, resume: bool = False, console: Console | None = None
) -> TrainingResult:
    """Train with a resolved config as one process, of one or of several.

    Raises:
        DetrkitError: of one kind or another, before anything is written.
    """
    data = open_data(config)
    console = console or plain_console()
    if process_from_environment().is_first and not resume:
        for note in data.notes:
            console.print(note)
        if config.weights is None and config.backbone_weights is None and not config.training.overfit:
            console.print(
                "no --weights: all is learned from scratch, from thousands of photos; --weights imagenet needs fewer"
            )
    return run_training(config, data, output, console, resume=resume)


def with_defaults(config: RunConfig) -> RunConfig:
    """Fill in what suits the model and its start; what was given stays.

    The defaults of `TrainingSettings` are the published ones, for a pretrained backbone and photos of 800 px. A backbone
    that starts at random must be trained, all of it, and with ordinary batch norm: frozen norm does nothing there, frozen
    stages would stay random, and the published rate is meant for one that can see already.
    """
    given = config.training.model_fields_set
    chosen: dict[str, Any] = TINY_DEFAULTS if config.model == "detr-tiny" else {}
    training = config.training.model_copy(update={name: v for name, v in chosen.items() if name not in given})
    model_settings = config.model_settings
    if config.weights is None and config.backbone_weights is None:
        model_settings = {"backbone_normalization": "batch", "frozen_backbone_stages": 0, **model_settings}
        if "backbone_learning_rate" not in given:
            training = training.model_copy(update={"backbone_learning_rate": training.learning_rate})
    return config.model_copy(update={"model_settings": model_settings, "training": training})


def refuse_used_folder(output: Path) -> None:
    """See that no run is overwritten.

    Raises:
        ConfigError: the folder holds one.
    """
    if any((output / name / WEIGHTS_FILE).exists() for name in ("last", "best")):
        raise ConfigError(f"{output}: holds a run already; choose another folder with --output, or remove this one")
