"""Layouts of COCO annotations as the field's tools write them; file names of other machines; values as text."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import detrkit
from detrkit.data.convert import convert_dataset
from detrkit.data.formats.locate import DatasetFiles, ImageFinder, path_parts, subset_of
from detrkit.data.splits import load_dataset
from detrkit.errors import DatasetError
from tests.data.layouts import BOX, coco_document, put_coco, put_images, put_text
from tests.datasets import write_panoptic

TRAIN, VAL = ["a.jpg", "b.jpg", "c.jpg"], ["a.jpg", "b.jpg"]  # the same names in both: folders tell them apart


def divided(images: str, annotations: str, train: str = "train", val: str = "val") -> Callable[[Path], None]:
    """A layout with one JSON per split; ``{}`` is the split's name."""

    def make(root: Path) -> None:
        for split, names in ((train, TRAIN), (val, VAL)):
            put_images(root / images.format(split), names)
            put_coco(root / annotations.format(split), names)

    return make


def whole(images: str, annotations: str, prefix: str = "") -> Callable[[Path], None]:
    """A layout with a single JSON."""

    def make(root: Path) -> None:
        put_images(root / images, TRAIN)
        put_coco(root / annotations, [prefix + name for name in TRAIN])

    return make


DIVIDED = {
    "COCO 2017": divided("{}", "annotations/instances_{}.json", "train2017", "val2017"),
    "D-FINE, Datumaro, CVAT": divided("images/{}", "annotations/instances_{}.json"),
    "Ultralytics COCO": divided("images/{}", "annotations/instances_{}.json", "train2017", "val2017"),
    "CVAT subsets": divided("images/{}", "annotations/instances_{}.json", "Train", "Validation"),
    "Roboflow": divided("{}", "{}/_annotations.coco.json", "train", "valid"),
    "Roboflow in capitals": divided("{}", "{}/_annotations.coco.json", "Train", "VALID"),
    "FiftyOne per split": divided("{}/data", "{}/labels.json"),
    "Kaggle, JSON next to the folders": divided("{}", "{}.json"),
    "Kaggle, doubled folders": divided("{0}/{0}", "annotations/{}.json"),
    "Kaggle, folders with suffixes": divided("{}_images", "{}_annotations.json"),
    "mmdetection": divided("{}/images", "{}/annotations.json", "train", "valid"),
    "Annotations in capitals": divided("Images/{}", "Annotations/Instances_{}.json", "TRAIN", "VAL"),
}
WHOLE = {
    "CVAT task": whole("images/default", "annotations/instances_default.json"),
    "CVAT before images/default": whole("images", "annotations/instances_default.json"),
    "FiftyOne": whole("data", "labels.json"),
    "Label Studio": whole("images", "result.json", "images/"),
    "Label Studio on Windows": whole("images", "result.json", "images\\"),
    "Label Studio, files of the server": whole("images", "result.json", "/data/local-files/?d=pictures/"),
    "labelme2coco": whole("JPEGImages", "annotations.json", "JPEGImages/"),
    "VIA": whole("", "via_export_coco.json"),
    "absolute path of Windows": whole("images", "train.json", "C:\\Users\\me\\photos\\images\\"),
    "absolute path of Colab": whole("pics", "annotations/coco.json", "/content/photos/pics/"),
    "relative to the JSON": whole("images", "annotations/all.json", "../images/"),
    "a folder of any name": whole("holiday/in june", "labels.json"),
    "a folder in an archive": whole("photos/images", "photos/annotations/instances_default.json"),
}


@pytest.mark.parametrize("layout", DIVIDED)
def test_layout_with_splits_is_read(tmp_path: Path, layout: str) -> None:
    DIVIDED[layout](tmp_path)
    data = load_dataset(tmp_path)
    assert (data.format, len(data.train), len(data.val), data.findings, data.notes) == ("coco", 3, 2, (), ())
    train, val = ({record.path for record in split.records} for split in (data.train, data.val))
    assert not train & val
    assert data.train.records[0].boxes.tolist() == [list(BOX)]


@pytest.mark.parametrize("layout", WHOLE)
def test_layout_without_splits_is_read(tmp_path: Path, layout: str) -> None:
    WHOLE[layout](tmp_path)
    data = load_dataset(tmp_path)
    assert (data.format, len(data.train) + len(data.val), data.findings) == ("coco", 3, ())
    assert "no validation split" in data.notes[0]


def test_single_json_finds_its_images_wherever_it_is_passed_from(tmp_path: Path) -> None:
    DIVIDED["D-FINE, Datumaro, CVAT"](tmp_path)
    data = load_dataset(tmp_path / "annotations" / "instances_val.json")
    assert {record.path.parent for record in data.train.records} == {tmp_path / "images" / "val"}


def test_images_next_to_the_annotations_come_before_those_of_a_similar_folder(tmp_path: Path) -> None:
    own, other = tmp_path / "test_b", tmp_path / "test_a"  # both named as a split, and sorted the other way round
    put_images(own / "images", TRAIN)
    put_images(other / "photos", TRAIN)
    put_coco(own / "instances.json", TRAIN)
    for split in load_dataset(own / "instances.json").splits.values():
        assert {record.path.parent for record in split.records} == {own / "images"}


def test_capitals_of_file_names_do_not_matter(tmp_path: Path) -> None:
    put_images(tmp_path / "images", ["café.JPG", "b.jpg", "B.jpg"])
    put_coco(tmp_path / "labels.json", ["Cafe\u0301.jpg", "b.jpg", "B.jpg"])  # an accent encoded as on macOS
    data = load_dataset(tmp_path)
    names = {record.path.name for split in data.splits.values() for record in split.records}
    assert names == {"café.JPG", "b.jpg", "B.jpg"}


def test_two_names_are_not_one_file(tmp_path: Path) -> None:
    put_images(tmp_path / "images", ["1.jpg"])
    put_coco(tmp_path / "labels.json", ["left/1.jpg", "right/1.jpg"])
    with pytest.raises(DatasetError, match=r"images\[1\]: no such image 'right/1\.jpg'"):
        load_dataset(tmp_path)


@pytest.mark.parametrize("name", ["../secret.jpg", "..\\secret.jpg", "/{}/secret.jpg", "images/../../secret.jpg"])
def test_file_names_do_not_lead_out_of_the_folder(tmp_path: Path, name: str) -> None:
    put_images(tmp_path, ["secret.jpg"])
    put_images(tmp_path / "data" / "images", ["a.jpg"])
    put_coco(tmp_path / "data" / "labels.json", ["a.jpg", name.format(tmp_path)])
    with pytest.raises(DatasetError, match=r"images\[1\]: (file_name|no such image)"):
        load_dataset(tmp_path / "data")


def test_missing_images_of_one_split_are_not_taken_from_another(tmp_path: Path) -> None:
    DIVIDED["COCO 2017"](tmp_path)
    (tmp_path / "val2017" / "b.jpg").unlink()
    with pytest.raises(DatasetError, match=r"instances_val2017\.json: images\[1\]: no such image 'b\.jpg'"):
        load_dataset(tmp_path)


def test_split_without_images_is_a_finding(tmp_path: Path) -> None:
    DIVIDED["Roboflow"](tmp_path)
    put_coco(tmp_path / "test" / "_annotations.coco.json", [])
    data = load_dataset(tmp_path)
    assert [len(split) for split in (data.train, data.val, data.test)] == [3, 2, 0]
    assert [finding.title for finding in data.findings] == ["splits without images"]
    put_coco(tmp_path / "valid" / "_annotations.coco.json", [])
    data = load_dataset(tmp_path)
    assert (len(data.train), len(data.val)) == (2, 1)
    assert len(data.findings[0].locations) == 2


def test_everything_at_fault_is_reported(tmp_path: Path) -> None:
    put_coco(tmp_path / "labels.json", TRAIN)
    errors: list[DatasetError] = []
    data = load_dataset(tmp_path, on_error=errors.append)
    assert (len(errors), len(data.train)) == (3, 0)


def test_images_that_are_not_annotated_are_counted(tmp_path: Path) -> None:
    WHOLE["FiftyOne"](tmp_path)
    put_images(tmp_path / "data", ["x.png", "y.webp"])
    (finding,) = load_dataset(tmp_path).findings
    assert (finding.severity, len(finding.locations)) == ("note", 2)


def test_image_that_cannot_be_decoded_is_left_out(tmp_path: Path) -> None:
    put_images(tmp_path / "data", TRAIN)
    put_images(tmp_path / "data", ["photo"], "PNG")
    (tmp_path / "data" / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(200))
    put_coco(tmp_path / "labels.json", [*TRAIN, "phone.heic", "photo"])
    data = load_dataset(tmp_path)
    assert len(data.train) + len(data.val) == 4
    (finding,) = data.findings
    assert finding.title == "files among the images that cannot be decoded"


def test_subsets_without_the_name_of_a_split_are_joined(tmp_path: Path) -> None:
    divided("images/{}", "annotations/instances_{}.json", "monday", "tuesday")(tmp_path)
    data = load_dataset(tmp_path)
    records = [record for split in data.splits.values() for record in split.records]
    assert sorted(record.image_id for record in records) == [1, 2, 3, 4, 5]
    put_coco(tmp_path / "annotations" / "instances_train.json", [])
    put_text(tmp_path / "annotations" / "captions_train.json", "{}")
    with pytest.raises(DatasetError, match="found no images"):
        load_dataset(tmp_path)


def test_two_files_of_a_split_are_a_sentence(tmp_path: Path) -> None:
    DIVIDED["COCO 2017"](tmp_path)
    put_coco(tmp_path / "annotations" / "instances_train2014.json", TRAIN)
    with pytest.raises(DatasetError, match=r"found 2 files for train \(instances_train2014\.json, instances_train2017"):
        load_dataset(tmp_path)


def changed(change: Callable[[dict[str, Any]], None], names: Sequence[str] = TRAIN) -> dict[str, Any]:
    document = coco_document(names)
    change(document)
    return document


def each(key: str, field: str, value: Callable[[Any], Any]) -> Callable[[dict[str, Any]], None]:
    def change(document: dict[str, Any]) -> None:
        for entry in document[key]:
            entry[field] = value(entry.get(field))

    return change


@pytest.mark.parametrize(
    "change",
    [
        each("images", "id", str),
        each("annotations", "image_id", float),
        each("annotations", "category_id", lambda value: f"{value}.0"),
        each("categories", "id", float),
        each("images", "width", float),
        each("annotations", "bbox", lambda box: [str(value) for value in box]),
        each("annotations", "iscrowd", lambda _: "0"),
        each("annotations", "iscrowd", lambda _: False),
        each("annotations", "iscrowd", lambda _: "False"),
        each("annotations", "iscrowd", lambda _: 0.0),
        each("annotations", "iscrowd", lambda _: None),
        each("categories", "name", lambda _: "fish"),
    ],
)
def test_values_are_read_as_meant(tmp_path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    put_images(tmp_path, TRAIN)
    put_text(tmp_path / "labels.json", json.dumps(changed(change)))
    data = load_dataset(tmp_path)
    assert (data.train.categories.ids, data.train.categories.names, data.findings) == ((3,), ("fish",), ())
    records = [record for split in data.splits.values() for record in split.records]
    assert sorted(record.image_id for record in records) == [1, 2, 3]
    assert all(record.boxes.tolist() == [list(BOX)] and not record.is_crowd.any() for record in records)


@pytest.mark.parametrize("value", [1, "1", True, "true", 1.0])
def test_crowds_are_read_as_meant(tmp_path: Path, value: object) -> None:
    put_images(tmp_path, TRAIN)
    put_coco(tmp_path / "labels.json", TRAIN, iscrowd=value)
    assert load_dataset(tmp_path).train.records.arrays.is_crowd.all()


@pytest.mark.parametrize(
    ("changes", "title"),
    [
        ({"iscrowd": float("nan")}, "crowd flags without a value"),
        ({"area": -16}, "areas that are negative or no numbers"),
        ({"area": float("nan")}, "areas that are negative or no numbers"),
    ],
)
def test_values_that_mean_nothing_are_findings(tmp_path: Path, changes: dict[str, object], title: str) -> None:
    put_images(tmp_path, TRAIN)
    put_coco(tmp_path / "labels.json", TRAIN, **changes)
    report = detrkit.examine(tmp_path, workers=0, cache=False)
    (finding,) = (one for one in report.findings if one.title == title)
    assert (finding.severity, len(finding.locations)) == ("warning", 3)
    assert sum(one.objects["train"] + one.objects["val"] for one in report.classes) == 3


@pytest.mark.parametrize("value", ["maybe", 2, -1, [0]])
def test_crowds_of_another_value_are_faults(tmp_path: Path, value: object) -> None:
    put_images(tmp_path, TRAIN)
    put_coco(tmp_path / "labels.json", TRAIN, iscrowd=value)
    with pytest.raises(DatasetError, match=r"annotations\[0\] \(id 1\)\.iscrowd: found .*, expected 0 or 1"):
        load_dataset(tmp_path)


def test_image_ids_of_text_are_numbered(tmp_path: Path) -> None:
    put_images(tmp_path, TRAIN)
    document = changed(each("images", "id", lambda number: f"img-{number}"))
    each("annotations", "image_id", lambda number: f"img-{number}")(document)
    put_text(tmp_path / "labels.json", json.dumps(document))
    data = load_dataset(tmp_path)
    assert "image ids of labels.json are text, such as 'img-1'" in data.notes[0]
    assert [len(record.labels) for record in data.train.records] == [1, 1]


@pytest.mark.parametrize(("name", "expected"), [(True, "true"), (1, "1"), (2.5, "2.5")])
def test_class_names_that_are_no_text_are_kept(tmp_path: Path, name: object, expected: str) -> None:
    put_images(tmp_path, TRAIN)
    put_text(tmp_path / "labels.json", json.dumps(changed(each("categories", "name", lambda _: name))))
    assert load_dataset(tmp_path).train.categories.names == (expected,)


def test_sizes_that_are_missing_are_read_from_the_images(tmp_path: Path) -> None:
    put_images(tmp_path, TRAIN)
    document = changed(each("images", "width", lambda _: None))
    each("images", "height", lambda _: 0)(document)
    put_text(tmp_path / "labels.json", json.dumps(document))
    assert load_dataset(tmp_path).train.records[0].size == (8, 12)


@pytest.mark.parametrize(
    ("images", "pngs"),
    [
        ("images/{}", "annotations/panoptic_{}"),
        ("Images/{}", "Masks/{}"),
        ("{}", "panoptic/{}"),
        ("{}/images", "{}/png"),
    ],
)
def test_panoptic_layout_is_read(tmp_path: Path, images: str, pngs: str) -> None:
    original = write_panoptic(tmp_path / "original")
    root = tmp_path / "other"
    for split in ("train2017", "val2017"):
        file = original / "annotations" / f"panoptic_{split}.json"
        document = json.loads(file.read_text())
        for key in ("images", "annotations"):
            for entry in document[key]:
                entry["file_name"] = f"C:\\coco\\{split}\\{entry['file_name']}"
        put_text(root / "annotations" / file.name, json.dumps(document))
        shutil.copytree(original / split, root / images.format(split))
        shutil.copytree(file.with_suffix(""), root / pngs.format(split))
    data = load_dataset(root, masks=True)
    assert (data.format, len(data.train), len(data.val), data.findings) == ("panoptic", 2, 2, ())
    for record in data.val.records:
        assert record.mask_file is not None
        assert record.mask_file.parent == root / pngs.format("val2017")
        assert record.path.parent == root / images.format("val2017")


def test_layouts_are_converted(tmp_path: Path) -> None:
    DIVIDED["Kaggle, folders with suffixes"](tmp_path / "kaggle")
    for format in ("coco", "yolo", "voc"):
        data = convert_dataset(tmp_path / "kaggle", tmp_path / format, format).dataset
        assert (len(data.train), len(data.val), data.train.categories.ids) == (3, 2, (3,))


@pytest.mark.parametrize(
    ("name", "subset"),
    [
        ("instances_train2017", "train"),
        ("VALID", "val"),
        ("obj_train_data", "train"),
        ("trainImages", "train"),
        ("image_info_test-dev2017", "test"),
        ("trainval", "trainval"),
        ("contest", None),
        ("latest", None),
        ("restrained", None),
        ("evaluation", None),
    ],
)
def test_names_say_the_subset(name: str, subset: str | None) -> None:
    assert subset_of(name) == subset


def test_paths_of_any_system_are_divided() -> None:
    assert path_parts("C:\\a\\b.jpg") == path_parts("/a/b.jpg") == path_parts("../a/./b.jpg") == ("a", "b.jpg")
    assert path_parts("..") == path_parts("") == path_parts("\\") == ()


def test_search_does_not_guess_between_several_files(tmp_path: Path) -> None:
    for folder in ("one/deep", "two/deep"):
        put_images(tmp_path / folder, ["a.jpg"])
    finder = ImageFinder(DatasetFiles.below(tmp_path), tmp_path)
    finder.search_below(tmp_path, ["a.jpg"])
    assert finder.find("a.jpg") is None
