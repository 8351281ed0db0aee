"""Links of a dataset to devices that never end, and pipes without a writer, are not read."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from detrkit import load_dataset
from detrkit._internal.files import read_text
from detrkit.errors import DatasetError

pytestmark = pytest.mark.skipif(not Path("/dev/zero").is_char_device(), reason="needs /dev/zero")
PAGE = "<annotation><size><width>30</width><height>20</height><depth>3</depth></size></annotation>"


def endless(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/zero")


def pipe(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def write_images(folder: Path) -> None:
    folder.mkdir(parents=True)
    for number in range(2):
        Image.new("RGB", (30, 20)).save(folder / f"{number}.png")


@pytest.fixture
def yolo(tmp_path: Path) -> Path:
    root = tmp_path / "yolo"
    for split in ("train", "val"):
        write_images(root / "images" / split)
        (root / "labels" / split).mkdir(parents=True)
        for number in range(2):
            (root / "labels" / split / f"{number}.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    (root / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [cat]\n")
    return root


@pytest.mark.parametrize("replace", [endless, pipe])
@pytest.mark.parametrize("name", ["data.yaml", "list.txt"])
def test_yolo_settings_and_lists_that_are_no_files_are_refused(
    yolo: Path, name: str, replace: Callable[[Path], None]
) -> None:
    (yolo / "data.yaml").write_text("train: images/train\nval: list.txt\nnames: [cat]\n")
    replace(yolo / name)
    with pytest.raises(DatasetError) as caught:
        load_dataset(yolo, "yolo")
    assert "\n" not in str(caught.value)


def test_device_in_place_of_a_list_is_refused(yolo: Path) -> None:
    (yolo / "data.yaml").write_text("train: images/train\nval: /dev/zero\nnames: [cat]\n")
    with pytest.raises(DatasetError, match="is a pipe or device"):
        load_dataset(yolo, "yolo")


@pytest.mark.parametrize("replace", [endless, pipe])
def test_labels_that_are_no_files_count_as_missing(yolo: Path, replace: Callable[[Path], None]) -> None:
    replace(yolo / "labels/train/0.txt")
    assert [len(record.labels) for record in load_dataset(yolo, "yolo").train.records] == [0, 1]


@pytest.mark.parametrize("replace", [endless, pipe])
def test_text_is_read_from_regular_files_only(tmp_path: Path, replace: Callable[[Path], None]) -> None:
    replace(tmp_path / "a.txt")
    with pytest.raises(OSError, match="is a pipe or device, expected a file"):
        read_text(tmp_path / "a.txt")
    (tmp_path / "b.txt").write_bytes("\ufeffgrün\r\n".encode())
    assert read_text(tmp_path / "b.txt", "utf-8-sig") == "grün\n"


@pytest.mark.parametrize("replace", [endless, pipe])
def test_pages_of_voc_that_are_no_files_are_refused(tmp_path: Path, replace: Callable[[Path], None]) -> None:
    root = tmp_path / "voc"
    write_images(root / "JPEGImages")
    (root / "Annotations").mkdir()
    for number in range(2):
        (root / "Annotations" / f"{number}.xml").write_text(PAGE)
    replace(root / "Annotations/0.xml")
    with pytest.raises(DatasetError) as caught:
        load_dataset(root, "voc")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("replace", [endless, pipe])
def test_annotations_of_coco_that_are_no_files_are_refused(tmp_path: Path, replace: Callable[[Path], None]) -> None:
    root = tmp_path / "coco"
    write_images(root / "train2017")
    (root / "annotations").mkdir()
    replace(root / "annotations" / "instances_train2017.json")
    with pytest.raises(DatasetError) as caught:
        load_dataset(root)
    assert "\n" not in str(caught.value)
