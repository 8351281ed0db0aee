"""What a run learns from and is judged by, from folders."""

from pathlib import Path
from typing import Any

import pytest
import torch

from detrkit.data.formats.folder import read_dataset
from detrkit.errors import ConfigError
from detrkit.recipes.config import RunConfig
from detrkit.recipes.data import RunData, joined, open_data
from detrkit.recipes.train import train
from detrkit.training.settings import TrainingSettings
from tests.datasets import write_coco, write_panoptic

TINY = {"num_queries": 8, "encoder_layers": 1, "decoder_layers": 1, "feedforward_dim": 32}


def config(data: Path, **training: Any) -> RunConfig:
    given = {"image_size": 64, "workers": 0, "batch_size": 2, "epochs": 1, **training}
    return RunConfig(data=str(data), model="detr-tiny", model_settings=TINY, training=TrainingSettings(**given))


def pictures_of(data: RunData) -> list[torch.Tensor]:
    return [data.train.photos[index].image for index in range(len(data.train))]


def test_validation_photos_are_learned_from_when_asked_and_still_looked_at(tmp_path: Path) -> None:
    folder = write_coco(tmp_path / "shapes", num_train=4, num_val=3)
    apart, together = open_data(config(folder)), open_data(config(folder, with_validation=True))
    assert (len(apart.train), len(together.train), len(together.test)) == (4, 7, 3)
    validation = [together.pictures[index].image for index in range(3)]
    assert all(
        torch.equal(a, b) for a, b in zip(pictures_of(together), [*pictures_of(apart), *validation], strict=True)
    )
    assert len(together.arrangement.is_tall) == 7
    assert "also learned from: 3 validation photos, so scores on them say little" in together.notes[-1]


def test_a_photo_that_is_all_there_is_is_learned_from_once(tmp_path: Path) -> None:
    folder = write_coco(tmp_path / "shapes", num_train=1, num_val=1)
    only = read_dataset(folder).train
    assert len(joined(only, only).records) == 1


def test_joined_splits_keep_their_segments(tmp_path: Path) -> None:
    folder = read_dataset(write_panoptic(tmp_path / "panoptic"), masks=True)
    both = joined(folder.train, folder.val).records
    expected = [*folder.train.records, *folder.val.records]
    assert [record.mask_file for record in both] == [record.mask_file for record in expected]
    assert [record.outlines for record in both] == [record.outlines for record in expected]


def test_the_report_of_such_a_run_does_not_claim_unseen_photos(tmp_path: Path) -> None:
    folder = write_coco(tmp_path / "shapes", num_train=2, num_val=2)
    train(config(folder), tmp_path / "apart")
    train(config(folder, with_validation=True), tmp_path / "together")
    assert "not seen in training" in (tmp_path / "apart" / "report.html").read_text()
    assert "the ones it was trained on" in (tmp_path / "together" / "report.html").read_text()
    assert "with_validation: true" in (tmp_path / "together" / "config.yaml").read_text()


@pytest.mark.parametrize("other", [{"patience": 3}, {"overfit": 2}])
def test_nothing_may_wait_for_scores_of_photos_that_are_learned_from(tmp_path: Path, other: dict[str, int]) -> None:
    folder = write_coco(tmp_path / "shapes")
    with pytest.raises(ConfigError, match=r"--with-validation.*leave one out"):
        open_data(config(folder, with_validation=True, **other))
