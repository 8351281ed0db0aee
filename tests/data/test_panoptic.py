"""COCO panoptic: layouts, boxes, crowds, malformed files."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from detrkit.data.categories import Categories
from detrkit.data.checks.examine import examine
from detrkit.data.checks.fix import fix_dataset
from detrkit.data.convert import write_dataset
from detrkit.data.dataset import DetectionDataset, usable_annotations
from detrkit.data.formats.lookup import find_record
from detrkit.data.segment_png import read_ids
from detrkit.data.splits import load_dataset
from detrkit.data.transforms.geometry import TrainTransform
from detrkit.errors import DatasetError
from tests.datasets import panoptic_document, write_coco, write_panoptic

JSON = Path("annotations", "panoptic_train2017.json")
PNG = Path("annotations", "panoptic_train2017", "1.png")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_panoptic(tmp_path / "segments")


def change(folder: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    document = json.loads((folder / JSON).read_text())
    edit(document)
    (folder / JSON).write_text(json.dumps(document))


def segments(document: dict[str, Any]) -> list[dict[str, Any]]:
    return document["annotations"][0]["segments_info"]


@pytest.mark.parametrize("layout", ["official", "flat", "single"])
def test_all_layouts_give_the_same_records(tmp_path: Path, layout: Any) -> None:
    read = load_dataset(write_panoptic(tmp_path / layout, layout))
    assert read.format == "panoptic"
    record = read.train.records[0]
    assert record.path.name == "1.jpg"
    assert record.mask_file is not None
    assert record.mask_file.name == "1.png"
    assert record.boxes.tolist() == [[0, 10, 30, 20], [5, 2, 15, 12], [29, 0, 30, 9], [0, 0, 10, 2]]
    assert record.labels.tolist() == [0, 2, 1, 1]
    assert record.is_crowd.tolist() == [False, False, False, True]


def test_single_json_is_recognized_by_its_content(folder: Path) -> None:
    assert load_dataset(folder / JSON).format == "panoptic"
    renamed = folder / "annotations" / "anything.json"
    renamed.write_text((folder / JSON).read_text())
    (folder / "annotations" / "anything").symlink_to(folder / JSON.with_suffix(""))
    (folder / "images").symlink_to(folder / "train2017")
    assert load_dataset(renamed).format == "panoptic"


def test_instances_are_preferred_unless_a_format_is_given(tmp_path: Path) -> None:
    root = write_coco(tmp_path / "both")
    write_panoptic(root)
    assert load_dataset(root).format == "coco"
    assert load_dataset(root, "panoptic").train.records.has_masks


@pytest.mark.parametrize("named", [JSON, Path()])
def test_segments_of_an_image_are_found_in_json_or_folder(folder: Path, named: Path) -> None:
    found = find_record(folder / "train2017" / "2.jpg", folder / named)
    assert found.records[0].image_id == 2
    assert len(DetectionDataset(found, masks=True)[0].annotations.labels) == 3


def test_isthing_of_categories_survives_json(folder: Path) -> None:
    categories = load_dataset(folder).train.categories
    assert categories == Categories((4, 7, 90), ("grass", "ant", "zebra"), (False, True, True))
    assert Categories.from_json(json.loads(json.dumps(categories.to_json()))) == categories
    older = [{"id": 1, "name": "cat"}]
    assert Categories.from_json(older).is_thing is None
    assert Categories.from_json(older).to_json() == older


def test_masks_come_from_the_png_without_crowds(folder: Path) -> None:
    sample = DetectionDataset(load_dataset(folder).train, masks=True)[0]
    _, ids = panoptic_document()
    found = sample.annotations
    assert found.labels.tolist() == [0, 2, 1]
    assert found.masks is not None
    assert found.masks.dtype == torch.bool
    for mask, number in zip(found.masks.numpy(), (70_000, 300, 5), strict=True):
        np.testing.assert_array_equal(mask, ids == number)
    assert found.boxes.tolist() == [[0, 10, 30, 20], [5, 2, 15, 12], [29, 0, 30, 9]]


def test_segment_of_one_pixel_width_survives_train_transforms(folder: Path) -> None:
    images = DetectionDataset(load_dataset(folder).train, TrainTransform(64, crop_probability=0), masks=True)
    torch.manual_seed(0)
    annotations = images[0].annotations
    assert annotations.labels.tolist() == [0, 2, 1]
    assert annotations.masks is not None
    assert annotations.masks.any(2).any(1).all()


def test_training_on_boxes_opens_no_png(folder: Path) -> None:
    for file in folder.glob("annotations/*/*.png"):
        file.write_bytes(b"not looked at")
    train = load_dataset(folder).train
    assert DetectionDataset(train)[0].annotations.masks is None
    with pytest.raises(DatasetError, match=r"1\.png: is not a PNG"):
        DetectionDataset(train, masks=True)[0]


def test_missing_boxes_are_computed_from_the_png(folder: Path) -> None:
    expected = load_dataset(folder).train.records[0].boxes
    change(folder, lambda d: [segments(d)[0].pop("bbox"), segments(d)[2].update(bbox=[1, 2])])
    np.testing.assert_array_equal(load_dataset(folder).train.records[0].boxes, expected)


def test_boxes_of_masks_replace_wrong_boxes(folder: Path) -> None:
    change(folder, lambda d: segments(d)[1].update(bbox=[0, 0, 30, 20]))
    train = load_dataset(folder).train
    assert usable_annotations(train.records[0], (20, 30)).boxes[1].tolist() == [0, 0, 30, 20]
    assert DetectionDataset(train, masks=True)[0].annotations.boxes[1].tolist() == [5, 2, 15, 12]


MALFORMED: dict[str, Callable[[dict[str, Any]], Any]] = {
    r"segment id 300 occurs twice": lambda d: segments(d).append(segments(d)[1]),
    r"category_id 5 is not in 'categories'": lambda d: segments(d)[0].update(category_id=5),
    r"segments_info\[0\]\.id: found 0, expected 1 to 16777215": lambda d: segments(d)[0].update(id=0),
    r"segments_info\[0\]\.id: found 16777216": lambda d: segments(d)[0].update(id=2**24),
    r"segments_info\[0\]\.id: found 'a', expected an integer": lambda d: segments(d)[0].update(id="a"),
    r"segments_info\[0\]: found 3, expected an object": lambda d: segments(d).insert(0, 3),
    r"expected 'image_id', 'file_name' and 'segments_info'": lambda d: d["annotations"][0].pop("segments_info"),
    r"file_name '\.\./\.\./x\.png' leads out of": lambda d: d["annotations"][0].update(file_name="../../x.png"),
    r"no such PNG": lambda d: d["annotations"][0].update(file_name="other.png"),
    r"image id 1 is annotated twice": lambda d: d["annotations"].append(d["annotations"][0]),
    r"image id 2 has no PNG of segments": lambda d: d["annotations"].pop(),
    r"image ids have annotations and no entry in 'images', first 9": lambda d: d["annotations"].append(
        {**d["annotations"][0], "image_id": 9}
    ),
    r"category 4: isthing: found 'both', expected 0 or 1": lambda d: d["categories"][1].update(isthing="both"),
    r"category 4 has isthing None": lambda d: d["categories"][1].pop("isthing"),
    r"lists 'images', 'annotations' and 'categories'": lambda d: d.pop("categories"),
}


@pytest.mark.parametrize("message", MALFORMED)
def test_malformed_file_is_rejected_with_its_location(folder: Path, message: str) -> None:
    change(folder, MALFORMED[message])
    with pytest.raises(DatasetError, match=message) as caught:
        load_dataset(folder)
    assert "\n" not in str(caught.value)


def write_png(path: Path, kind: str) -> None:
    if kind == "16":
        import struct
        import zlib

        def chunk(name: bytes, content: bytes) -> bytes:
            return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

        header = struct.pack(">IIBBBBB", 30, 20, 16, 2, 0, 0, 0)
        rows = zlib.compress((b"\0" + b"\0" * 180) * 20)
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b""))
    elif kind == "jpeg":
        Image.new("RGB", (30, 20)).save(path, "JPEG")
    elif kind == "cut off":
        path.write_bytes(path.read_bytes()[:60])
    elif kind == "small":
        Image.new("RGB", (15, 10)).save(path)
    elif kind == "long chunk":
        Image.new("RGB", (30, 20)).save(path)
        content = path.read_bytes()
        start = content.index(b"IDAT") - 4
        path.write_bytes(content[:start] + b"\xfe" + content[start + 1 :])
    else:
        Image.new(kind, (30, 20)).save(path)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("L", "is a gray PNG of 8 bits a channel; expected an RGB PNG of 8 bits"),
        ("P", "is a palette PNG"),
        ("I;16", "gray PNG of 16 bits a channel"),
        ("16", "color PNG of 16 bits a channel"),
        ("jpeg", "is not a PNG"),
        ("cut off", "cannot be read as an image"),
        ("long chunk", "the PNG has [0-9]+ bytes, expected 42[0-9]+ or more"),
        ("small", "has 15 x 10 pixels, its image 30 x 20"),
    ],
)
def test_png_without_ids_is_rejected_when_masks_are_read(folder: Path, kind: str, message: str) -> None:
    write_png(folder / PNG, kind)
    images = DetectionDataset(load_dataset(folder).train, masks=True)
    with pytest.raises(DatasetError, match=message) as caught:
        images[0]
    assert "\n" not in str(caught.value)
    unreadable = [one for one in examine(folder, workers=0, cache=False).findings if "PNGs of segments" in one.title]
    assert [one.severity for one in unreadable] == ["error"]
    assert re.search(message, str(unreadable[0].locations[0]))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
def test_pipe_in_the_place_of_a_png_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "1.png")
    with pytest.raises(DatasetError, match="is a pipe or device"):
        read_ids(tmp_path / "1.png", (20, 30))


def test_name_that_no_file_system_can_have_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="cannot be read"):
        read_ids(tmp_path / "1\ud800.png", (20, 30))


def test_alpha_is_ignored(folder: Path) -> None:
    Image.open(folder / PNG).convert("RGBA").save(folder / PNG)
    assert len(DetectionDataset(load_dataset(folder).train, masks=True)[0].annotations.labels) == 3


def test_differences_between_json_and_png_are_found(folder: Path) -> None:
    assert examine(folder, workers=0, cache=False).num_errors == 0
    change(
        folder,
        lambda d: [
            segments(d).pop(0),
            segments(d).append({**segments(d)[0], "id": 12, "bbox": [1, 1, 3, 3]}),
            segments(d)[0].update(bbox=[0, 0, 5, 5]),
        ],
    )
    found = {
        one.title: [str(each) for each in one.locations] for one in examine(folder, workers=0, cache=False).findings
    }
    assert found["PNGs with ids that segments_info does not contain"] == [f"{folder / PNG}: id 70000"]
    assert found["segments without pixels in the PNG"] == [f"{folder / PNG}: id 12"]
    assert found["segments whose box does not match their pixels"] == [f"{folder / PNG}: id 300"]
    # the segment without a pixel is left out of what masks are learned from, and unnamed pixels belong to nothing
    assert DetectionDataset(load_dataset(folder).train, masks=True)[0].annotations.labels.tolist() == [2, 1]


def test_segments_survive_fixing_and_writing(folder: Path, tmp_path: Path) -> None:
    write_png(folder / PNG, "L")
    report = examine(folder, workers=0, cache=False)
    again = fix_dataset(report, tmp_path / "fixed").dataset
    assert [len(split.records) for split in (again.train, again.val)] == [1, 2]
    assert again.categories == report.dataset.categories
    expected = DetectionDataset(report.dataset.train, masks=True)[1].annotations
    actual = DetectionDataset(again.train, masks=True)[0].annotations
    assert torch.equal(actual.labels, expected.labels)
    assert actual.masks is not None
    assert expected.masks is not None
    assert torch.equal(actual.masks, expected.masks)
    assert again.train.records[0].is_crowd.tolist() == [False, False, False, True]


def test_boxes_cannot_be_written_as_panoptic(tmp_path: Path) -> None:
    splits = load_dataset(write_coco(tmp_path / "boxes")).splits
    with pytest.raises(DatasetError, match="the annotations have no panoptic segments"):
        write_dataset(splits, tmp_path / "out", "panoptic")


def test_coco_panoptic_mini_is_read_completely(shared: Path) -> None:
    read = load_dataset(shared / "data" / "coco-panoptic-mini")
    assert read.format == "panoptic"
    for split, num_images, num_segments, num_crowds in ((read.train, 50, 562, 2), (read.val, 52, 648, 6)):
        assert len(split.records) == num_images
        assert sum(len(record.labels) for record in split.records) == num_segments
        assert sum(int(record.is_crowd.sum()) for record in split.records) == num_crowds
        assert split.categories.is_thing is not None
        assert (len(split.categories), sum(split.categories.is_thing)) == (133, 80)
    record = read.val.records[3]
    annotations = DetectionDataset(read.val, masks=True)[3].annotations
    kept = ~record.is_crowd
    np.testing.assert_array_equal(annotations.boxes.numpy(), record.boxes[kept])  # the JSON's are exact here
