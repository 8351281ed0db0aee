"""Datasets -> loaders of batches, and the device they go to."""

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import DataLoader, Dataset

from detrkit.data.batching import collate
from detrkit.errors import ConfigError, DetrkitError
from detrkit.structures import Batch, Sample
from detrkit.training.settings import TrainingSettings


class _ErrorsAsValues(Dataset[Sample | DetrkitError]):
    """Hands over what went wrong instead of raising it: a worker would wrap it into a stack trace."""

    def __init__(self, dataset: Dataset[Sample]) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]  # every dataset of ours has a length

    def __getitem__(self, index: int) -> Sample | DetrkitError:
        try:
            return self.dataset[index]
        except DetrkitError as error:
            return error


def _collate(items: Sequence[Sample | DetrkitError]) -> Batch | DetrkitError:
    samples = []
    for item in items:
        if isinstance(item, DetrkitError):
            return item
        samples.append(item)
    return collate(samples)


class Loader:
    """Batches of a dataset, read by worker processes."""

    def __init__(self, loader: DataLoader[Sample | DetrkitError]) -> None:
        self._loader = loader

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        """Iterate over one epoch.

        Raises:
            DetrkitError: what a worker met, as it said it.
        """
        for batch in self._loader:
            if isinstance(batch, DetrkitError):
                raise batch
            yield batch


def train_loader(dataset: Dataset[Sample], settings: TrainingSettings, device: torch.device) -> Loader:
    """Batches in a new random order every epoch; the last, smaller one is left out unless it is the only one."""
    guarded = _ErrorsAsValues(dataset)
    return Loader(
        DataLoader(
            guarded,
            batch_size=settings.batch_size,
            shuffle=True,
            drop_last=len(guarded) > settings.batch_size,
            num_workers=settings.workers,
            persistent_workers=settings.workers > 0,
            collate_fn=_collate,
            pin_memory=device.type == "cuda",
            generator=torch.Generator().manual_seed(settings.seed),
        )
    )


def test_loader(dataset: Dataset[Sample], batch_size: int, workers: int) -> Loader:
    """Batches in the dataset's own order, every photo once.

    Raises:
        ConfigError: no photo at a time, or fewer than no workers.
    """
    if batch_size < 1 or workers < 0:
        raise ConfigError(f"found batch size {batch_size} and {workers} workers, expected at least 1 and at least 0")
    return Loader(
        DataLoader(
            _ErrorsAsValues(dataset),
            batch_size=batch_size,
            num_workers=workers,
            persistent_workers=workers > 0,
            collate_fn=_collate,
        )
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
