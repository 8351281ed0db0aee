"""Polygons of YOLO datasets in copies: kept where the format can hold them, and otherwise counted."""

import json
from pathlib import Path

import numpy as np
import pytest

from detrkit.cli import main
from detrkit.data.checks.examine import examine
from detrkit.data.checks.fix import fix_dataset
from detrkit.data.convert import convert_dataset
from detrkit.data.formats.yolo import read_row
from detrkit.data.segmentation import to_rle
from detrkit.data.splits import load_dataset
from tests.data.layouts import SIZE, YOLO_ROW, put_coco, put_images, put_text

POLYGON = [2.0, 1.0, 6.0, 1.0, 6.0, 5.0, 2.0, 3.0]  # pixels; its extent is `layouts.BOX`
ROW = "0 0.1666667 0.125 0.5 0.125 0.5 0.625 0.1666667 0.375\n"
NAMES = ("a.png", "b.png", "c.png", "d.png", "e.png")


def write_yolo(root: Path, *, last: str = ROW) -> Path:
    put_images(root / "images", NAMES)
    for name in NAMES:
        put_text((root / "labels" / name).with_suffix(".txt"), last if name == NAMES[-1] else ROW)
    put_text(root / "data.yaml", "train: images\nnames: [fish]\n")
    return root


def rows_of(folder: Path) -> list[list[str]]:
    return [path.read_text(encoding="utf-8").splitlines() for path in sorted(folder.rglob("labels/*.txt"))]


def test_polygons_become_segmentations_in_coco(tmp_path: Path) -> None:
    result = convert_dataset(write_yolo(tmp_path / "set"), tmp_path / "coco", "coco")
    document = json.loads(next((tmp_path / "coco" / "annotations").glob("*.json")).read_text(encoding="utf-8"))
    for entry in document["annotations"]:
        assert np.allclose(entry["segmentation"], [POLYGON], atol=0.01)
        assert np.allclose(entry["bbox"], [2, 1, 4, 4], atol=0.01)
        assert to_rle(entry["segmentation"], SIZE[::-1])
    assert not any("segmentation" in note for note in result.notes)


def test_polygons_stay_polygons_in_yolo_and_in_fixed_copies(tmp_path: Path) -> None:
    folder = write_yolo(tmp_path / "set", last=ROW + "0 0.5 0.5 0 0.2\n")  # a box without area
    fixed = fix_dataset(examine(folder, workers=0, cache=False), tmp_path / "fixed")
    again = convert_dataset(tmp_path / "fixed", tmp_path / "yolo", "yolo")
    for copy in ("fixed", "yolo"):
        assert len(rows_of(tmp_path / copy)) == len(NAMES)
        for (row,) in rows_of(tmp_path / copy):
            assert np.allclose([float(word) for word in row.split()], [float(word) for word in ROW.split()], atol=1e-4)
    assert fixed.num_segmentations_lost == 0
    assert not any("segmentation" in note for note in again.notes)


def test_polygons_among_boxes_of_an_image_become_boxes_and_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_yolo(tmp_path / "set", last=ROW + "0 0.5 0.5 0.2 0.2\n" + YOLO_ROW.replace("0.33", "0.44") + "x\n")
    result = fix_dataset(examine(folder, workers=0, cache=False), tmp_path / "fixed")
    assert result.num_segmentations_lost == 1
    for row in rows_of(tmp_path / "fixed")[-1]:
        assert len(row.split()) == 5
    with pytest.raises(SystemExit) as left:
        main(["doctor", str(folder), "--fix", str(tmp_path / "again"), "--workers", "0"])
    assert not left.value.code
    assert "segmentations replaced by their boxes, which the format cannot express: 1" in capsys.readouterr().out


def test_segmentations_that_a_format_cannot_express_are_counted(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    put_images(folder / "images", NAMES)
    several = [POLYGON, [7, 5, 9, 5, 9, 7]]
    put_coco(folder / "annotations" / "instances_train.json", NAMES, segmentation=several)
    for format in ("yolo", "voc"):
        result = convert_dataset(folder, tmp_path / format, format)
        assert f"5 segmentations not kept, which {format} cannot express: boxes were written" in result.notes
        boxes = [record.boxes for split in result.dataset.splits.values() for record in split.records]
        assert all(np.allclose(box, [[2, 1, 6, 5]], atol=0.01) for box in boxes)


def test_coco_polygons_are_kept_in_yolo_if_they_have_the_extent_of_the_box(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    put_images(folder / "images", NAMES)
    for number, polygon in enumerate((POLYGON, [0, 0, 3, 0, 3, 3])):
        put_coco(folder / "annotations" / "instances_train.json", NAMES, segmentation=[polygon])
        result = convert_dataset(folder, tmp_path / str(number), "yolo")
        assert any("not kept" in note for note in result.notes) == bool(number)
        for (row,) in rows_of(tmp_path / str(number)):
            assert (len(row.split()) == 5) == bool(number)
            _, box = read_row(row, "here")
            assert np.allclose(np.array(box) * (*SIZE, *SIZE), [2, 1, 6, 5], atol=0.01)


def test_malformed_segmentations_do_not_matter_to_copies_of_boxes(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    put_images(folder / "images", NAMES)
    put_coco(folder / "annotations" / "instances_train.json", NAMES, segmentation={"size": [1, 1], "counts": "0"})
    convert_dataset(folder, tmp_path / "yolo", "yolo")


@pytest.mark.parametrize("format", ["coco", "yolo", "voc"])
def test_copies_have_the_splits_of_the_folder(tmp_path: Path, format: str) -> None:
    result = convert_dataset(write_yolo(tmp_path / "set"), tmp_path / "copy", format)
    assert any("no validation split, and neither has the copy" in note for note in result.notes)
    assert load_dataset(tmp_path / "copy").is_val_set_aside
    folders = {path.name for path in (tmp_path / "copy").rglob("*")}
    assert not folders & {"val", "val.txt", "instances_val.json"}
