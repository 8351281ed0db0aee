"""Classes of a model and of a dataset are matched by name; ids count only where names are missing."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import detrkit
from detrkit.checkpoints.load import load_checkpoint
from detrkit.checkpoints.native import save_checkpoint
from detrkit.data.categories import COCO_NAMES, Categories, default_categories
from detrkit.data.convert import convert_dataset
from detrkit.data.dataset import Split
from detrkit.data.records import Record, Records
from detrkit.errors import DatasetError
from detrkit.evaluation.class_matching import match_classes, match_split
from tests.datasets import write_whole_photos

FRUIT = Categories((1, 2, 3), ("apple", "banana", "cherry"))
HERE = Path("data")


@pytest.mark.parametrize(
    ("model", "data", "labels"),
    [
        (FRUIT, FRUIT, (0, 1, 2)),
        (FRUIT, Categories((1, 2), ("banana", "cherry")), (1, 2)),  # a VOC folder without apples
        (FRUIT, Categories((0, 1, 2), ("cherry", "apple", "banana")), (2, 0, 1)),
        (FRUIT, Categories((7, 9), ("Cherry ", "APPLE")), (2, 0)),
        (Categories((1, 2), ("traffic light", "car")), Categories((5, 6), ("traffic_light", "Car")), (0, 1)),
        (Categories((1, 2), ("Car", "car")), Categories((5, 6), ("car", "Car")), (1, 0)),  # exact names first
        (default_categories(91), Categories(tuple(range(80)), tuple(COCO_NAMES.values())), tuple(COCO_NAMES)),
        # names are missing: the ids count
        (Categories((1, 2), ("class 1", "class 2")), Categories((2, 1), ("dog", "cat")), (1, 0)),
        (Categories((0, 1), ("LABEL_0", "LABEL_1")), Categories((1,), ("dog",)), (1,)),
        (FRUIT, Categories((2, 3), ("class 2", "")), (1, 2)),
        # names that are numbers are still names
        (Categories((1, 2, 3), ("0", "1", "2")), Categories((0, 1), ("0", "1")), (0, 1)),
        # a class of the same name and id, among several of that name
        (Categories((4, 8), ("twice", "twice")), Categories((8,), ("twice",)), (1,)),
    ],
)
def test_classes_are_found(model: Categories, data: Categories, labels: tuple[int, ...]) -> None:
    match = match_classes(model, data, HERE)
    assert match.labels == labels
    assert [match.categories.ids[label] for label in labels] == list(data.ids)
    assert match.categories.names == model.names
    assert len(set(match.categories.ids)) == len(model)


def test_ids_that_the_data_uses_for_another_class_are_replaced() -> None:
    match = match_classes(FRUIT, Categories((1, 2), ("banana", "cherry")), HERE)
    assert match.categories.ids == (4, 1, 2)
    assert match.model_ids(FRUIT) == {4: 1, 1: 2, 2: 3}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (Categories((1, 2), ("apple", "pear")), r"class 'pear' \(id 2\) is not one of the model's 3 classes"),
        (Categories((4,), ("class 4",)), r"category 4 \(class 4\) is not one of the model's 3 categories"),
        (Categories((1, 2), ("apple", "Apple")), "classes 'apple' and 'Apple' are both the model's class 'apple'"),
        (Categories((1,), ("aple",)), r"did you mean 'apple'\?"),
    ],
)
def test_unknown_class_is_named(data: Categories, message: str) -> None:
    with pytest.raises(DatasetError, match=message) as caught:
        match_classes(FRUIT, data, HERE)
    assert "\n" not in str(caught.value)


def test_unknown_class_without_objects_is_no_obstacle(tmp_path: Path) -> None:
    record = Record(1, tmp_path / "a.png", (9, 9), np.ones((1, 4), np.float32), np.array([0]), np.zeros(1, bool))
    split = Split(Records.of([record]), Categories((1, 2), ("banana", "unused")), tmp_path)
    assert match_split(FRUIT, split).labels == (1, -1)


def renumbered(folder: Path, target: Path, ids: dict[int, int], names: dict[int, str]) -> Path:
    """Copy annotations with other category ids and names, next to the same images."""
    (target / "annotations").mkdir(parents=True)
    for path in (folder / "annotations").iterdir():
        document = json.loads(path.read_text())
        for entry in document["annotations"]:
            entry["category_id"] = ids[entry["category_id"]]
        document["categories"] = [{"id": ids[number], "name": name} for number, name in names.items()]
        (target / "annotations" / path.name).write_text(json.dumps(document))
    for split in ("train2017", "val2017"):
        (target / split).symlink_to(folder / split)
    return target


@pytest.mark.slow
def test_evaluation_does_not_depend_on_the_numbers_of_the_classes(tmp_path: Path) -> None:
    folder, weights = write_whole_photos(tmp_path)
    expected = detrkit.evaluate(weights, folder, workers=0)
    assert expected.ap > 0.3
    checkpoint = load_checkpoint(str(weights))
    unnamed = tmp_path / "unnamed.safetensors"
    names = tuple(f"class {number}" for number in checkpoint.categories.ids)
    categories = Categories(checkpoint.categories.ids, names)
    save_checkpoint(unnamed, replace(checkpoint, categories=categories))
    others = [
        (
            weights,
            renumbered(folder, tmp_path / "other", {1: 2, 2: 9, 3: 1}, {1: "circle", 2: "square", 3: "triangle"}),
        ),
        (weights, renumbered(folder, tmp_path / "one", {1: 2}, {1: "Circle"})),
        (weights, convert_dataset(folder, tmp_path / "yolo", "yolo").output),
        (weights, convert_dataset(folder, tmp_path / "voc", "voc").output),
        (unnamed, folder),
    ]
    for source, data in others:
        assert detrkit.evaluate(source, data, workers=0).ap == expected.ap, data


def test_thresholds_are_stored_by_the_ids_of_the_model(tmp_path: Path) -> None:
    folder, weights = write_whole_photos(tmp_path, num_val=10)
    data = renumbered(folder, tmp_path / "other", {1: 7}, {1: "circle"})
    result = detrkit.evaluate(weights, data, workers=0, store_thresholds=True, output=tmp_path / "out")
    assert result.thresholds is not None
    assert list(result.thresholds.per_class) == [7]
    stored = load_checkpoint(str(weights)).thresholds
    assert stored is not None
    assert list(stored.per_class) == [1]
    detections = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert {entry["category_id"] for entry in detections} >= {7}
    assert "class ids differ" in result.notes[-1]
