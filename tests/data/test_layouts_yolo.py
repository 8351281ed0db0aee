"""Layouts of YOLO labels as the field's tools write them; class names that YAML changes; what is left out."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detrkit.data.convert import convert_dataset
from detrkit.data.images import has_image_content
from detrkit.data.splits import load_dataset
from detrkit.errors import DatasetError
from tests.data.layouts import YOLO_ROW, coco_document, put_images, put_labels, put_text

NAMES = ["a.jpg", "b.jpg", "c.jpg"]


def put(images: Path, labels: Path, names: list[str] = NAMES) -> None:
    put_images(images, names)
    put_labels(labels, names)


def label_studio(root: Path) -> None:
    put(root / "images", root / "labels")
    put_text(root / "classes.txt", "fish\n")
    put_text(
        root / "notes.json", '{"categories": [{"id": 0, "name": "fish"}], "info": {"contributor": "Label Studio"}}'
    )


def label_img(root: Path) -> None:
    put(root, root)
    put_text(root / "classes.txt", "fish\n")


def fiftyone_v4(root: Path) -> None:
    put(root / "data", root / "data")
    put_text(root / "obj.names", "fish\n")
    put_text(root / "images.txt", "".join(f"data/{name}\n" for name in NAMES))


def cvat_darknet(root: Path) -> None:
    put(root / "obj_train_data", root / "obj_train_data")
    put_text(root / "obj.names", "fish\n")
    put_text(root / "obj.data", "classes = 1\ntrain = data/train.txt\nnames = data/obj.names\nbackup = backup/\n")
    put_text(root / "train.txt", "".join(f"data/obj_train_data/{name}\n" for name in NAMES))


def cvat_ultralytics(root: Path) -> None:
    put(root / "images" / "train", root / "labels" / "train")
    put_text(root / "data.yaml", "path: ./\ntrain: train.txt\nnames:\n  0: fish\n")
    put_text(root / "train.txt", "".join(f"data/images/train/{name}\n" for name in NAMES))


def roboflow_in_capitals(root: Path) -> None:
    put(root / "Train" / "Images", root / "Train" / "Labels")
    put_text(root / "Data.yaml", "train: ../train/images\nnc: 1\nnames: ['fish']\n")


def folders_with_suffixes(root: Path) -> None:
    put(root / "train_images", root / "train_labels")
    put_text(root / "data.yaml", "train: train_images\nnames: [fish]\n")


def names_next_to_the_labels(root: Path) -> None:
    put(root / "images", root / "labels")
    put_text(root / "labels" / "classes.txt", "fish\n")


def windows_list(root: Path) -> None:
    put(root / "images", root / "labels")
    put_text(root / "all.txt", "".join(f"C:\\photos\\images\\{name}\n" for name in NAMES))
    put_text(root / "data.yaml", "path: C:\\photos\ntrain: all.txt\nnames: [fish]\n")


LAYOUTS: list[Callable[[Path], None]] = [
    label_studio, label_img, fiftyone_v4, cvat_darknet, cvat_ultralytics, roboflow_in_capitals, folders_with_suffixes,
    names_next_to_the_labels, windows_list,
]  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_is_read(tmp_path: Path, layout: Callable[[Path], None]) -> None:
    layout(tmp_path)
    data = load_dataset(tmp_path)
    assert (data.format, data.train.categories.names, data.findings) == ("yolo", ("fish",), ())
    records = [record for split in data.splits.values() for record in split.records]
    assert len(records) == 3
    for record in records:
        np.testing.assert_allclose(record.boxes, [[4 - 2, 3 - 2, 4 + 2, 3 + 2]], atol=1e-4)


@pytest.mark.parametrize(("images", "labels"), [("images/{}", "labels/{}"), ("{}/images", "{}/labels"), ("{}", "{}")])
def test_splits_are_found_without_settings(tmp_path: Path, images: str, labels: str) -> None:
    for split in ("Train", "valid"):
        put(tmp_path / images.format(split), tmp_path / labels.format(split))
    put_text(tmp_path / "classes.txt", "fish\n")
    data = load_dataset(tmp_path)
    assert (len(data.train), len(data.val), data.findings) == (3, 3, ())
    assert all(len(record.labels) == 1 for split in data.splits.values() for record in split.records)


@pytest.mark.parametrize("how", ["absolute path", "absolute splits", "relative path", "sibling", "list of folders"])
def test_settings_may_name_folders_anywhere(tmp_path: Path, how: str) -> None:
    photos = tmp_path / "datasets" / "photos"
    put(photos / "images" / "train", photos / "labels" / "train")
    put(photos / "images" / "val", photos / "labels" / "val", ["x.jpg"])
    text = {
        "absolute path": f"path: {photos}\ntrain: images/train\nval: images/val\n",
        "absolute splits": f"train: {photos}/images/train\nval: {photos}/images/val\n",
        "relative path": "path: ../datasets/photos\ntrain: images/train\nval: images/val\n",
        "sibling": "train: ../datasets/photos/images/train\nval: ../datasets/photos/images/val\n",
        "list of folders": f"path: {photos}\ntrain:\n  - images/train\nval: [images/val]\n",
    }[how]
    put_text(tmp_path / "project" / "fish.yaml", text + "names:\n  0: fish\n")
    for path in (tmp_path / "project", tmp_path / "project" / "fish.yaml"):
        data = load_dataset(path)
        assert (len(data.train), len(data.val)) == (3, 1)
        assert [len(record.labels) for record in data.train.records] == [1, 1, 1]
        assert "fish.yaml names folders elsewhere" in data.notes[0]
        assert str(photos) in data.notes[0]


def test_names_in_a_list_stay_below_the_folder_that_the_settings_name(tmp_path: Path) -> None:
    put_images(tmp_path, ["secret.jpg"])
    put(tmp_path / "photos" / "images", tmp_path / "photos" / "labels")
    put_text(tmp_path / "photos" / "train.txt", f"images/a.jpg\n{tmp_path}/secret.jpg\n")
    put_text(tmp_path / "project" / "fish.yaml", f"path: {tmp_path}/photos\ntrain: train.txt\nnames: [fish]\n")
    with pytest.raises(DatasetError, match=r"train\.txt: no such image"):
        load_dataset(tmp_path / "project")


def test_every_image_that_can_be_decoded_is_read(tmp_path: Path) -> None:
    images = tmp_path / "images"
    kinds = {
        "b.jfif": "JPEG",
        "c.TIF": "TIFF",
        "d.img": "PNG",
        "e": "BMP",
        "f.ppm": "PPM",
        "g.jpe": "JPEG",
        "h.j2k": None,
    }
    for name, format in kinds.items():
        put_images(images, [name], format)
    put_labels(tmp_path / "labels", [*kinds, "photo.heic", "missing.jpg"])
    (images / "photo.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(200))
    (images / "Thumbs.db").write_bytes(b"\xd0\xcf")
    put_text(tmp_path / "data.yaml", "train: images\nnames: [fish]\n")
    data = load_dataset(tmp_path)
    assert len(data.train) + len(data.val) == len(kinds)
    found = {finding.title: [location.text for location in finding.locations] for finding in data.findings}
    assert found == {
        "files among the images that cannot be decoded": [str(images / "photo.heic")],
        "label files without an image": [str(tmp_path / "labels" / f"{stem}.txt") for stem in ("missing", "photo")],
    }
    copy = convert_dataset(tmp_path, tmp_path / "coco", "coco").dataset
    assert sum(len(split) for split in copy.splits.values()) == len(kinds)
    assert copy.train[0].image.shape == (3, 8, 12)


def test_images_without_labels_are_counted(tmp_path: Path) -> None:
    label_studio(tmp_path)
    put_images(tmp_path / "images", ["background.jpg"])
    (finding,) = load_dataset(tmp_path).findings
    assert (finding.severity, finding.title, len(finding.locations)) == ("note", "images without a label file", 1)


def test_content_of_an_image_is_recognised(tmp_path: Path) -> None:
    Image.new("RGB", (3, 2)).save(tmp_path / "a.bin", format="GIF")
    put_text(tmp_path / "text", "a picture")
    (tmp_path / "noise").write_bytes(bytes(range(256)))
    (tmp_path / "empty").write_bytes(b"")
    assert [has_image_content(tmp_path / name) for name in ("a.bin", "text", "noise", "empty")] == [True] + 3 * [False]


@pytest.mark.parametrize(
    ("row", "box"),
    [
        ("0 0.05 0.5 0.5 0.5", [-2.4, 2, 3.6, 6]),
        ("0 0.98 0.99 0.2 0.25", [10.56, 6.92, 12.96, 8.92]),
        ("0 0.5 0.5 1.0000001 1", [0, 0, 12, 8]),
        ("0 -0.1 0.25 1.1 0.25 1.1 0.75 -0.1 0.75", [-1.2, 2, 13.2, 6]),
    ],
)
def test_box_that_passes_the_edge_is_read_as_in_coco(tmp_path: Path, row: str, box: list[float]) -> None:
    put_images(tmp_path / "images", ["a.jpg"])
    put_labels(tmp_path / "labels", ["a.jpg"], f"{row}\n")
    put_text(tmp_path / "data.yaml", "train: images\nval: images\nnames: [fish]\n")
    train = load_dataset(tmp_path).train
    np.testing.assert_allclose(train.records[0].boxes, [box], atol=1e-4)
    usable = train[0].annotations.boxes
    assert usable.min() >= 0
    assert (usable[:, 2:] <= usable.new_tensor([12, 8])).all()


@pytest.mark.parametrize("style", ["flow", "block", "numbers"])
def test_class_names_are_read_as_written(tmp_path: Path, style: str) -> None:
    names = ["no", "yes", "on", "off", "1.0", "null", "~", "2024-01-01", "0x10", "1_000", "true", "NaN", "12:30", "1e3"]
    written = {
        "flow": f"names: [{', '.join(names)}]",
        "block": "names:\n" + "".join(f"- {name}\n" for name in names),
        "numbers": "names:\n" + "".join(f"  {number}: {name}\n" for number, name in enumerate(names)),
    }[style]
    put(tmp_path / "images", tmp_path / "labels")
    put_text(tmp_path / "data.yaml", f"train: images\nval: null\nnc: {len(names)}\n{written}\n")
    assert load_dataset(tmp_path).train.categories.names == tuple(names)


@pytest.mark.parametrize("missing", ["test", "val and test", "empty test"])
def test_split_without_images_is_a_finding(tmp_path: Path, missing: str) -> None:
    for split in ("train", "valid") if missing != "val and test" else ("train",):
        put(tmp_path / split / "images", tmp_path / split / "labels")
    if missing == "empty test":
        (tmp_path / "test" / "images").mkdir(parents=True)
    put_text(
        tmp_path / "data.yaml", "train: ../train/images\nval: ../valid/images\ntest: ../test/images\nnames: [fish]\n"
    )
    data = load_dataset(tmp_path)
    (finding,) = data.findings
    assert (finding.title, len(finding.locations)) == ("splits without images", 2 if missing == "val and test" else 1)
    assert (len(data.train), len(data.test)) == (2 if missing == "val and test" else 3, 0)


@pytest.mark.parametrize("ids", [(1, 2), (3, 17), (0, 1), (-4, 2**40)])
def test_written_classes_count_from_0_and_ids_return(tmp_path: Path, ids: tuple[int, int]) -> None:
    document = coco_document(NAMES)
    document["categories"] = [{"id": ids[0], "name": "fish"}, {"id": ids[1], "name": "no"}]
    for entry, category in zip(document["annotations"], (ids[0], ids[1], ids[1]), strict=True):
        entry["category_id"] = category
    put_images(tmp_path / "coco" / "train", NAMES)
    put_text(tmp_path / "coco" / "annotations" / "instances_train.json", json.dumps(document))
    original = load_dataset(tmp_path / "coco")
    result = convert_dataset(tmp_path / "coco", tmp_path / "yolo", "yolo")
    rows = "".join(path.read_text() for path in sorted((tmp_path / "yolo").rglob("labels/*.txt")))
    assert sorted(row.split()[0] for row in rows.splitlines()) == ["0", "1", "1"]
    assert "nc: 2" in (tmp_path / "yolo" / "data.yaml").read_text()
    back = load_dataset(tmp_path / "yolo")
    assert back.train.categories == original.train.categories == result.dataset.train.categories
    for before, after in zip(original.train.records, back.train.records, strict=True):
        assert before.labels.tolist() == after.labels.tolist()
    categories = json.loads((tmp_path / "yolo" / "categories.json").read_text())
    assert [entry["id"] for entry in categories] == list(ids)


def test_written_ids_of_other_classes_are_ignored(tmp_path: Path) -> None:
    label_studio(tmp_path)
    put_text(tmp_path / "categories.json", '[{"id": 7, "name": "bird"}]')
    assert load_dataset(tmp_path).train.categories.ids == (0,)


def test_labels_without_class_names_are_a_sentence(tmp_path: Path) -> None:
    put(tmp_path / "images", tmp_path / "labels")
    assert YOLO_ROW.startswith("0 ")
    with pytest.raises(DatasetError, match=r"YOLO labels without the names of their classes.*classes\.txt"):
        load_dataset(tmp_path)
