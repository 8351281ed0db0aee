"""Datasets -> loaders of batches, and the device they go to."""

import torch
from torch.utils.data import DataLoader, Dataset

from detrkit.data.batching import collate
from detrkit.errors import ConfigError
from detrkit.structures import Batch, Sample
from detrkit.training.settings import TrainingSettings


def train_loader(dataset: Dataset[Sample], settings: TrainingSettings, device: torch.device) -> DataLoader[Batch]:
    """Batches in a new random order every epoch; the last, smaller one is left out unless it is the only one."""
    return DataLoader(
        dataset,  # type: ignore[arg-type]  # batches come out of a dataset of samples by way of collate_fn
        batch_size=settings.batch_size,
        shuffle=True,
        drop_last=len(dataset) > settings.batch_size,  # type: ignore[arg-type]
        num_workers=settings.workers,
        persistent_workers=settings.workers > 0,
        collate_fn=collate,
        pin_memory=device.type == "cuda",
        generator=torch.Generator().manual_seed(settings.seed),
    )


def test_loader(dataset: Dataset[Sample], batch_size: int, workers: int) -> DataLoader[Batch]:
    """Batches in the dataset's own order, every photo once."""
    return DataLoader(
        dataset,  # type: ignore[arg-type]
        batch_size=batch_size,
        num_workers=workers,
        persistent_workers=workers > 0,
        collate_fn=collate,
    )


def choose_device(name: str) -> torch.device:
    """Understand a device's name; "auto" takes a GPU if there is one.

    Raises:
        ConfigError: no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"device {name!r}: {reason}; use 'cpu' or 'auto'") from None
    return device
