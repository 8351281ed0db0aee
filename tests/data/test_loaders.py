"""Loaders: unreadable images."""

from collections.abc import Collection

import pytest
import torch
from torch.utils.data import Dataset

from detrkit.config.training import TrainingConfig
from detrkit.data.loaders import Loader, evaluation_loader, train_loader
from detrkit.data.samplers import BatchGrouping
from detrkit.data.synthetic import SyntheticShapes, SyntheticStyle
from detrkit.data.transforms.augmentation import AugmentedDataset
from detrkit.data.transforms.geometry import EvalTransform
from detrkit.distributed.rank import Rank
from detrkit.errors import ConfigError, DatasetError
from detrkit.structures import Sample


class Faulty(Dataset[Sample]):
    """Drawings, some of which cannot be read."""

    def __init__(self, count: int, unreadable: Collection[int]) -> None:
        self.samples = SyntheticShapes(count, 0, SyntheticStyle(size=48)).draw_all()
        self.unreadable = unreadable

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        if index in self.unreadable:
            raise DatasetError(f"image at {index}: broken")
        return self.samples[index]


def loader_of(count: int, unreadable: Collection[int], max_unreadable: float, share: Rank | None = None) -> Loader:
    images = AugmentedDataset(Faulty(count, unreadable), EvalTransform(48), seed=0)
    settings = TrainingConfig(batch_size=1, workers=0, max_unreadable=max_unreadable)
    return train_loader(images, BatchGrouping.ungrouped(count), settings, torch.device("cpu"), share)


def test_unreadable_images_are_replaced_so_that_ranks_stay_in_step() -> None:
    """Resumed runs count as many batches, too."""
    loaders = [loader_of(6, {3}, 0.5, Rank(rank, 2)) for rank in range(2)]
    read = [[batch.image_ids for batch in loader] for loader in loaders]
    assert [len(batches) for batches in read] == [3, 3]
    assert [error for loader in loaders for error in loader.skipped] == ["image at 3: broken"]
    again = [[batch.image_ids for batch in loader_of(6, {3}, 0.5, Rank(rank, 2))] for rank in range(2)]
    assert again == read, "the same image stands in"


def test_fewer_batches_than_processes_are_rejected() -> None:
    with pytest.raises(
        ConfigError, match="fewer than batch_size=1 for each of 2 processes; lower batch_size or devices"
    ):
        loader_of(1, {}, 0.5, Rank(0, 2))


def test_too_many_unreadable_images_raise() -> None:
    with pytest.raises(DatasetError, match=r"image at .: broken.*doctor"):
        list(loader_of(6, {1, 3}, 0.2))


@pytest.mark.parametrize("unreadable", [{0, 2, 5}, {1, 2, 3}])
def test_all_unreadable_images_are_counted_before_the_run_ends(
    unreadable: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    message = r"image at .: broken \(and 2 more of 6 images\); detrkit doctor shows them, and with fix='COPY'"
    with pytest.raises(DatasetError, match=message):
        list(loader_of(6, unreadable, 0.01))
    with pytest.raises(DatasetError, match=message):
        list(evaluation_loader(Faulty(6, unreadable), batch_size=2, workers=0))
    monkeypatch.setattr("detrkit.data.loaders._MAX_COUNTED", 5)
    with pytest.raises(DatasetError, match=r"image at .: broken(; detrkit| \(and . more of 6 images so far\))"):
        list(loader_of(6, unreadable, 0.01))


def test_no_readable_replacement_raises() -> None:
    with pytest.raises(DatasetError, match="image at 0: broken"):
        list(loader_of(1, {0}, 1.0))


def test_evaluation_skips_unreadable_images() -> None:
    loader = evaluation_loader(Faulty(4, {2}), batch_size=1, workers=0, max_unreadable=0.5)
    assert len([batch.image_ids for batch in loader]) == 3
    assert loader.skipped == ["image at 2: broken"]
