"""Lookup of the annotations of one image."""

import json
import shutil
from pathlib import Path

import pytest

from detrkit.data.convert import write_dataset
from detrkit.data.formats.lookup import find_record
from detrkit.data.splits import load_dataset
from detrkit.errors import DatasetError
from tests.datasets import write_coco


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_coco(tmp_path_factory.mktemp("lookup") / "shapes")


def test_image_is_found_by_folder_and_by_file(folder: Path, tmp_path: Path) -> None:
    image = folder / "val2017" / "2.png"
    expected = load_dataset(folder).val.records[1]
    elsewhere = tmp_path / "elsewhere.json"
    shutil.copy(folder / "annotations" / "instances_val2017.json", elsewhere)
    for annotations in (folder, folder / "annotations" / "instances_val2017.json", elsewhere):
        split = find_record(image, annotations)
        assert len(split.records) == 1
        record = split.records[0]
        assert record.boxes.tolist() == expected.boxes.tolist()
        assert record.labels.tolist() == expected.labels.tolist()
        assert record.path == image


def test_copy_of_an_image_is_found_by_its_unique_name(folder: Path, tmp_path: Path) -> None:
    image = tmp_path / "4.png"
    shutil.copy(folder / "train2017" / "4.png", image)
    assert find_record(image, folder).records[0].path == image
    shutil.copy(folder / "train2017" / "2.png", tmp_path / "2.png")
    with pytest.raises(DatasetError, match=r"2 images are named 2\.png"):
        find_record(tmp_path / "2.png", folder)


def test_file_names_may_contain_folders(folder: Path, tmp_path: Path) -> None:
    document = json.loads((folder / "annotations" / "instances_val2017.json").read_text())
    for entry in document["images"]:
        entry["file_name"] = f"val2017/{entry['file_name']}"
    path = tmp_path / "nested.json"
    path.write_text(json.dumps(document))
    assert find_record(folder / "val2017" / "3.png", path).records[0].image_id == 3


@pytest.mark.parametrize("format", ["yolo", "voc"])
def test_image_is_found_in_other_formats(format: str, folder: Path, tmp_path: Path) -> None:
    write_dataset(load_dataset(folder).splits, tmp_path / format, format)  # type: ignore[arg-type]
    image = next(path for path in sorted((tmp_path / format).rglob("*.png")) if path.stem.endswith("3"))
    assert find_record(image, tmp_path / format).records[0].path == image


def test_image_without_annotations_is_rejected(folder: Path, tmp_path: Path) -> None:
    stranger = tmp_path / "stranger.png"
    shutil.copy(folder / "val2017" / "2.png", stranger)
    with pytest.raises(DatasetError, match=r"found no image named stranger\.png"):
        find_record(stranger, folder)
    with pytest.raises(DatasetError, match=r"nowhere\.png: no such file"):
        find_record(tmp_path / "nowhere.png", folder)
    (tmp_path / "broken.json").write_text("[")
    with pytest.raises(DatasetError, match="not readable as JSON"):
        find_record(stranger, tmp_path / "broken.json")
