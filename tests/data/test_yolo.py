"""YOLO: rows, data.yaml, malformed files."""

import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detrkit.data.formats.yolo import read_yolo
from detrkit.data.splits import load_dataset
from detrkit.errors import DatasetError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for split in ("train", "valid"):
        (tmp_path / split / "images").mkdir(parents=True)
        (tmp_path / split / "labels").mkdir()
        Image.new("RGB", (200, 100)).save(tmp_path / split / "images" / "a.b.jpg")
    write(tmp_path, "1 0.5 0.5 0.2 0.4\n")
    (tmp_path / "data.yaml").write_text("train: ../train/images\nval: ../valid/images\nnc: 2\nnames: ['cat', 'dog']\n")
    return tmp_path


def write(folder: Path, rows: str) -> None:
    (folder / "train" / "labels" / "a.b.txt").write_text(rows, encoding="utf-8")


def test_boxes_are_converted_to_pixels(folder: Path) -> None:
    data = load_dataset(folder)
    assert data.format == "yolo"
    assert data.train.categories.ids == (0, 1)
    record = data.train.records[0]
    assert record.size == (100, 200)
    np.testing.assert_allclose(record.boxes, [[80, 30, 120, 70]], atol=1e-4)
    assert record.labels.tolist() == [1]
    assert data.val.records[0].labels.tolist() == []  # no label file: no objects
    assert data.notes == ()


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ("", []),
        ("\n\n1 0.5 0.5 0.2 0.4\n\n", [[80, 30, 120, 70]]),
        ("\ufeff1 0.5 0.5 0.2 0.4", [[80, 30, 120, 70]]),
        ("1\t0.5  0.5 2e-1 0.4\r\n", [[80, 30, 120, 70]]),
        ("1.0 0.5 0.5 0.2 0.4", [[80, 30, 120, 70]]),
        ("1 0.5 0.5 0.2 0.4\n" * 3, [[80, 30, 120, 70]]),
        ("0 0.1 0.2 0.5 0.2 0.3 0.6", [[20, 20, 100, 60]]),  # a triangle
    ],
)
def test_valid_rows_are_read(folder: Path, rows: str, expected: list[list[float]]) -> None:
    write(folder, rows)
    np.testing.assert_allclose(load_dataset(folder).train.records[0].boxes, np.reshape(expected, (-1, 4)), atol=1e-4)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("5 0.5 0.5 0.2 0.4", "line 1: class 5 is not in data.yaml"),
        ("-1 0.5 0.5 0.2 0.4", "class -1"),
        ("0.5 0.5 0.5 0.2 0.4", "found class 0.5"),
        ("cat 0.5 0.5 0.2 0.4", "expected numbers"),
        ("1,0.5,0.5,0.2,0.4", "expected numbers"),
        ("0.5 0.5 0.2 0.4", "found 4 columns"),
        ("1 0.5 0.5 0.2 0.4 0.9", "found 6 columns"),
        ("1 0.5 nan 0.2 0.4", "finite"),
        ("1 0.5 0.5 -0.2 0.4", "no negative size"),
        ("1 100 50 40 40", "are these pixels"),
        ("1 0.5 0.5 0.2 0.4\n1 1.05 0.5 0.3 0.4", "line 2: found the centre 1.05 0.5"),
        ("1 0.5 0.5 1.2 0.4", "the size 1.2 0.4"),
        ("0 1.1 0.2 1.5 0.2 1.3 0.6", "the polygon reaches"),
    ],
)
def test_malformed_rows_are_rejected(folder: Path, rows: str, message: str) -> None:
    write(folder, rows)
    with pytest.raises(DatasetError, match=message) as refused:
        load_dataset(folder)
    assert str(folder / "train" / "labels" / "a.b.txt") in str(refused.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "found no settings"),
        ("train: train/images\nnc: 2", "names: found None"),
        ("train: train/images\nnames: [a, [b]]", r"names: found \['b'\] for class 1"),
        ("train: train/images\nnc: 5\nnames: [a, b]", "nc is 5, but names has 2"),
        ("train: nowhere\nnames: [a, b]", "no such folder 'nowhere'"),
        ("train: 5\nnames: [a, b]", "no such folder '5'"),
        ("names: !!python/object/apply:os.getcwd []", "not readable as YAML"),
        ("train:\ttrain\n\tval: x", "not readable as YAML"),
    ],
)
def test_malformed_data_yaml_is_rejected(folder: Path, content: str, message: str) -> None:
    (folder / "data.yaml").write_text(content)
    with pytest.raises(DatasetError, match=message):
        load_dataset(folder)


@pytest.mark.parametrize("key", ["names", "train"])
def test_nested_yaml_aliases_are_not_expanded(folder: Path, key: str) -> None:
    names = "abcdefghij"
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    lines += [f"{one}: &{one} [{', '.join([f'*{before}'] * 9)}]" for before, one in pairwise(names)]
    others = {"names": "[cat, dog]", "train": "train/images", key: "[*j, *j]"}  # 9 ** 10 names, or 3.5 GB of them
    (folder / "data.yaml").write_text("\n".join([*lines, *(f"{name}: {value}" for name, value in others.items())]))
    with pytest.raises(DatasetError, match="its aliases stand for too many values") as refused:
        load_dataset(folder)
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize("place", ["lists/train.txt", "train/images/a.b.jpg"])
def test_list_that_is_not_text_is_rejected(folder: Path, place: str) -> None:
    (folder / "lists").mkdir()
    (folder / "lists" / "train.txt").write_bytes(b"caf\xe9.jpg")
    (folder / "data.yaml").write_text(f"train: {place}\nnames: [cat, dog]\n")
    with pytest.raises(DatasetError, match=r"not readable as a list of images"):
        load_dataset(folder)


@pytest.mark.parametrize("points", [2, 3])
def test_key_points_after_the_box_are_ignored(folder: Path, points: int) -> None:
    head = (folder / "data.yaml").read_text()
    (folder / "data.yaml").write_text(f"{head}kpt_shape: [4, {points}]\n")
    write(folder, "1 0.5 0.5 0.2 0.4 " + " ".join(["0.1"] * 4 * points) + "\n0 0.1 0.2 0.5 0.2 0.3 0.6\n")
    np.testing.assert_allclose(
        load_dataset(folder).train.records[0].boxes, [[80, 30, 120, 70], [20, 20, 100, 60]], atol=1e-4
    )
    (folder / "data.yaml").write_text(f"{head}kpt_shape: many\n")
    with pytest.raises(DatasetError, match=r"kpt_shape: found 'many', expected \[NUMBER OF POINTS, 2 or 3\]"):
        load_dataset(folder)


def test_class_numbers_of_a_dict_are_kept(folder: Path) -> None:
    (folder / "data.yaml").write_text("train: train/images\nnames:\n  0: cat\n  7: dog\n")
    write(folder, "7 0.5 0.5 0.2 0.4")
    split = read_yolo(folder / "data.yaml", "train")
    assert split is not None
    assert split.categories.ids == (0, 7)
    assert split.records[0].labels.tolist() == [1]


def test_paths_of_another_machine_are_resolved(folder: Path) -> None:
    (folder / "data.yaml").write_text(
        "train: /content/pets-3/train/images\nval: C:\\pets\\valid\\images\nnames: [cat, dog]\n"
    )
    data = load_dataset(folder / "data.yaml")
    assert data.train.records[0].path == folder / "train" / "images" / "a.b.jpg"
    assert data.val.records[0].path.is_relative_to(folder / "valid")


def test_list_of_images_may_not_lead_out_of_the_folder(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    outside = tmp_path_factory.mktemp("outside") / "secret.jpg"
    Image.new("RGB", (9, 9)).save(outside)
    (folder / "list.txt").write_text(f"{outside}\n")
    (folder / "data.yaml").write_text("train: list.txt\nnames: [cat, dog]\n")
    with pytest.raises(DatasetError, match="no such image"):
        load_dataset(folder)
    (folder / "train" / "images" / "link.jpg").symlink_to(outside)
    (folder / "list.txt").write_text("train/images/link.jpg\n")
    with pytest.raises(DatasetError, match="no such image"):
        load_dataset(folder)


def test_validation_split_is_set_aside_with_a_note(folder: Path) -> None:
    shutil.rmtree(folder / "valid")
    for number in range(9):
        Image.new("RGB", (20, 20)).save(folder / "train" / "images" / f"{number}.png")
    (folder / "data.yaml").write_text("train: train/images\nnames: [cat, dog]\n")
    data = load_dataset(folder, seed=1)
    train, val = ({record.path for record in split.records} for split in (data.train, data.val))
    assert (len(train), len(val)) == (8, 2)
    assert not train & val
    assert "2 of 10 images were set aside" in data.notes[0]
    again = load_dataset(folder, seed=1)
    assert {record.path for record in again.val.records} == val


def test_aquarium_is_read(shared: Path) -> None:
    data = load_dataset(shared / "data" / "aquarium-yolo")
    assert data.test is not None
    splits = (data.train, data.val, data.test)
    assert [len(split.records) for split in splits] == [74, 23, 17]
    assert [sum(len(record.labels) for record in split.records) for split in splits] == [497, 209, 144]
    assert len(data.train.categories) == 7
