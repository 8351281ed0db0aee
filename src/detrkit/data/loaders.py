"""Datasets -> loaders of batches, and the device they go to."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from detrkit.config.training import MAX_UNREADABLE, TrainingConfig
from detrkit.data.batching import check_batching, collate
from detrkit.data.samplers import BatchGrouping, Rank, SampleKey, TrainBatchSampler, mix_seeds
from detrkit.data.transforms.augmentation import AugmentedDataset
from detrkit.errors import ConfigError, DatasetError, DetrkitError
from detrkit.structures import Batch, Sample

_MAX_STAND_INS = 20  # tried for one photo; with one of a hundred unreadable, two are hardly ever needed


@dataclass(frozen=True)
class _Read:
    """A sample, where there is one, and what was wrong with the photos that were tried."""

    sample: Sample | None
    faults: tuple[str, ...] = ()


class _ErrorsAsValues(Dataset[_Read]):
    """Hands over what went wrong instead of raising it: a worker would wrap it into a stack trace."""

    def __init__(self, dataset: Dataset[Sample]) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]  # every dataset of ours has a length

    def __getitem__(self, key: Any) -> _Read:
        try:
            return _Read(self.dataset[key])
        except DetrkitError as error:
            return _Read(None, (str(error),))


class _WithStandIns(_ErrorsAsValues):
    """Puts other photos in the place of those that cannot be read, the same ones in every process and every time.

    A batch that is left out would put its process a step behind the others, and a run that is gone on with, too.
    """

    def __getitem__(self, key: SampleKey) -> _Read:
        faults: tuple[str, ...] = ()
        for attempt in range(1 + _MAX_STAND_INS):
            index = mix_seeds(key.index, key.epoch, attempt) % len(self) if attempt else key.index
            read = super().__getitem__(replace(key, index=index))
            faults += read.faults
            if read.sample is not None:
                return replace(read, faults=faults)
        return _Read(None, faults)


@dataclass(frozen=True)
class _Loaded:
    """What a worker hands over: the samples that could be read, and what was wrong with the others."""

    batch: Batch | None
    faults: tuple[str, ...]

    def pin_memory(self) -> "_Loaded":
        """Move to page-locked memory (called by the data loader)."""
        return self if self.batch is None else replace(self, batch=self.batch.pin_memory())


def _collate(items: Sequence[_Read]) -> _Loaded:
    samples = [item.sample for item in items if item.sample is not None]
    return _Loaded(collate(samples) if samples else None, tuple(fault for item in items for fault in item.faults))


class Loader:
    """Batches of a dataset, read by worker processes; photos that cannot be read are left out, up to a share of them.

    Attributes:
        skipped: what was wrong with the photos that were left out, each once.
    """

    def __init__(
        self,
        loader: DataLoader[_Read],
        max_unreadable: float,
        order: TrainBatchSampler | None = None,
    ) -> None:
        """Read from a loader.

        Args:
            loader: hands over errors as values.
            max_unreadable: share of the photos.
            order: of training batches.
        """
        self._loader = loader
        self._order = order
        self._num_images = len(loader.dataset)  # type: ignore[arg-type]
        self._max_unreadable = max_unreadable
        self.skipped: list[str] = []

    def __len__(self) -> int:
        return len(self._loader)

    def start_at(self, epoch: int, first: int) -> None:
        """Choose the epoch (from 1) that is iterated over, and pass over the first of its batches."""
        assert self._order is not None, "only training goes on where it stopped"
        self._order.epoch, self._order.first = epoch, first

    def __iter__(self) -> Iterator[Batch]:
        """Iterate over one epoch, or what is left of it.

        Raises:
            DatasetError: more photos than allowed could not be read.
        """
        for loaded in self._loader:
            self.skipped += [fault for fault in loaded.faults if fault not in self.skipped]
            is_lost = loaded.batch is None and self._order is not None
            if is_lost or len(self.skipped) > self._max_unreadable * self._num_images:
                others = f" (and {len(self.skipped) - 1} more photos)" if len(self.skipped) > 1 else ""
                raise DatasetError(f"{self.skipped[0]}{others}; detrkit doctor finds all of them")
            if loaded.batch is not None:
                yield loaded.batch


def train_loader(
    photos: AugmentedDataset,
    arrangement: BatchGrouping,
    settings: TrainingConfig,
    device: torch.device,
    share: Rank | None = None,
) -> Loader:
    """Batches in a new random order every epoch; a last, smaller one is left out unless it is the only one.

    Raises:
        ConfigError: there are fewer batches than processes.
    """
    order = train_order(arrangement, settings, share)
    if not len(order):
        raise ConfigError(
            f"training: found {len(photos)} photos, expected at least {settings.batch_size} for each of "
            f"{order.share.world} processes; lower --batch-size or --devices"
        )
    loader = DataLoader(
        _WithStandIns(photos),
        batch_sampler=order,
        num_workers=settings.loading.workers,
        persistent_workers=settings.loading.workers > 0,
        collate_fn=_collate,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # of the workers' seeds, which would otherwise be drawn from the model's randomness
    )
    return Loader(loader, settings.loading.max_unreadable, order)


def train_order(arrangement: BatchGrouping, settings: TrainingConfig, share: Rank | None = None) -> TrainBatchSampler:
    """Which photos stand in which batch."""
    return TrainBatchSampler(arrangement, settings.batch_size, settings.seed, share)


def evaluation_loader(
    dataset: Dataset[Sample],
    batch_size: int,
    workers: int,
    max_unreadable: float = MAX_UNREADABLE,
    share: Rank | None = None,
) -> Loader:
    """Batches in the dataset's own order, every photo once; processes share the same batches out.

    Raises:
        ConfigError: no photo at a time, or fewer than no workers.
    """
    check_batching(batch_size, workers)
    share = share or Rank()
    count = len(dataset)  # type: ignore[arg-type]  # every dataset of ours has a length
    batches = [list(range(first, min(first + batch_size, count))) for first in range(0, count, batch_size)]
    return Loader(
        DataLoader(
            _ErrorsAsValues(dataset),
            batch_sampler=batches[share.rank :: share.world],
            num_workers=workers,
            persistent_workers=workers > 0,
            collate_fn=_collate,
            generator=torch.Generator(),
        ),
        max_unreadable,
    )
