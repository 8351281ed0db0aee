"""Ground truth from COCO files whose values are written in other ways than COCO's own."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import detrkit
from detrkit.evaluation.arrays import GroundTruth
from detrkit.evaluation.ground_truth import ground_truth_of_split

DOCUMENT: dict[str, Any] = {
    "images": [
        {"id": 4, "file_name": "a.png", "height": 20, "width": 30},
        {"id": 9, "file_name": "b.png", "height": 10, "width": 12},
    ],
    "categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}],
    "annotations": [
        {"id": 1, "image_id": 4, "category_id": 7, "bbox": [1, 2, 10, 12.5], "area": 99.5, "iscrowd": 0},
        {"id": 2, "image_id": 4, "category_id": 3, "bbox": [0, 0, 30, 20], "area": 600, "iscrowd": 1},
        {"id": 3, "image_id": 9, "category_id": 3, "bbox": [1, 1, 5, 5], "iscrowd": 0},
    ],
}


def write(folder: Path, document: dict[str, Any], name: str = "instances_val.json") -> Path:
    (folder / "images").mkdir(exist_ok=True)
    for file, size in (("a.png", (30, 20)), ("b.png", (12, 10))):
        Image.new("RGB", size).save(folder / "images" / file)
    (folder / name).write_text(json.dumps(document))
    return folder


def truth_of(folder: Path) -> GroundTruth:
    return ground_truth_of_split(detrkit.load_dataset(folder).val)


def without_sizes(document: dict[str, Any]) -> None:
    for entry in document["images"]:
        del entry["height"], entry["width"]


def ids_as_text(document: dict[str, Any]) -> None:
    for entry in (*document["images"], *document["categories"]):
        entry["id"] = str(entry["id"])
    for entry in document["annotations"]:
        entry.update(image_id=str(entry["image_id"]), category_id=str(entry["category_id"]))


def flags_and_numbers_as_text(document: dict[str, Any]) -> None:
    for entry in document["annotations"]:
        entry.update(iscrowd=str(entry["iscrowd"]), bbox=[str(value) for value in entry["bbox"]])
        if "area" in entry:
            entry["area"] = str(entry["area"])


def ids_as_floats(document: dict[str, Any]) -> None:
    for entry in document["annotations"]:
        entry.update(image_id=float(entry["image_id"]), category_id=float(entry["category_id"]))


@pytest.mark.parametrize(
    "change", [without_sizes, ids_as_text, flags_and_numbers_as_text, ids_as_floats], ids=lambda one: one.__name__
)
def test_ground_truth_does_not_depend_on_how_values_are_written(
    tmp_path: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    document = copy.deepcopy(DOCUMENT)
    change(document)
    truth = truth_of(write(tmp_path, document))
    assert truth.image_ids.tolist() == [4, 9]
    assert truth.sizes.tolist() == [[20, 30], [10, 12]]
    assert truth.categories.ids == (3, 7)
    assert truth.image_indices.tolist() == [0, 0, 1]
    assert truth.labels.tolist() == [1, 0, 0]
    assert truth.boxes.tolist() == [[1, 2, 10, 12.5], [0, 0, 30, 20], [1, 1, 5, 5]]
    assert truth.areas.tolist() == [99.5, 600, 25]
    assert truth.is_crowd.tolist() == [False, True, False]


def test_images_with_ids_that_are_names_are_evaluated(tmp_path: Path) -> None:
    document = copy.deepcopy(DOCUMENT)
    for entry in document["images"]:
        entry["id"] = f"image {entry['id']}"
    for entry in document["annotations"]:
        entry["image_id"] = f"image {entry['image_id']}"
    truth = truth_of(write(tmp_path, document))
    assert truth.image_ids.tolist() == [1, 2]
    assert truth.image_indices.tolist() == [0, 0, 1]
    assert truth.areas.tolist() == [99.5, 600, 25]


def test_all_images_of_several_files_are_evaluated(tmp_path: Path) -> None:
    parts = [copy.deepcopy(DOCUMENT), copy.deepcopy(DOCUMENT)]
    for number, document in enumerate(parts):
        document["images"] = document["images"][number : number + 1]
        kept = {entry["id"] for entry in document["images"]}
        document["annotations"] = [entry for entry in document["annotations"] if entry["image_id"] in kept]
        write(tmp_path, document, f"instances_part{number}.json")
    split = detrkit.load_dataset(tmp_path).train.select([0])
    whole = detrkit.load_dataset(tmp_path)
    images = sorted(
        image for part in (whole.train, whole.val) for image in ground_truth_of_split(part).image_ids.tolist()
    )
    assert images == [4, 9]
    assert ground_truth_of_split(split).image_ids.tolist() == split.records.image_ids
