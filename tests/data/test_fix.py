"""Fixed copies: faults are counted, names, objects and segmentations are kept, and the copy gets its own verdict."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from detrkit.cli import main
from detrkit.data.checks.examine import DatasetReport, examine
from detrkit.data.checks.fix import FixResult, fix_dataset
from detrkit.data.convert import convert_dataset
from detrkit.data.splits import load_dataset
from detrkit.errors import ConfigError, DatasetError
from tests.data.test_convert_masks import FAULTS, POLYGON, REPAIRABLE, annotations_of
from tests.data.test_convert_masks import write as write_segmentations
from tests.datasets import write_coco

ROW = "0 0.5 0.5 0.25 0.25\n"


def check(data: Path, **options: Any) -> DatasetReport:
    return examine(data, **{"workers": 0, "cache": False, **options})


def fix(folder: Path) -> FixResult:
    return fix_dataset(check(folder), folder.parent / "fixed")


def write_yolo(root: Path, *, val: str = "valid", num_train: int = 4, num_val: int = 2) -> Path:
    """Write a Roboflow export: a row per image."""
    for split, count in (("train", num_train), (val, num_val)):
        for folder in ("images", "labels"):
            (root / split / folder).mkdir(parents=True)
        for number in range(count):
            shade = 10 * number + 100 * (split == val)
            Image.new("RGB", (64, 48), (shade, 90, 30)).save(root / split / "images" / f"{split}{number}.png")
            (root / split / "labels" / f"{split}{number}.txt").write_text(ROW)
    (root / "data.yaml").write_text(f"train: ../train/images\nval: ../{val}/images\nnc: 1\nnames: ['red']\n")
    return root


def doctor(*arguments: object) -> int:
    with pytest.raises(SystemExit) as left:
        main(["doctor", *map(str, arguments), "--workers", "0"])
    return int(left.value.code or 0)


def test_fixed_yolo_copy_has_true_counts_names_and_a_verdict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    folder, fixed = write_yolo(tmp_path / "data"), tmp_path / "fixed"
    (folder / "train" / "images" / "train0.png").write_bytes(b"not an image")  # found by the reader
    image = folder / "train" / "images" / "train1.png"
    image.write_bytes(image.read_bytes()[:-30])  # found by decoding
    (folder / "valid" / "images" / "valid0.png").write_bytes(b"")
    (folder / "train" / "labels" / "train2.txt").write_text(ROW + "nonsense\n")
    assert doctor(folder) == 1
    assert "4 errors must be fixed before training" in capsys.readouterr().out
    assert doctor(folder, "--fix", fixed) == 0
    said = capsys.readouterr().out
    assert "images left out that cannot be used: 3" in said
    assert "objects left out that cannot be read: 1" in said
    assert "the copy: ready for training: 2 images with 2 objects" in said
    assert sorted(path.name for path in fixed.iterdir() if path.is_dir()) == ["train", "valid"]
    assert "val: valid/images" in (fixed / "data.yaml").read_text()
    assert sorted(path.name for path in (fixed / "train" / "images").iterdir()) == ["train2.png", "train3.png"]


@pytest.mark.parametrize("val", ["val", "valid", "validation"])
def test_names_of_yolo_folders_are_kept(tmp_path: Path, val: str) -> None:
    result = fix(write_yolo(tmp_path / "data", val=val))
    assert (result.output / val / "images").is_dir()
    assert len(result.dataset.val) == 2


def test_names_of_coco_folders_are_kept(tmp_path: Path) -> None:
    result = fix(write_coco(tmp_path / "shapes"))
    assert sorted(path.name for path in result.output.iterdir()) == ["annotations", "train2017", "val2017"]
    assert [path.name for path in sorted((result.output / "annotations").iterdir())] == [
        "instances_train2017.json",
        "instances_val2017.json",
    ]


def test_names_of_a_roboflow_export_are_kept(tmp_path: Path) -> None:
    for split, source in (("train", "train2017"), ("valid", "val2017")):
        write_coco(tmp_path / "coco") if not (tmp_path / "coco").exists() else None
        shutil.copytree(tmp_path / "coco" / source, tmp_path / "data" / split)
        target = tmp_path / "data" / split / "_annotations.coco.json"
        shutil.copy(tmp_path / "coco" / "annotations" / f"instances_{source}.json", target)
    result = fix(tmp_path / "data")
    assert (result.output / "valid").is_dir()
    assert not (result.output / "val").exists()
    assert (len(result.dataset.train), len(result.dataset.val)) == (4, 3)


def test_images_that_were_set_aside_go_back(tmp_path: Path) -> None:
    folder = write_coco(tmp_path / "shapes")
    shutil.rmtree(folder / "val2017")
    (folder / "annotations" / "instances_val2017.json").unlink()
    result = fix(folder)
    assert sorted(path.name for path in result.output.iterdir()) == ["annotations", "train2017"]
    assert len(list((result.output / "train2017").iterdir())) == 4


def edit_coco(folder: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / "annotations" / "instances_train2017.json"
    document = json.loads(path.read_text())
    edit(document)
    path.write_text(json.dumps(document))


def spoil(field: str, value: object) -> Callable[[dict[str, Any]], None]:
    """Spoil all objects of image 2."""

    def edit(document: dict[str, Any]) -> None:
        for entry in document["annotations"]:
            if entry["image_id"] == 2:
                entry[field] = value

    return edit


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("bbox", [5, 5, 0, 7]),
        ("bbox", [70, 70, 9, 9]),
        ("bbox", [1, 2, 3]),
        ("bbox", None),
        ("category_id", 99),
        ("category_id", None),
    ],
)
def test_image_with_objects_never_becomes_background(tmp_path: Path, field: str, value: object) -> None:
    folder = write_coco(tmp_path / "shapes")
    edit_coco(folder, spoil(field, value))
    result = fix(folder)
    names = [record.path.name for record in result.dataset.train.records]
    assert names == ["1.png", "3.png", "4.png"]  # 1 has no objects by intention
    assert result.num_background_dropped == 1
    assert not len(result.dataset.train.records[0].labels)


@pytest.mark.parametrize(
    "row", ["0 2.5 0.5 0.2 0.3", "7 0.5 0.5 0.2 0.3", "0 0.5 0.5 0.2", "0 0.5 0.5 0 0.3", "red 1 2 3 4"]
)
def test_yolo_image_with_objects_never_becomes_background(tmp_path: Path, row: str) -> None:
    folder = write_yolo(tmp_path / "data")
    (folder / "train" / "labels" / "train1.txt").write_text(row + "\n")
    (folder / "train" / "labels" / "train2.txt").write_text("")
    result = fix(folder)
    counts = {record.path.stem: len(record.labels) for record in result.dataset.train.records}
    assert counts == {"train0": 1, "train2": 0, "train3": 1}


def test_box_beyond_the_image_is_clipped(tmp_path: Path) -> None:
    folder = write_coco(tmp_path / "shapes")
    edit_coco(folder, spoil("bbox", [-6, 20, 30, 60]))
    result = fix(folder)
    assert result.num_boxes_clipped >= 1
    record = next(one for one in result.dataset.train.records if one.path.name == "2.png")
    assert record.boxes.tolist()[0] == [0, 20, 24, 64]


def test_voc_objects_that_cannot_be_read_are_counted(tmp_path: Path) -> None:
    folder = convert_dataset(write_coco(tmp_path / "coco"), tmp_path / "voc", "voc").output
    record = next(one for one in load_dataset(folder).train.records if len(one.labels))
    path = folder / "Annotations" / f"{record.path.stem}.xml"
    path.write_text(path.read_text().replace("<xmin>", "<xmin>x"))
    result = fix(folder)
    assert (result.num_objects_dropped, result.num_background_dropped) == (len(record.labels), 1)
    assert len(result.dataset.train) == 3


def test_segmentations_are_kept_repaired_or_left_out_with_their_box(tmp_path: Path) -> None:
    names = list(FAULTS)
    folder = write_segmentations(tmp_path / "data", [POLYGON, *(FAULTS[name] for name in names), None])
    report = check(folder)
    titles = {finding.title: finding for finding in report.findings}
    finding = titles["segmentations that cannot be used"]
    assert (finding.severity, len(finding.locations)) == ("warning", len(names))
    assert "annotations[1] (id 2).segmentation" in finding.locations[0].text
    assert not report.num_errors
    assert check(folder, masks=True).num_errors
    result = fix_dataset(report, tmp_path / "fixed")
    copied = sorted(annotations_of(tmp_path / "fixed"), key=lambda entry: entry["image_id"])
    assert len(copied) == len(names) + 2
    assert copied[0]["segmentation"] == POLYGON
    has_segmentation = {name: "segmentation" in entry for name, entry in zip(names, copied[1:-1], strict=True)}
    assert has_segmentation == {name: name != "of a smaller image" for name in names}
    assert set(REPAIRABLE) <= set(names)
    assert result.num_segmentations_changed == len(names)
    assert not any("segmentations" in one.title for one in check(tmp_path / "fixed").findings)


def test_every_image_at_fault_shows_the_faults(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_coco(tmp_path / "shapes")
    edit_coco(folder, lambda document: [entry.update(height=0) for entry in document["images"]])
    report = check(folder)
    finding = next(one for one in report.findings if one.title == "images that cannot be used")
    assert len(finding.locations) == 4
    assert "train" not in report.num_images
    assert doctor(folder) == 1
    said = capsys.readouterr().out
    assert "images that cannot be used (4)" in said
    assert doctor(folder, "--fix", tmp_path / "fixed") == 2
    assert "nothing can be fixed" in capsys.readouterr().err
    assert not (tmp_path / "fixed").exists()
    yolo = write_yolo(tmp_path / "yolo", num_train=2)
    for path in (yolo / "train" / "images").iterdir():
        path.write_bytes(b"broken")
    assert any(len(one.locations) == 2 for one in check(yolo).findings if one.title == "images that cannot be used")


def test_loading_names_the_first_fault_counts_all_and_points_to_the_doctor(tmp_path: Path) -> None:
    folder = write_yolo(tmp_path / "data")
    for number in (1, 2):
        (folder / "train" / "images" / f"train{number}.png").write_bytes(b"broken")
    with pytest.raises(DatasetError, match=r"train1\.png: .* \(and 1 more fault\); detrkit doctor .*data shows them"):
        load_dataset(folder)
    (folder / "train" / "labels" / "train0.txt").write_text("broken\n")
    with pytest.raises(DatasetError, match=r"\(and 2 more faults\).* with fix='COPY' writes a copy without them"):
        load_dataset(folder)
    for path in (folder / "train" / "images").iterdir():
        path.write_bytes(b"broken")
    with pytest.raises(DatasetError, match=r"\(and 3 more faults\)"):  # not: found no images
        load_dataset(folder)


def test_split_is_examined_by_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_coco(tmp_path / "shapes")
    shutil.rmtree(folder / "train2017")
    report = check(folder, split="val")
    assert (report.num_images, report.num_errors) == ({"val": 3}, 0)
    assert report.summary.startswith("the val split has no errors: 3 images with")
    assert doctor(folder, "--split", "val") == 0
    assert "the val split has no errors" in capsys.readouterr().out
    assert doctor(folder) != 0
    capsys.readouterr()
    assert doctor(folder, "--split", "val", "--fix", tmp_path / "fixed") == 2
    assert "leave out --split val" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="is of one split"):
        fix_dataset(report, tmp_path / "fixed")
    with pytest.raises(DatasetError, match="found no test split"):
        check(folder, split="test")


@pytest.mark.parametrize(
    ("crowds", "severity", "text"),
    [([1, 1, 1, 0], "warning", "red: 3 of 4 objects"), ([1, 0, 0, 0], "note", "red: 1 of 4 objects")],
)
def test_crowds_are_counted_by_class(tmp_path: Path, crowds: list[int], severity: str, text: str) -> None:
    folder = write_segmentations(tmp_path / "data", [None] * 4)
    path = folder / "annotations.json"
    document = json.loads(path.read_text())
    for entry, crowd in zip(document["annotations"], crowds, strict=True):
        entry["iscrowd"] = crowd
    path.write_text(json.dumps(document))
    report = check(folder)
    finding = next(one for one in report.findings if "crowds (iscrowd" in one.title)
    assert (finding.severity, str(finding.locations[0])) == (severity, text)
    assert sum(report.classes[0].crowds.values()) == sum(crowds)
    assert sum(report.classes[0].objects.values()) == 4 - sum(crowds)


def test_difficult_objects_of_voc_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = convert_dataset(write_coco(tmp_path / "coco"), tmp_path / "voc", "voc").output
    for path in (folder / "Annotations").iterdir():
        path.write_text(path.read_text().replace("<difficult>0", "<difficult>1"))
    report = check(folder)
    finding = next(one for one in report.findings if "most of whose objects are crowds" in one.title)
    assert finding.severity == "warning"
    doctor(folder)
    assert "crowds" in capsys.readouterr().out


def test_val_that_is_train_is_found(tmp_path: Path) -> None:
    folder = write_yolo(tmp_path / "data")
    (folder / "data.yaml").write_text("train: train/images\nval: train/images\nnames: [red]\n")
    finding = next(one for one in check(folder).findings if one.title == "images that are in two splits")
    assert finding.advice.startswith("4 of 4 validation images are trained on")
    shutil.copy(folder / "train" / "images" / "train1.png", folder / "valid" / "images" / "other.png")
    (folder / "data.yaml").write_text("train: train/images\nval: valid/images\nnames: [red]\n")
    finding = next(one for one in check(folder).findings if one.title == "images that are in two splits")
    assert finding.advice.startswith("1 of 3 validation images are trained on")


def test_one_image_is_not_counted_twice(tmp_path: Path) -> None:
    folder = write_segmentations(tmp_path / "data", [POLYGON])
    report = check(folder)
    assert report.notes == (
        "no validation split, and a single image: the model is evaluated on the image it is trained on",
    )
    for path in (convert_dataset(folder, tmp_path / "yolo", "yolo").output, fix(folder).output):
        assert len(list(path.rglob("*.png"))) == 1
