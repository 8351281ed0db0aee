"""A small model and synthetic batches, shared by the tests of training."""

from typing import Any

import torch

from detrkit import build_model
from detrkit.config.training import TrainingConfig
from detrkit.data.dataset import SampleDataset
from detrkit.data.loaders import Loader, train_loader
from detrkit.data.samplers import BatchGrouping
from detrkit.data.synthetic import SyntheticShapes, SyntheticStyle
from detrkit.data.transforms.augmentation import AugmentedDataset
from detrkit.data.transforms.geometry import EvalTransform
from detrkit.losses.criterion import SetCriterion
from detrkit.models.detr import DETR
from detrkit.training.budget import Budget
from detrkit.training.train_step import TrainStep

SETTINGS = TrainingConfig(epochs=2, batch_size=2, image_size=64, workers=0, log_every=1, lr=1e-3)


def tiny(**changes: Any) -> DETR:
    torch.manual_seed(0)
    small = {"num_classes": 4, "encoder_layers": 1, "decoder_layers": 2, "num_queries": 8, "dropout": 0.1}
    return build_model("detr-tiny", **{**small, **changes})


def drawn(settings: TrainingConfig, count: int = 6) -> Loader:
    samples = SyntheticShapes(count, seed=0, style=SyntheticStyle(size=64)).draw_all()
    images = AugmentedDataset(SampleDataset(samples), EvalTransform(64), seed=settings.seed)
    return train_loader(images, BatchGrouping.ungrouped(count), settings, torch.device("cpu"))


def make_train_step(settings: TrainingConfig = SETTINGS, length: int | Budget = 6, **model: Any) -> TrainStep:
    return TrainStep(tiny(**model), SetCriterion(4), settings, torch.device("cpu"), length)
