"""Datasets -> loaders of batches, and the device they go to."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from detrkit.config.setting_groups import MAX_UNREADABLE
from detrkit.config.training import TrainingConfig
from detrkit.data.batching import check_batching, collate
from detrkit.data.samplers import BatchGrouping, SampleKey, TrainBatchSampler, mix_seeds
from detrkit.data.transforms.augmentation import AugmentedDataset
from detrkit.distributed.rank import Rank
from detrkit.errors import ConfigError, DatasetError, DetrkitError, arg
from detrkit.structures import Batch, Sample

_MAX_COUNTED = 1000  # images of a dataset that are all read to count the unreadable ones
_MAX_REPLACEMENTS = 20  # per image; with 1 % of the images unreadable, two are hardly ever needed


@dataclass(frozen=True)
class _Read:
    """A sample, if one could be read, and the errors of the images that could not."""

    sample: Sample | None
    errors: tuple[str, ...] = ()


class _ErrorsAsValues(Dataset[_Read]):
    """Returns errors instead of raising them, which a worker process would wrap into a stack trace."""

    def __init__(self, dataset: Dataset[Sample]) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]  # all of detrkit's datasets have a length

    def __getitem__(self, key: Any) -> _Read:
        try:
            return _Read(self.dataset[key])
        except DetrkitError as error:
            return _Read(None, (str(error),))


class _WithReplacements(_ErrorsAsValues):
    """Replaces images that cannot be read by others, chosen by the seed.

    Leaving out a batch would put its rank, or a resumed run, one step behind.
    """

    def __getitem__(self, key: SampleKey) -> _Read:
        errors: tuple[str, ...] = ()
        for attempt in range(1 + _MAX_REPLACEMENTS):
            index = mix_seeds(key.index, key.epoch, attempt) % len(self) if attempt else key.index
            read = super().__getitem__(replace(key, index=index))
            errors += read.errors
            if read.sample is not None:
                return replace(read, errors=errors)
        return _Read(None, errors)


@dataclass(frozen=True)
class _Loaded:
    """A batch of the samples that could be read, and the errors of the others."""

    batch: Batch | None
    errors: tuple[str, ...]

    def pin_memory(self) -> "_Loaded":
        """Move to page-locked memory (called by the data loader)."""
        return self if self.batch is None else replace(self, batch=self.batch.pin_memory())


def _collate(items: Sequence[_Read]) -> _Loaded:
    samples = [item.sample for item in items if item.sample is not None]
    return _Loaded(collate(samples) if samples else None, tuple(error for item in items for error in item.errors))


def _errors_of(items: Sequence[_Read]) -> list[str]:
    return [error for item in items for error in item.errors]


class Loader:
    """Batches of a dataset, read by worker processes; up to a fraction of the images may be unreadable.

    Attributes:
        skipped: errors of the images that could not be read, each once.
    """

    def __init__(
        self,
        loader: DataLoader[_Read],
        max_unreadable: float,
        order: TrainBatchSampler | None = None,
    ) -> None:
        """Wrap a `DataLoader`.

        Args:
            loader: returns errors as values.
            max_unreadable: fraction of the images.
            order: of the training batches.
        """
        self._loader = loader
        self._order = order
        self._num_images = len(loader.dataset)  # type: ignore[arg-type]
        self._max_unreadable = max_unreadable
        self.skipped: list[str] = []

    def __len__(self) -> int:
        return len(self._loader)

    def start_at(self, epoch: int, first: int) -> None:
        """Set the epoch (from 1) to iterate over, and skip the first of its batches."""
        assert self._order is not None, "only training loaders can be started in the middle"
        self._order.epoch, self._order.first = epoch, first

    @property
    def closing_from(self) -> tuple[int, int] | None:
        """Epoch and batch from which on there is no strong augmentation; None if that is not known yet."""
        return None if self._order is None else self._order.closing_from

    @closing_from.setter
    def closing_from(self, position: tuple[int, int] | None) -> None:
        assert self._order is not None, "only training loaders have augmentation"
        self._order.closing_from = position

    def end_strong_augmentation(self) -> None:
        """Turn strong augmentation off for all batches that are not drawn yet."""
        assert self._order is not None, "only training loaders have augmentation"
        self._order.closing_from = self._order.position

    def __iter__(self) -> Iterator[Batch]:
        """Iterate over one epoch, or the rest of it.

        Raises:
            DatasetError: more images than allowed could not be read.
        """
        for loaded in self._loader:
            self.skipped = list(dict.fromkeys([*self.skipped, *loaded.errors]))
            no_replacement = loaded.batch is None and self._order is not None
            if no_replacement or len(self.skipped) > self._max_unreadable * self._num_images:
                raise DatasetError(self._describe_unreadable())
            if loaded.batch is not None:
                yield loaded.batch

    def _describe_unreadable(self) -> str:
        """Name the first image that cannot be read, and count all; in a large dataset those that were met so far."""
        if self._num_images <= _MAX_COUNTED:
            dataset = self._loader.dataset
            assert isinstance(dataset, _ErrorsAsValues)
            images = dataset.dataset.images if isinstance(dataset.dataset, AugmentedDataset) else dataset.dataset
            workers = self._loader.num_workers
            rest = DataLoader(_ErrorsAsValues(images), batch_size=8, num_workers=workers, collate_fn=_errors_of)
            self.skipped = list(dict.fromkeys([*self.skipped, *(error for errors in rest for error in errors)]))
        others, them = "", "it"
        if len(self.skipped) > 1:
            so_far = "" if self._num_images <= _MAX_COUNTED else " so far"
            others, them = f" (and {len(self.skipped) - 1} more of {self._num_images} images{so_far})", "them"
        return (
            f"{self.skipped[0]}{others}; detrkit doctor shows {them}, and with {arg('fix', 'COPY')} writes a copy without "
            f"{them}"
        )


def train_loader(
    images: AugmentedDataset,
    grouping: BatchGrouping,
    settings: TrainingConfig,
    device: torch.device,
    rank: Rank | None = None,
) -> Loader:
    """Return batches in a new random order every epoch; a last, smaller one is left out unless it is the only one.

    Raises:
        ConfigError: there are fewer batches than ranks.
    """
    order = train_batch_sampler(grouping, settings, rank)
    if not len(order):
        raise ConfigError(
            f"{len(images)} training images are fewer than {arg('batch_size', settings.batch_size)} for each of "
            f"{order.rank.world_size} processes; lower {arg('batch_size')} or {arg('devices')}"
        )
    loader = DataLoader(
        _WithReplacements(images),
        batch_sampler=order,
        num_workers=settings.loading.workers,
        persistent_workers=settings.loading.workers > 0,
        collate_fn=_collate,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # seeds the workers, instead of torch's global generator
    )
    return Loader(loader, settings.loading.max_unreadable, order)


def train_batch_sampler(
    grouping: BatchGrouping, settings: TrainingConfig, rank: Rank | None = None
) -> TrainBatchSampler:
    """Return the sampler of the training batches."""
    return TrainBatchSampler(grouping, settings.batch_size, settings.seed, rank)


def evaluation_loader(
    dataset: Dataset[Sample],
    batch_size: int,
    workers: int,
    max_unreadable: float = MAX_UNREADABLE,
    rank: Rank | None = None,
) -> Loader:
    """Return batches in the dataset's order, every image once, divided among the ranks.

    Raises:
        ConfigError: the batch size or the number of workers is too small.
    """
    check_batching(batch_size, workers)
    rank = rank or Rank()
    count = len(dataset)  # type: ignore[arg-type]  # all of detrkit's datasets have a length
    batches = [list(range(first, min(first + batch_size, count))) for first in range(0, count, batch_size)]
    return Loader(
        DataLoader(
            _ErrorsAsValues(dataset),
            batch_sampler=batches[rank.rank :: rank.world_size],
            num_workers=workers,
            persistent_workers=workers > 0,
            collate_fn=_collate,
            generator=torch.Generator(),
        ),
        max_unreadable,
    )
