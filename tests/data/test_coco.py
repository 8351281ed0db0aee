"""COCO instances: category ids, crowds, degenerate boxes, malformed files."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from detrkit import DatasetError
from detrkit.data.dataset import DetectionDataset, usable_annotations
from detrkit.data.formats.coco import read_coco_file, read_coco_split
from detrkit.data.formats.context import ReadContext

DOCUMENT: dict[str, Any] = {
    "images": [
        {"id": 7, "file_name": "a.png", "height": 20, "width": 30},
        {"id": 3, "file_name": "b.png", "height": 10, "width": 10},
    ],
    "categories": [{"id": 90, "name": "zebra"}, {"id": 4, "name": "ant"}],
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 90, "bbox": [-5, 2, 10, 30], "iscrowd": 0},
        {"id": 2, "image_id": 7, "category_id": 4, "bbox": [1, 1, 5, 5], "iscrowd": 1},
        {"id": 3, "image_id": 7, "category_id": 4, "bbox": [3, 3, 0, 5]},
        {"id": 4, "image_id": 7, "category_id": 4, "bbox": [40, 3, 5, 5]},
    ],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path, DOCUMENT)
    return tmp_path


def write(root: Path, document: Any) -> None:
    for name in ("train2017", "val2017"):
        (root / name).mkdir(exist_ok=True)
        for entry in DOCUMENT["images"]:
            Image.new("RGB", (entry["width"], entry["height"]), "green").save(root / name / entry["file_name"])
        (root / "annotations").mkdir(exist_ok=True)
        (root / "annotations" / f"instances_{name}.json").write_text(json.dumps(document))


def test_category_ids_are_mapped_in_ascending_order(folder: Path) -> None:
    split = read_coco_split(folder, "train")
    assert split.categories.ids == (4, 90)
    assert split.categories.names == ("ant", "zebra")
    assert split.categories.ids.index(90) == 1
    assert [record.image_id for record in split.records] == [7, 3]
    assert split.records[0].labels.tolist() == [1, 0, 0, 0]


def test_crowds_and_empty_boxes_are_left_out_and_boxes_clipped(folder: Path) -> None:
    record = read_coco_split(folder, "train").records[0]
    usable = usable_annotations(record, (20, 30))
    assert usable.boxes.tolist() == [[0, 2, 5, 20]]
    assert usable.labels.tolist() == [1]


def test_images_without_objects_are_kept(folder: Path) -> None:
    sample = DetectionDataset(read_coco_split(folder, "val"))[1]
    assert sample.image_id == 3
    assert sample.annotations.boxes.shape == (0, 4)
    assert sample.image.shape == (3, 10, 10)
    assert sample.image.dtype == torch.uint8


def changed(change: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    document = copy.deepcopy(DOCUMENT)
    change(document)
    return document


MALFORMED = {
    r"expected a COCO instances file": [],
    r"found no list 'annotations'": changed(lambda d: d.pop("annotations")),
    r"category id 90 occurs twice": changed(lambda d: d["categories"].append({"id": 90, "name": "again"})),
    r"annotations\[0\] \(id 1\): category_id 5 is not in 'categories'": changed(
        lambda d: d["annotations"][0].update(category_id=5)
    ),
    r"annotations\[0\] \(id 1\)\.bbox: found \[1, 2, 3\]": changed(
        lambda d: d["annotations"][0].update(bbox=[1, 2, 3])
    ),
    r"negative size": changed(lambda d: d["annotations"][0].update(bbox=[10, 10, -3, 5])),
    r"expected \[x, y, width, height\]": changed(lambda d: d["annotations"][0].update(bbox=[1, 2, float("nan"), 3])),
    r"image ids have annotations and no entry in 'images', first 8": changed(
        lambda d: d["annotations"][0].update(image_id=8)
    ),
    r"image id 7 occurs twice": changed(lambda d: d["images"][1].update(id=7)),
    r"leads out of": changed(lambda d: d["images"][0].update(file_name="../../etc/passwd")),
    r"images\[0\]\.height: found '20 px', expected an integer": changed(
        lambda d: d["images"][0].update(height="20 px")
    ),
    r"found no images": changed(lambda d: (d["images"].clear(), d["annotations"].clear())),
}


@pytest.mark.parametrize("message", MALFORMED)
def test_malformed_file_is_rejected_with_its_location(tmp_path: Path, message: str) -> None:
    write(tmp_path, MALFORMED[message])
    with pytest.raises(DatasetError, match=message) as caught:
        read_coco_split(tmp_path, "train")
    assert "\n" not in str(caught.value)


def test_wrong_layout_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="found nothing, expected a dataset folder"):
        read_coco_split(tmp_path / "nowhere", "train")
    with pytest.raises(DatasetError, match=r"found no file annotations/instances_train"):
        read_coco_split(tmp_path, "train")
    write(tmp_path, DOCUMENT)
    with pytest.raises(DatasetError, match="no such folder, expected the images"):
        read_coco_file(tmp_path / "annotations" / "instances_train2017.json", tmp_path / "elsewhere")
    (tmp_path / "annotations" / "instances_train2017.json").write_text("{")
    with pytest.raises(DatasetError, match="not readable as JSON"):
        read_coco_split(tmp_path, "train")


def test_coco_mini_is_read_completely(shared: Path) -> None:
    split = read_coco_split(shared / "data" / "coco-mini-dev", "val")
    assert len(split.records) == 102
    assert len(split.categories) == 80
    assert sum(len(record.boxes) for record in split.records) == 877
    assert sum(int(record.is_crowd.sum()) for record in split.records) == 11
    empty = [record.path.name for record in split.records if not len(record.boxes)]
    assert empty == ["000000058636.jpg"]
    assert all(np.isfinite(record.boxes).all() for record in split.records)


def test_malformed_files_load_or_raise_a_dataset_error(shared: Path) -> None:
    root = shared / "data" / "nasty" / "coco"
    files = sorted(root.glob("*.json"))
    assert len(files) > 50
    loaded = 0
    for file in files:
        try:
            split = read_coco_file(file, root / "images")
        except DatasetError as error:
            assert "\n" not in str(error)
            continue
        loaded += 1
        for record in split.records:
            assert record.path.resolve().is_relative_to((root / "images").resolve())
            usable_annotations(record, record.size)
    assert loaded > 0
    assert read_coco_file(root / "valid.json", root / "images").records


def test_images_may_be_symbolic_links(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    store = tmp_path_factory.mktemp("store")
    image = folder / "train2017" / "a.png"
    before = DetectionDataset(read_coco_split(folder, "train"))[0].image
    image.rename(store / "a.png")
    image.symlink_to(store / "a.png")
    assert DetectionDataset(read_coco_split(folder, "train"))[0].image.shape == before.shape


def test_image_of_another_size_than_annotated_is_rejected(folder: Path) -> None:
    Image.new("RGB", (60, 40)).save(folder / "train2017" / "a.png")
    with pytest.raises(DatasetError, match="60 x 40 pixels, but its annotations are for 30 x 20"):
        DetectionDataset(read_coco_split(folder, "train"))[0]


def test_image_of_impossible_size_is_refused_before_its_masks_are_decoded(folder: Path) -> None:
    document = copy.deepcopy(DOCUMENT)
    document["images"][0].update(width=100_000, height=100_000)  # 10 GB a mask
    for entry in document["annotations"]:
        counts = [2**31 - 1] * 4 + [10**10 - 4 * (2**31 - 1)]
        entry["segmentation"] = {"size": [100_000, 100_000], "counts": counts}
    write(folder, document)
    with pytest.raises(DatasetError, match=r"images\[0\]: found height 100000 and width 100000, which is more than"):
        read_coco_split(folder, "train", ReadContext(masks="available"))
