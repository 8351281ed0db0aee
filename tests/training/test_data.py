"""Training data from dataset folders."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from detrkit.cli.training_console import ConsoleProgress
from detrkit.config.run import RunConfig
from detrkit.config.training import TrainingConfig
from detrkit.data.batching import collate
from detrkit.data.convert import convert_dataset
from detrkit.data.dataset import SampleDataset
from detrkit.data.samplers import SampleKey
from detrkit.data.splits import load_dataset
from detrkit.data.synthetic import SyntheticShapes, SyntheticStyle
from detrkit.errors import ConfigError, DatasetError
from detrkit.evaluation.metrics import EvalMetrics
from detrkit.training.data import TrainingData, concat_splits, open_data, preprocessing_of, training_dataset
from detrkit.training.loggers.jsonl import read_metrics
from detrkit.training.run_report import describe_images
from detrkit.training.train import train_from_config
from tests.datasets import write_coco, write_panoptic

TINY = {"num_queries": 8, "encoder_layers": 1, "decoder_layers": 1, "dim_feedforward": 32}


def config(data: Path, **training: Any) -> RunConfig:
    given = {"image_size": 64, "workers": 0, "batch_size": 2, "epochs": 1, **training}
    return RunConfig(data=str(data), model="detr-tiny", model_overrides=TINY, training=TrainingConfig(**given))


def pictures_of(data: TrainingData) -> list[torch.Tensor]:
    return [data.train.images[index].image for index in range(len(data.train))]


def test_train_on_val_adds_validation_images(tmp_path: Path) -> None:
    folder = write_coco(tmp_path / "shapes", num_train=4, num_val=3)
    apart, together = open_data(config(folder)), open_data(config(folder, train_on_val=True))
    assert (len(apart.train), len(together.train), len(together.val)) == (4, 7, 3)
    validation = [together.pictures[index].image for index in range(3)]
    assert all(
        torch.equal(a, b) for a, b in zip(pictures_of(together), [*pictures_of(apart), *validation], strict=True)
    )
    assert len(together.grouping.is_portrait) == 7
    assert "also trained on 3 validation images, so their metrics are not meaningful" in together.notes[-1]


def test_image_in_both_splits_is_concatenated_once(tmp_path: Path) -> None:
    folder = write_coco(tmp_path / "shapes", num_train=1, num_val=1)
    only = load_dataset(folder).train
    assert len(concat_splits(only, only).records) == 1


def test_concatenated_splits_keep_their_segments(tmp_path: Path) -> None:
    folder = load_dataset(write_panoptic(tmp_path / "panoptic"), masks=True)
    both = concat_splits(folder.train, folder.val).records
    expected = [*folder.train.records, *folder.val.records]
    assert [record.mask_file for record in both] == [record.mask_file for record in expected]
    assert [record.segmentations for record in both] == [record.segmentations for record in expected]


@pytest.mark.slow
def test_report_of_train_on_val_does_not_claim_unseen_images(tmp_path: Path) -> None:
    folder = write_coco(tmp_path / "shapes", num_train=2, num_val=2)
    train_from_config(config(folder), tmp_path / "apart")
    train_from_config(config(folder, train_on_val=True), tmp_path / "together")
    assert "not used in training" in (tmp_path / "apart" / "report.html").read_text()
    assert "training images" in (tmp_path / "together" / "report.html").read_text()
    assert "train_on_val: true" in (tmp_path / "together" / "config.yaml").read_text()


def without_objects(folder: Path, split: str) -> None:
    """Take all objects out of a split, but for a crowd."""
    path = folder / "annotations" / f"instances_{split}2017.json"
    document = json.loads(path.read_text())
    document["annotations"] = [{**document["annotations"][0], "iscrowd": 1}]
    path.write_text(json.dumps(document))


def test_training_split_without_objects_is_rejected(tmp_path: Path) -> None:
    folder = write_coco(tmp_path / "shapes")
    without_objects(folder, "train")
    for training in ({}, {"overfit": 2}):
        with pytest.raises(DatasetError, match=r"instances_train2017.json: found no object in the \d training images"):
            open_data(config(folder, **training))
    assert open_data(config(folder, train_on_val=True)).train is not None


def test_finding_about_the_whole_dataset_has_no_count(tmp_path: Path) -> None:
    folder = write_coco(tmp_path / "shapes")
    without_objects(folder, "val")
    notes = open_data(config(folder)).notes
    assert [note for note in notes if "validation" in note] == [
        "warning: no object in the validation split: metrics cannot be computed, and the last checkpoint is taken as the "
        "best; annotate some"
    ]


@pytest.mark.slow
def test_without_validation_objects_the_last_checkpoint_is_the_best(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, run = write_coco(tmp_path / "shapes", num_train=2, num_val=2), tmp_path / "run"
    without_objects(folder, "val")
    result = train_from_config(config(folder, epochs=2), run, callbacks=[ConsoleProgress()])
    assert result.evaluation is not None
    assert (run / "best" / "model.safetensors").read_bytes() == (run / "last" / "model.safetensors").read_bytes()
    said = capsys.readouterr().out
    assert "epoch 1: AP -, AP50 -\nepoch 2: AP -, AP50 -\n" in said
    assert "-1.000" not in said + (run / "report.html").read_text()
    evaluations = [entry for entry in read_metrics(run) if entry["kind"] == "evaluation"]
    assert [(entry["ap"], entry["ap_small"]) for entry in evaluations] == [(None, None), (None, None)]
    numbers = json.loads((run / "scores.json").read_text())["metrics"]
    assert set(numbers.values()) == {None}
    assert EvalMetrics.from_json(result.evaluation.to_json()).values == result.evaluation.values
    with pytest.raises(ConfigError, match=r"^patience=3 waits for better scores, but .* has no objects"):
        open_data(config(folder, patience=3))


@pytest.mark.parametrize("other", [{"patience": 3}, {"overfit": 2}])
def test_train_on_val_excludes_patience_and_overfit(tmp_path: Path, other: dict[str, int]) -> None:
    folder = write_coco(tmp_path / "shapes")
    with pytest.raises(ConfigError, match=r"^train_on_val=True leaves no images for evaluation"):
        open_data(config(folder, train_on_val=True, **other))


def yolo(folder: Path, val: str) -> Path:
    """Write a YOLO dataset of four training and three validation images, and let its settings name another `val`."""
    convert_dataset(write_coco(folder.with_name("coco")), folder, "yolo")
    text = (folder / "data.yaml").read_text()
    (folder / "data.yaml").write_text(text.replace("val: val/images", f"val: {val}"))
    return folder


def copy_one(folder: Path) -> Path:
    shutil.copy(folder / "train" / "images" / "2.png", folder / "val" / "images" / "copied.png")
    return folder


@pytest.mark.parametrize(
    ("make", "number", "total", "report"),
    [
        (lambda place: yolo(place, "train/images"), 4, 4, "which are training images"),
        (lambda place: copy_one(yolo(place, "val/images")), 1, 4, "1 of the images were trained on, too"),
        (lambda place: yolo(place, "[train/images, val/images]"), 4, 7, "4 of the images were trained on, too"),
        (lambda place: yolo(place, "val/images"), 0, 3, "not used in training"),
    ],
)
def test_validation_images_that_are_trained_on_are_told(
    tmp_path: Path, make: Callable[[Path], Path], number: int, total: int, report: str
) -> None:
    data = open_data(config(make(tmp_path / "yolo")))
    assert (data.num_val_in_train, len(data.val_ids)) == (number, total)
    told = [note for note in data.notes if f"{number} of {total} validation images" in note]
    assert len(told) == bool(number)
    assert all(note.startswith("warning: ") and "keep each image in one split" in note for note in told)
    assert report in describe_images(data)


def test_one_image_is_trained_and_evaluated_on(tmp_path: Path) -> None:
    folder = write_coco(tmp_path / "shapes", num_train=2, num_val=1)
    shutil.rmtree(folder / "val2017")
    (folder / "annotations" / "instances_val2017.json").unlink()
    path = folder / "annotations" / "instances_train2017.json"
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, "images": document["images"][1:]}))
    data = open_data(config(folder))
    assert (len(data.train), len(data.val_ids)) == (1, 1)
    about_val = [note for note in data.notes if "valid" in note or "set aside" in note]
    assert about_val == [
        "no validation split, and a single image: the model is evaluated on the image it is trained on"
    ]
    assert "which are training images" in describe_images(data)


def test_images_are_prepared_in_training_as_in_inference_stretched_and_without_mean_and_deviation() -> None:
    settings = TrainingConfig(image_size=64, keep_aspect_ratio=False, normalize=False, augment=False)
    preprocessing = preprocessing_of(settings)
    assert (preprocessing.resize, preprocessing.size, preprocessing.normalize) == ("stretch", (64, 64), False)
    samples = SyntheticShapes(1, 0, SyntheticStyle(size=40)).draw_all()
    trained = collate([training_dataset(SampleDataset(samples), settings)[SampleKey(0, 1)]])
    predicted = collate([preprocessing.transform()(samples[0])])
    assert torch.equal(trained.images, predicted.images)
    assert trained.images.shape[2:] == (64, 64)
    assert 0 <= float(trained.images.min()) < float(trained.images.max()) <= 1
    published = preprocessing_of(TrainingConfig())
    assert (published.resize, published.normalize, published.is_default) == ("shorter_side", True, True)
