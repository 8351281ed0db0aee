"""Small models and checkpoints in the shapes of the published architectures."""

from pathlib import Path

import torch

from detrkit import build_model
from detrkit.checkpoints.native import Checkpoint, Preprocessing, save_checkpoint
from detrkit.data.categories import Categories, default_categories
from detrkit.models.detr import DETR

SMALL = {"backbone": "resnet18", "encoder_layers": 1, "decoder_layers": 2, "dim_feedforward": 32}
CATEGORIES = Categories((1, 2, 3), ("dog", "cat", "horse"))


def small_model(preset: str = "detr-r18", **changes: object) -> DETR:
    torch.manual_seed(0)
    return build_model(preset, **{"num_classes": 3, "num_queries": 5, **SMALL, **changes})


def checkpoint_of(
    model: DETR, categories: Categories | None = None, preprocessing: Preprocessing | None = None
) -> Checkpoint:
    categories = categories or default_categories(model.config.num_classes)
    return Checkpoint(model.state_dict(), model.config, categories, preprocessing or Preprocessing())


def save_model(folder: Path, model: DETR, categories: Categories | None = None) -> Path:
    path = folder / "model.safetensors"
    save_checkpoint(path, checkpoint_of(model, categories))
    return path
