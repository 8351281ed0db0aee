"""Conversion of datasets: round trips, name collisions, no overwriting."""

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from detrkit.cli import main
from detrkit.data.categories import Categories
from detrkit.data.convert import convert_dataset, write_dataset
from detrkit.data.dataset import Split
from detrkit.data.records import Record, Records, SplitName
from detrkit.data.splits import load_dataset
from detrkit.errors import DatasetError
from tests.datasets import write_coco

CATEGORIES = Categories((3, 7, 90), ("blood cell", "plättchen & co", "<star>"))
corner = st.floats(0, 60, width=32)
side = st.floats(0.5, 37, width=32)


@st.composite
def records(draw: Any, image: Path, image_id: int) -> Record:
    objects = draw(st.lists(st.tuples(corner, corner, side, side, st.integers(0, 2)), max_size=5, unique=True))
    return Record(
        image_id=image_id,
        path=image,
        size=(100, 97),
        boxes=np.array([(x, y, x + w, y + h) for x, y, w, h, _ in objects], dtype=np.float32).reshape(-1, 4),
        labels=np.array([label for *_, label in objects], dtype=np.int64),
        is_crowd=np.zeros(len(objects), dtype=bool),
    )


@settings(max_examples=15, deadline=None)
@given(st.data(), st.sampled_from(["coco", "yolo", "voc"]))
def test_ids_names_and_boxes_survive_every_format(data: st.DataObject, format: str) -> None:
    with tempfile.TemporaryDirectory() as place:
        image = Path(place) / "a.b.png"
        Image.new("RGB", (97, 100)).save(image)
        always = Record(
            1, image, (100, 97), np.ones((1, 4), np.float32) * [[1, 2, 9, 9]], np.array([0]), np.zeros(1, bool)
        )
        drawn = data.draw(records(image, 1))
        content = drawn if len(drawn.labels) else always
        other = Path(place) / "c.png"
        Image.new("RGB", (97, 100)).save(other)
        val = data.draw(records(other, 2))
        splits: dict[SplitName, Split] = {
            "train": Split(Records.of([content]), CATEGORIES, Path(place)),
            "val": Split(Records.of([val]), CATEGORIES, Path(place)),
        }
        assert write_dataset(splits, Path(place) / "out", format) == 0
        read = load_dataset(Path(place) / "out")
        assert read.format == format
        assert read.train.categories == CATEGORIES
        for before, after in ((content, read.train.records[0]), (val, read.val.records[0])):
            assert after.labels.tolist() == before.labels.tolist()
            np.testing.assert_allclose(after.boxes, before.boxes, atol=0.01)
            assert after.path.name == before.path.name


def test_images_of_the_same_name_are_renamed(tmp_path: Path) -> None:
    data = load_dataset(write_coco(tmp_path / "shapes"))
    for format in ("coco", "yolo", "voc"):
        write_dataset(
            {"train": data.train, "val": data.val}, tmp_path / format, format
        )  # both hold 1.png, 2.png, 3.png
        again = load_dataset(tmp_path / format)
        for before, after in ((data.train, again.train), (data.val, again.val)):
            for original, converted in zip(before.records, after.records, strict=True):
                assert converted.path.read_bytes() == original.path.read_bytes()
                assert converted.labels.tolist() == original.labels.tolist()


def test_crowds_are_kept_except_in_yolo(tmp_path: Path) -> None:
    image = tmp_path / "a.png"
    Image.new("RGB", (50, 50)).save(image)
    boxes = np.array([[1, 1, 20, 20], [5, 5, 30, 30]], np.float32)
    record = Record(1, image, (50, 50), boxes, np.array([0, 1]), np.array([True, False]))
    splits: dict[SplitName, Split] = {"train": Split(Records.of([record]), CATEGORIES, tmp_path)}
    for format, left_out in (("coco", 0), ("voc", 0), ("yolo", 1)):
        assert write_dataset(splits, tmp_path / format, format) == left_out  # type: ignore[arg-type]
        read = load_dataset(tmp_path / format).train.records[0]
        assert read.is_crowd.tolist() == ([False] if left_out else [True, False])


def test_segmentations_and_areas_are_converted(tmp_path: Path) -> None:
    folder = write_coco(tmp_path / "coco", 2, 2)
    triangle, runs = [[16.0, 16.0, 48.0, 16.0, 16.0, 48.0]], {"size": [64, 64], "counts": [0, 10, 4086]}
    for name in ("train2017", "val2017"):
        path = folder / "annotations" / f"instances_{name}.json"
        document = json.loads(path.read_text())
        for number, entry in enumerate(document["annotations"]):
            entry["segmentation"] = runs if number else triangle
        path.write_text(json.dumps(document))
    convert_dataset(folder, tmp_path / "copy", "coco")
    copied = json.loads((tmp_path / "copy" / "annotations" / "instances_train.json").read_text())["annotations"]
    assert copied[0]["segmentation"] == triangle
    assert copied[0]["area"] == pytest.approx(512, abs=32)
    assert copied[1]["area"] == 10
    assert load_dataset(tmp_path / "copy", masks=True).train.records.has_masks


def test_existing_folder_is_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shapes = write_coco(tmp_path / "shapes")
    for arguments in (
        ["convert-data", str(shapes), str(shapes), "--to", "yolo"],
        ["convert-data", str(shapes), str(tmp_path / "new"), "--to", "xml"],
    ):
        with pytest.raises(SystemExit) as left:
            main(arguments)
        assert left.value.code == 2
        assert capsys.readouterr().err.startswith("error: ")
    assert not (tmp_path / "new").exists()
    with pytest.raises(SystemExit) as left:
        main(["convert-data", str(shapes), str(tmp_path / "new"), "--to", "voc"])
    assert not left.value.code
    assert "voc, 3 classes, images: 4 train, 3 val" in " ".join(capsys.readouterr().out.split())


def test_malformed_categories_file_is_rejected(tmp_path: Path) -> None:
    data = load_dataset(write_coco(tmp_path / "shapes"))
    write_dataset({"train": data.train, "val": data.val}, tmp_path / "voc", "voc")
    (tmp_path / "voc" / "categories.json").write_text('[{"id": 1, "name": "circle"}]')
    with pytest.raises(DatasetError, match="is missing; add it"):
        load_dataset(tmp_path / "voc")
    (tmp_path / "voc" / "categories.json").write_text("[5]")
    with pytest.raises(DatasetError, match="expected a list of objects"):
        load_dataset(tmp_path / "voc")


@pytest.mark.parametrize("names", [("fish", " fish"), ("a\x01b", "c"), ("", "a"), ("fish \ud83d", "a")])
def test_ambiguous_class_names_are_rejected_for_voc_before_copying(tmp_path: Path, names: tuple[str, str]) -> None:
    image = tmp_path / "a.png"
    Image.new("RGB", (50, 50)).save(image)
    record = Record(1, image, (50, 50), np.ones((1, 4), np.float32), np.array([0]), np.array([False]))
    splits: dict[SplitName, Split] = {"train": Split(Records.of([record]), Categories((1, 2), names), tmp_path)}
    with pytest.raises(DatasetError, match="must be printable and unique"):
        write_dataset(splits, tmp_path / "voc", "voc")
    assert not (tmp_path / "voc").exists()


def test_boxes_are_clipped_for_yolo(tmp_path: Path) -> None:
    image = tmp_path / "a.png"
    Image.new("RGB", (50, 40)).save(image)
    box = np.array([[-30, 10, 70, 30]], np.float32)
    record = Record(1, image, (40, 50), box, np.array([0]), np.array([False]))
    splits: dict[SplitName, Split] = {"train": Split(Records.of([record]), CATEGORIES, tmp_path)}
    write_dataset(splits, tmp_path / "yolo", "yolo")
    np.testing.assert_allclose(load_dataset(tmp_path / "yolo").train.records[0].boxes, [[0, 10, 50, 30]], atol=1e-4)
