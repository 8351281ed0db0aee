"""A training run put together: config -> data, model, loss, loop -> run folder."""

import json
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from detrkit.checkpoints.file import Checkpoint, Preprocessing, save_checkpoint
from detrkit.checkpoints.loading import load_state
from detrkit.checkpoints.source import WEIGHTS_FILE, load_imagenet_backbone, read_checkpoint
from detrkit.checkpoints.surgery import with_channels
from detrkit.data.categories import Categories
from detrkit.errors import CheckpointError, ConfigError
from detrkit.evaluation.coco import BoxScores, evaluate_boxes
from detrkit.evaluation.collect import collect_results
from detrkit.files import make_folder, write_text
from detrkit.losses.matcher import HungarianMatcher
from detrkit.losses.set_loss import SetLoss
from detrkit.models.detr import DETR
from detrkit.models.presets import model_from_config, preset_config
from detrkit.recipes.config import RunConfig, write_config
from detrkit.recipes.data import RunData, open_data
from detrkit.recipes.finish import finish_run
from detrkit.recipes.loaders import choose_device, evaluation_loader, train_loader
from detrkit.terminal import plain_console
from detrkit.training.run_log import RunLog
from detrkit.training.settings import TrainingSettings
from detrkit.training.trainer import RunHooks, Trainer, TrainingResult

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
    config = with_defaults(config)
    data = open_data(config)
    console = console or plain_console()
    for note in data.notes:
        console.print(note)
    if config.weights is None and not config.training.overfit:
        console.print(
            "no --weights: all is learned from scratch, from thousands of photos; --weights imagenet needs fewer",
        )
    return run_training(config, data, output, console)


def run_training(config: RunConfig, data: RunData, output: Path, console: Console | None = None) -> TrainingResult:
    """Train on data that is already open, and leave a run folder.

    Raises:
        DetrkitError: of one kind or another, before anything is written.
    """
    console = console or plain_console()
    settings = config.training
    device = choose_device(settings.device)
    torch.manual_seed(settings.seed)
    model = build_for(config, data.categories)

    loader = train_loader(data.train, data.arrangement, settings, device)
    test_batches = evaluation_loader(data.test, settings.batch_size, settings.workers, settings.most_unreadable)
    preprocessing = Preprocessing(image_size=settings.image_size, exact_padding=settings.exact_padding)

    def evaluate(trained: DETR) -> BoxScores:
        results = collect_results(trained, test_batches, data.categories, device, settings.exact_padding)
        return evaluate_boxes(data.annotations, results, data.test_ids)

    def save(name: str) -> None:
        checkpoint = Checkpoint(model.state_dict(), model.config, data.categories, preprocessing)
        save_checkpoint(output / name / WEIGHTS_FILE, checkpoint)

    make_folder(output)
    write_config(output / "config.yaml", config, model.config.model_dump(mode="json"))
    write_categories(output / "categories.json", data.categories)
    loss = loss_for(len(data.categories), settings)
    with RunLog(output, settings.epochs * len(loader), console) as log:
        result = Trainer(model, loss, loader, settings, device, RunHooks(evaluate, save), log).fit()
    for fault in sorted({*loader.skipped, *test_batches.skipped}):
        console.print(f"left out: {fault}", soft_wrap=True)
    finish_run(output, config, data.pictures, result, console)
    return result


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
    if config.weights is None:
        model_settings = {"backbone_normalization": "batch", "frozen_backbone_stages": 0, **model_settings}
        if "backbone_learning_rate" not in given:
            training = training.model_copy(update={"backbone_learning_rate": training.learning_rate})
    return config.model_copy(update={"model_settings": model_settings, "training": training})


def build_for(config: RunConfig, categories: Categories) -> DETR:
    """Build the model of a run and give it its first weights.

    Raises:
        ConfigError: no such preset or setting.
        CheckpointError: the weights do not fit.
    """
    settings = {**config.model_settings, "num_classes": len(categories)}
    model = model_from_config(preset_config(config.model, **settings))
    if config.weights == "imagenet":
        load_imagenet_backbone(model)
    elif config.weights is not None:
        try:
            load_state(model, with_channels(read_checkpoint(config.weights).state, model.config.in_channels))
        except CheckpointError as error:
            raise CheckpointError(f"--weights {config.weights}: {error}") from None
    return model


def loss_for(num_classes: int, settings: TrainingSettings) -> SetLoss:
    """Weigh the losses, and the costs of the matching alike."""
    weights = (settings.class_weight, settings.box_weight, settings.giou_weight)
    return SetLoss(
        num_classes,
        class_weight=settings.class_weight,
        box_weight=settings.box_weight,
        giou_weight=settings.giou_weight,
        no_object_weight=settings.no_object_weight,
        matcher=HungarianMatcher(*weights),
    )


def write_categories(path: Path, categories: Categories) -> None:
    """Write ids and names, in the order of the labels."""
    write_text(path, json.dumps(categories.to_json(), indent=1, ensure_ascii=False))


def refuse_used_folder(output: Path) -> None:
    """See that no run is overwritten.

    Raises:
        ConfigError: the folder holds one.
    """
    if any((output / name / WEIGHTS_FILE).exists() for name in ("last", "best")):
        raise ConfigError(f"{output}: holds a run already; choose another folder with --output, or remove this one")
