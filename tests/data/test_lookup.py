"""One photo's annotations, found in whatever describes it."""

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


def test_found_by_folder_by_file_and_from_elsewhere(folder: Path, tmp_path: Path) -> None:
    photo = folder / "val2017" / "2.png"
    expected = load_dataset(folder).val.records[1]
    elsewhere = tmp_path / "elsewhere.json"
    shutil.copy(folder / "annotations" / "instances_val2017.json", elsewhere)
    for annotations in (folder, folder / "annotations" / "instances_val2017.json", elsewhere):
        split = find_record(photo, annotations)
        assert len(split.records) == 1
        record = split.records[0]
        assert record.boxes.tolist() == expected.boxes.tolist()
        assert record.labels.tolist() == expected.labels.tolist()
        assert record.path == photo


def test_a_copy_of_a_photo_is_known_by_its_name_if_that_is_its_own(folder: Path, tmp_path: Path) -> None:
    photo = tmp_path / "4.png"
    shutil.copy(folder / "train2017" / "4.png", photo)
    assert find_record(photo, folder).records[0].path == photo
    shutil.copy(folder / "train2017" / "2.png", tmp_path / "2.png")
    with pytest.raises(DatasetError, match=r"2 images are named 2\.png"):
        find_record(tmp_path / "2.png", folder)


def test_file_names_with_folders(folder: Path, tmp_path: Path) -> None:
    document = json.loads((folder / "annotations" / "instances_val2017.json").read_text())
    for entry in document["images"]:
        entry["file_name"] = f"val2017/{entry['file_name']}"
    path = tmp_path / "nested.json"
    path.write_text(json.dumps(document))
    assert find_record(folder / "val2017" / "3.png", path).records[0].image_id == 3


@pytest.mark.parametrize("format", ["yolo", "voc"])
def test_other_forms(format: str, folder: Path, tmp_path: Path) -> None:
    write_dataset(load_dataset(folder).splits, tmp_path / format, format)  # type: ignore[arg-type]
    photo = next(path for path in sorted((tmp_path / format).rglob("*.png")) if path.stem.endswith("3"))
    assert find_record(photo, tmp_path / format).records[0].path == photo


def test_what_is_not_described_is_one_sentence(folder: Path, tmp_path: Path) -> None:
    stranger = tmp_path / "stranger.png"
    shutil.copy(folder / "val2017" / "2.png", stranger)
    with pytest.raises(DatasetError, match=r"found no image named stranger\.png"):
        find_record(stranger, folder)
    with pytest.raises(DatasetError, match=r"nowhere\.png: no such file"):
        find_record(tmp_path / "nowhere.png", folder)
    (tmp_path / "broken.json").write_text("[")
    with pytest.raises(DatasetError, match="not readable as JSON"):
        find_record(stranger, tmp_path / "broken.json")
