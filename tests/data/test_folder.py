"""Detection of the format, and the layouts of COCO folders."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from detrkit._internal.files import write_json_rows
from detrkit.data.formats.coco import read_coco_file
from detrkit.data.formats.context import ReadContext
from detrkit.data.formats.registry import detect_format
from detrkit.data.splits import load_dataset, load_split, require_train
from detrkit.errors import DatasetError
from tests.datasets import write_coco


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    return write_coco(tmp_path / "shapes")


def as_roboflow(coco: Path, target: Path) -> Path:
    """The layout of a Roboflow export: images and one JSON per split, with a group as category 0."""
    for exported, own in (("train", "train2017"), ("valid", "val2017")):
        shutil.copytree(coco / own, target / exported)
        document = json.loads((coco / "annotations" / f"instances_{own}.json").read_text())
        document["categories"].insert(0, {"id": 0, "name": "shapes", "supercategory": "none"})
        (target / exported / "_annotations.coco.json").write_text(json.dumps(document))
    return target


def test_coco_2017_layout(coco: Path) -> None:
    data = load_dataset(coco)
    assert (data.format, len(data.train.records), len(data.val.records), len(data.test)) == ("coco", 4, 3, 0)


def test_group_category_of_roboflow_is_dropped(coco: Path, tmp_path: Path) -> None:
    data = load_dataset(as_roboflow(coco, tmp_path / "export"))
    original = load_dataset(coco)
    assert data.train.categories == original.train.categories
    for own, exported in zip(data.train.records, original.train.records, strict=True):
        assert own.labels.tolist() == exported.labels.tolist()


def test_category_0_with_objects_is_kept(coco: Path, tmp_path: Path) -> None:
    export = as_roboflow(coco, tmp_path / "export")
    path = export / "valid" / "_annotations.coco.json"
    document: dict[str, Any] = json.loads(path.read_text())
    document["annotations"][0]["category_id"] = 0
    path.write_text(json.dumps(document))
    assert load_dataset(export).train.categories.ids == (0, 1, 2, 3)


def test_results_next_to_a_single_json_are_not_annotations(coco: Path, tmp_path: Path) -> None:
    folder = tmp_path / "one"
    shutil.copytree(coco / "train2017", folder)
    shutil.copy(coco / "annotations" / "instances_train2017.json", folder / "labels.json")
    (folder / "findings.json").write_text('{\n "format": "detrkit-findings-1",\n "images": []\n}')
    (folder / "0.json").write_text('{"image": "0.png", "objects": []}')
    write_json_rows(folder / "results.json", [{"image_id": 1, "category_id": 1}])
    (folder / "exported.json").write_text('[{"image_id": 1, "category_id": 1}]')
    (folder / "package.json").write_text('{"name": "shapes"}')
    assert len(load_dataset(folder).train.records) == 3
    shutil.copy(folder / "labels.json", folder / "more.json")
    with pytest.raises(DatasetError, match=r"found 2 annotation files \(labels.json, more.json\), expected one"):
        load_dataset(folder)  # which of the two?


@pytest.mark.parametrize("next_to_json", [True, False])
def test_single_json_with_its_images(coco: Path, tmp_path: Path, next_to_json: bool) -> None:
    folder = tmp_path / "one"
    shutil.copytree(coco / "train2017", folder if next_to_json else folder / "images")
    shutil.copy(coco / "annotations" / "instances_train2017.json", folder / "labels.json")
    for path in (folder, folder / "labels.json"):
        data = load_dataset(path)
        assert (len(data.train.records), len(data.val.records)) == (3, 1)
        assert "1 of 4 images were set aside" in data.notes[0]


@pytest.mark.parametrize("first", ["../lies_outside.png", "missing.png", 7])
def test_image_folder_is_found_despite_a_malformed_first_entry(coco: Path, tmp_path: Path, first: object) -> None:
    folder = tmp_path / "one"
    shutil.copytree(coco / "train2017", folder)
    (folder / "images").mkdir()  # where images are looked for first, and where the first name leads to a file
    shutil.copy(next(folder.glob("*.png")), folder / "lies_outside.png")
    document = json.loads((coco / "annotations" / "instances_train2017.json").read_text())
    document["images"][0]["file_name"] = first
    (folder / "labels.json").write_text(json.dumps(document))
    records = read_coco_file(folder / "labels.json", context=ReadContext(lambda _: None)).records
    assert {record.path.parent for record in records} == {folder}


def test_validation_split_without_training_split_is_loaded(coco: Path, tmp_path: Path) -> None:
    whole = load_dataset(coco)
    folder = tmp_path / "val-only"
    shutil.copytree(coco / "val2017", folder / "val2017")
    (folder / "annotations").mkdir()
    file = folder / "annotations" / "instances_val2017.json"
    shutil.copy(coco / "annotations" / "instances_val2017.json", file)
    for path in (folder, file):
        found, _ = load_split(path, "val")
        assert found is not None
        assert found.records.image_ids == whole.val.records.image_ids
        assert found.records[0].path.is_file()
    assert load_split(folder, "test") == (None, ())
    assert len(load_dataset(folder).train) == 0
    with pytest.raises(DatasetError, match="found no training images"):
        require_train(load_dataset(folder))
    # a run that learned from such a file set some aside, and is judged by these
    mine, notes = load_split(file, "val", seed=8)
    assert mine is not None
    assert 0 < len(mine.records) < len(whole.val.records)
    assert "(seed 8)" in notes[0]


def test_unknown_layout_lists_the_formats(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(DatasetError, match=r"expected coco: .*yolo: data\.yaml"):
        detect_format(tmp_path)
    with pytest.raises(DatasetError, match="found a file"):
        detect_format(tmp_path / "notes.txt")
    with pytest.raises(DatasetError, match="no such file or folder"):
        load_dataset(tmp_path / "nowhere")


def test_splits_with_different_categories_are_rejected(coco: Path) -> None:
    path = coco / "annotations" / "instances_val2017.json"
    document = json.loads(path.read_text())
    document["categories"][0]["name"] = "disc"
    path.write_text(json.dumps(document))
    with pytest.raises(DatasetError, match="the categories differ"):
        load_dataset(coco)


@pytest.mark.parametrize("seed", range(5))
def test_training_keeps_an_image_of_every_class(tmp_path: Path, seed: int) -> None:
    folder = tmp_path / "rare"
    write_coco(folder, num_train=12)
    document = json.loads((folder / "annotations" / "instances_train2017.json").read_text())
    rare = document["annotations"][0]
    document["categories"].append({"id": 9, "name": "rare"})
    rare["category_id"] = 9
    (folder / "train2017" / "labels.json").write_text(json.dumps(document))
    data = load_dataset(folder / "train2017", seed=seed)
    label = data.train.categories.ids.index(9)
    assert any(label in record.labels for record in data.train.records)
    assert len(data.val.records) == 2
