"""Segmentations in copies of datasets: kept where they exist; a fault is a sentence and leaves nothing behind."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from detrkit._internal.files import staged_folder
from detrkit.cli import main
from detrkit.data.convert import convert_dataset
from detrkit.data.segmentation import find_misfit, repair_segmentation
from detrkit.data.splits import load_dataset
from detrkit.data.synthetic import SyntheticShapes, SyntheticStyle
from detrkit.errors import ConfigError, DatasetError
from detrkit.ops.masks import encode_masks
from tests.datasets import panoptic_document, write_panoptic

BOX = [10, 8, 30, 24]  # xywh
POLYGON = [[10, 8, 40, 8, 40, 32, 10, 32]]
SIZE = (48, 64)  # height, width


def mask() -> np.ndarray:
    array = np.zeros(SIZE, np.uint8)
    array[8:32, 10:40] = 1
    return array


def runs(array: np.ndarray, size: tuple[int, int] | None = None, extra: int = 0) -> dict[str, Any]:
    """Uncompressed run lengths, by columns."""
    flat = array.flatten(order="F")
    ends = [*np.flatnonzero(np.diff(flat)) + 1, len(flat)]
    counts = np.diff([0, *ends]).tolist()
    counts = [0, *counts] if flat[0] else counts
    counts[-1] += extra
    return {"size": list(size or array.shape), "counts": counts}


def compressed(array: np.ndarray, size: tuple[int, int] | None = None) -> dict[str, Any]:
    encoded = encode_masks(torch.from_numpy(array).bool()[None])[0]
    return {"size": list(size or encoded["size"]), "counts": encoded["counts"]}


def write(root: Path, segmentations: list[Any], box: list[float] = BOX) -> Path:
    """Write one image for every segmentation; None leaves it out."""
    (root / "images").mkdir(parents=True)
    numbers = range(1, len(segmentations) + 1)
    for number in numbers:
        Image.new("RGB", SIZE[::-1], (number, 0, 0)).save(root / "images" / f"{number}.png")
    annotations = [
        {"id": n, "image_id": n, "category_id": 1, "bbox": box, "iscrowd": 0, "segmentation": segmentation}
        for n, segmentation in zip(numbers, segmentations, strict=True)
    ]
    for entry in annotations:
        if entry["segmentation"] is None:
            del entry["segmentation"]
    document = {
        "images": [{"id": n, "file_name": f"{n}.png", "height": SIZE[0], "width": SIZE[1]} for n in numbers],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "red"}],
    }
    (root / "annotations.json").write_text(json.dumps(document))
    return root


def annotations_of(folder: Path) -> list[dict[str, Any]]:
    files = sorted((folder / "annotations").glob("*.json"))
    return [entry for file in files for entry in json.loads(file.read_text())["annotations"]]


@pytest.mark.parametrize("missing", [None, []])
def test_one_missing_segmentation_does_not_drop_the_others(tmp_path: Path, missing: object) -> None:
    folder = write(tmp_path / "coco", [POLYGON, missing, runs(mask()), compressed(mask())])
    result = convert_dataset(folder, tmp_path / "copy", "coco")
    copied = annotations_of(tmp_path / "copy")
    assert sum("segmentation" in entry for entry in copied) == 3
    assert len(copied) == 4
    assert "1 object of the data have a box and no segmentation" in result.notes
    boxes_only = convert_dataset(write(tmp_path / "boxes", [None] * 3), tmp_path / "boxes-copy", "coco")
    assert not any("segmentation" in note for note in boxes_only.notes)


FAULTS = {
    "height and width swapped": runs(mask(), SIZE[::-1]),
    "compressed, height and width swapped": compressed(mask(), SIZE[::-1]),
    "transposed": runs(mask().T),
    "compressed and transposed": compressed(np.ascontiguousarray(mask().T)),
    "of a smaller image": runs(mask()[:40, :50]),
    "beyond the image": runs(mask(), extra=700),
    "short of the image": runs(mask(), extra=-20),
}


@pytest.mark.parametrize("format", ["coco"])
@pytest.mark.parametrize("fault", FAULTS)
def test_run_lengths_that_do_not_fit_are_a_sentence_and_leave_nothing(
    tmp_path: Path, fault: str, format: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write(tmp_path / "coco", [POLYGON, POLYGON, FAULTS[fault]])
    output = tmp_path / "deep" / "copy"
    with pytest.raises(SystemExit) as left:
        main(["convert-data", str(folder), str(output), "--to", format])
    assert left.value.code == 2
    said = capsys.readouterr().err
    assert "annotations[2] (id 3).segmentation" in said
    assert "Traceback" not in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["coco"]


@pytest.mark.parametrize("segmentation", [{"size": [48, 64], "counts": "~~~~"}, {"size": [48, 64]}, [[1, 2, "x"]], "x"])
def test_malformed_segmentation_is_a_sentence(tmp_path: Path, segmentation: object) -> None:
    folder = write(tmp_path / "coco", [POLYGON, segmentation, POLYGON])
    with pytest.raises(DatasetError, match=r"annotations\[1\] \(id 2\)\.segmentation") as caught:
        convert_dataset(folder, tmp_path / "copy", "coco")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "copy").exists()
    # formats of boxes do not look at segmentations
    assert len(convert_dataset(folder, tmp_path / "yolo", "yolo").dataset.train) == 2


REPAIRABLE = ("height and width swapped", "compressed, height and width swapped", "transposed", "beyond the image")


@pytest.mark.parametrize("fault", [*REPAIRABLE, "compressed and transposed", "short of the image"])
def test_run_lengths_are_repaired_where_the_box_confirms_it(fault: str) -> None:
    segmentation = json.dumps(FAULTS[fault]).encode()
    assert find_misfit(segmentation, SIZE)
    repaired = repair_segmentation(segmentation, SIZE, (10, 8, 40, 32))
    assert find_misfit(repaired, SIZE) is None
    assert json.loads(repaired) == compressed(mask())
    assert repair_segmentation(segmentation, SIZE, (45, 40, 60, 47)) == b""


def test_run_lengths_of_another_image_are_not_repaired() -> None:
    segmentation = json.dumps(FAULTS["of a smaller image"]).encode()
    assert repair_segmentation(segmentation, SIZE, (10, 8, 40, 32)) == b""
    assert find_misfit(json.dumps(POLYGON).encode(), SIZE) is None


def test_panoptic_segments_become_run_lengths(tmp_path: Path) -> None:
    _, ids = panoptic_document()
    convert_dataset(write_panoptic(tmp_path / "panoptic"), tmp_path / "coco", "coco")
    copy = load_dataset(tmp_path / "coco", masks=True)
    assert copy.train.has_masks
    masks = copy.train[0].annotations.masks
    assert masks is not None
    assert sorted(int(one.sum()) for one in masks) == sorted(int((ids == n).sum()) for n in (70_000, 300, 5))


def test_masks_of_a_torch_dataset_are_written(tmp_path: Path) -> None:
    shapes = SyntheticShapes(4, 0, SyntheticStyle(size=48))
    convert_dataset(shapes, tmp_path / "coco", "coco")
    copy = load_dataset(tmp_path / "coco", masks=True)
    assert copy.train.has_masks
    expected = {one.image_id: one.annotations.masks for one in (shapes[index] for index in range(4))}
    for sample in (*copy.train, *copy.val):
        masks = expected[sample.image_id]
        assert masks is not None
        assert sample.annotations.masks is not None
        assert torch.equal(sample.annotations.masks, masks)


def fail_in(folder: Path) -> None:
    (folder / "half").write_text("written")
    raise DatasetError("broken")


def interrupt_in(folder: Path) -> None:
    (folder / "half").write_text("written")
    raise KeyboardInterrupt


@pytest.mark.parametrize("work", [fail_in, interrupt_in])
@pytest.mark.parametrize("exists", [False, True])
def test_staged_folder_leaves_nothing_after_an_error(
    tmp_path: Path, work: Callable[[Path], None], exists: bool
) -> None:
    output = tmp_path / "new" / "out"
    if exists:
        output.mkdir(parents=True)
    with pytest.raises((DatasetError, KeyboardInterrupt)), staged_folder(output) as staging:
        work(staging)
    assert list(tmp_path.rglob("*")) == ([tmp_path / "new", output] if exists else [])


@pytest.mark.parametrize("exists", [False, True])
def test_staged_folder_becomes_the_output(tmp_path: Path, exists: bool) -> None:
    output = tmp_path / "out"
    if exists:
        output.mkdir()
    with staged_folder(output) as staging:
        (staging / "part").mkdir()
        (staging / "part" / "file").write_text("written")
    assert [path.relative_to(output).as_posix() for path in sorted(output.rglob("*"))] == ["part", "part/file"]
    assert list(tmp_path.iterdir()) == [output]


def test_staged_folder_that_cannot_be_created_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be a folder"), staged_folder(tmp_path / "file" / "out"):
        pass
