"""A resumed run continues with the classes, images and settings that it was started with."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from detrkit.config.run import RunConfig
from detrkit.config.training import TrainingConfig
from detrkit.data.convert import convert_dataset
from detrkit.data.splits import as_splits
from detrkit.data.synthetic import SyntheticShapes, SyntheticStyle
from detrkit.errors import ConfigError
from detrkit.training import resume_check
from detrkit.training.build import build_model_for
from detrkit.training.data import TrainingData, open_data
from detrkit.training.resume_check import check_same_run, describe_run
from tests.datasets import write_coco

TINY = {"num_queries": 8, "encoder_layers": 1, "decoder_layers": 1, "dim_feedforward": 32}


def describe(data: Path, **training: Any) -> tuple[dict[str, Any], TrainingData]:
    given = {"image_size": 64, "workers": 0, "batch_size": 2, "epochs": 1, **training}
    config = RunConfig(data=str(data), model="detr-tiny", model_overrides=TINY, training=TrainingConfig(**given))
    opened = open_data(config)
    model, _ = build_model_for(config, opened.categories)
    return describe_run(config, opened, model), opened


def check(before: dict[str, Any], folder: Path, **training: Any) -> None:
    now, data = describe(folder, **training)
    check_same_run(before, now, Path("runs/first"), data)


def edit_json(folder: Path, edit: Callable[[dict[str, Any]], Any], names: tuple[str, ...] = ("train2017",)) -> None:
    for name in names:
        path = folder / "annotations" / f"instances_{name}.json"
        document = json.loads(path.read_text())
        edit(document)
        path.write_text(json.dumps(document))


BOTH = ("train2017", "val2017")


def swap_classes(folder: Path) -> None:
    def edit(document: dict[str, Any]) -> None:
        first, second = document["categories"][:2]
        first["name"], second["name"] = second["name"], first["name"]

    edit_json(folder, edit, BOTH)


def rename_class(folder: Path) -> None:
    edit_json(folder, lambda document: document["categories"][2].update(name="tent"), BOTH)


def add_class(folder: Path) -> None:
    edit_json(folder, lambda document: document["categories"].append({"id": 9, "name": "star"}), BOTH)


def renumber_class(folder: Path) -> None:
    def edit(document: dict[str, Any]) -> None:
        document["categories"][2]["id"] = 5
        for entry in document["annotations"]:
            entry["category_id"] = {3: 5}.get(entry["category_id"], entry["category_id"])

    edit_json(folder, edit, BOTH)


def replace_image(folder: Path) -> None:
    Image.new("RGB", (64, 64), "navy").save(folder / "train2017" / "3.png")


def replace_val_image(folder: Path) -> None:
    Image.new("RGB", (64, 64), "navy").save(folder / "val2017" / "2.png")


def move_box(folder: Path) -> None:
    edit_json(folder, lambda document: document["annotations"][0].update(bbox=[1, 2, 30, 40]))


def drop_image(folder: Path) -> None:
    edit_json(folder, lambda document: document.update(images=document["images"][1:]))  # number 1 has no objects


def reorder_images(folder: Path) -> None:
    edit_json(folder, lambda document: document["images"].reverse())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (swap_classes, "class 0 is 'square', but was 'circle'"),
        (rename_class, "class 2 is 'tent', but was 'triangle'"),
        (add_class, "it has 4 classes, but had 3"),
        (renumber_class, "class 'triangle' has the id 5, but had 3"),
        (drop_image, "it has 3 training images, but had 4"),
        (reorder_images, "the training images are in another order"),
        (replace_image, "1 of 4 training images or their annotations are not those of the run, first 3.png"),
        (replace_val_image, "1 of 3 validation images or their annotations are not those of the run, first 2.png"),
        (move_box, "1 of 4 training images or their annotations are not those of the run, first 2.png"),
    ],
)
def test_changed_dataset_is_named(tmp_path: Path, change: Callable[[Path], None], message: str) -> None:
    folder = write_coco(tmp_path / "shapes")
    before, _ = describe(folder)
    change(folder)
    with pytest.raises(ConfigError, match="has changed since the run was started: " + message):
        check(before, folder)


def test_names_of_a_yolo_list_in_another_order_are_refused(tmp_path: Path) -> None:
    folder = convert_dataset(write_coco(tmp_path / "coco"), tmp_path / "yolo", "yolo").output
    before, _ = describe(folder)
    file = folder / "data.yaml"
    text = file.read_text().replace("circle", "x").replace("square", "circle").replace("x", "square", 1)
    file.write_text(text)
    with pytest.raises(ConfigError, match="class 0 is 'square', but was 'circle'"):
        check(before, folder)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": 0.5}, "has lr: 0.5, but the run was started with 0.0001"),
        ({"horizontal_flip": 0.0}, "has horizontal_flip: 0.0, but the run was started with 0.5"),
        ({"seed": 7}, "has seed: 7, but the run was started with 42"),
        ({"freeze": "backbone"}, r"has freeze: \['backbone'\], but the run was started with \[\]"),
    ],
)
def test_changed_setting_is_named(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    folder = write_coco(tmp_path / "shapes")
    before, _ = describe(folder)
    with pytest.raises(ConfigError, match="config.yaml " + message):
        check(before, folder, **settings)
    check(before, folder, workers=1, log_every=3)


def test_moved_dataset_is_the_same(tmp_path: Path) -> None:
    folder = write_coco(tmp_path / "shapes")
    before, _ = describe(folder)
    moved = tmp_path / "elsewhere" / "renamed"
    moved.parent.mkdir()
    shutil.move(folder, moved)
    (moved / "notes.txt").write_text("unrelated")
    check(before, moved)


def test_of_many_images_some_are_read_and_all_names_are_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resume_check, "MAX_READ", 2)
    folder = write_coco(tmp_path / "shapes")
    before, _ = describe(folder)
    replace_image(folder)  # the third image is read, the second and the fourth are not
    with pytest.raises(ConfigError, match=r"first 3\.png"):
        check(before, folder)
    folder = write_coco(tmp_path / "again")
    check(before, folder)
    edit_json(folder, lambda document: document["images"][3].update(file_name="new.png"))
    (folder / "train2017" / "4.png").rename(folder / "train2017" / "new.png")
    with pytest.raises(ConfigError, match=r"first new\.png"):
        check(before, folder)


def test_torch_dataset_is_described_by_its_annotations() -> None:
    first, other = (
        resume_check.image_digests(as_splits(SyntheticShapes(4, seed, SyntheticStyle(size=48))).train)
        for seed in (0, 1)
    )
    assert len(first) == len(other) == 3
    assert not torch.equal(first, other)
