"""Instance masks: polygons and RLE, equal to pycocotools, decoded lazily."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from detrkit.config.run import RunConfig
from detrkit.data.checks.examine import examine
from detrkit.data.convert import convert_dataset
from detrkit.data.dataset import DetectionDataset, Split
from detrkit.data.formats.coco import read_coco_file
from detrkit.data.formats.context import ReadContext
from detrkit.data.records import Records
from detrkit.data.segmentation import read_masks, to_rle
from detrkit.data.splits import load_dataset
from detrkit.errors import ConfigError, DatasetError
from detrkit.evaluation.arrays import GroundTruth
from detrkit.evaluation.evaluate import evaluate
from detrkit.ops.masks import encode_masks
from detrkit.training.data import open_data
from tests.datasets import write_coco

SQUARE = [1, 1, 4, 1, 4, 4, 1, 4]
FAR = [5, 2, 7, 2, 7, 5, 5, 5]
# of 6 x 8 pixels, column after column: 6 without, 2 with, 4 without, 3 with, and the rest
COUNTS = [6, 2, 4, 3, 33]


def write(root: Path, segmentations: list[Any], crowds: tuple[int, ...] = ()) -> Path:
    """One image of 6 x 8 pixels with an object per segmentation."""
    (root / "images").mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6), "green").save(root / "images" / "a.png")
    objects = [
        {
            "id": i,
            "image_id": 1,
            "category_id": 1,
            "bbox": [0, 0, 8, 6],
            "iscrowd": int(i in crowds),
            "segmentation": one,
        }
        for i, one in enumerate(segmentations)
    ]
    document = {
        "images": [{"id": 1, "file_name": "a.png", "height": 6, "width": 8}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": objects,
    }
    (root / "instances.json").write_text(json.dumps(document))
    return root / "instances.json"


def masks_of(file: Path) -> np.ndarray:
    train = load_dataset(file, masks=True).train
    masks = DetectionDataset(train, masks=True)[0].annotations.masks
    assert masks is not None
    return masks.numpy()


def runs_by_hand() -> np.ndarray:
    flat = np.repeat([False, True, False, True, False], COUNTS)
    return flat.reshape(8, 6).T


def test_every_kind_of_segmentation(tmp_path: Path) -> None:
    expected = runs_by_hand()
    compressed = encode_masks(torch.from_numpy(expected[None].copy()))[0]
    assert isinstance(compressed["counts"], str)
    square, both, plain, small = masks_of(
        write(tmp_path, [[SQUARE], [SQUARE, FAR], {"size": [6, 8], "counts": COUNTS}, compressed])
    )
    assert square.sum() == 9
    assert square[1:4, 1:4].all()
    far = np.zeros_like(square)
    far[2:5, 5:7] = True
    np.testing.assert_array_equal(both, square | far)
    np.testing.assert_array_equal(plain, expected)
    np.testing.assert_array_equal(small, expected)


def test_crowds_and_empty_masks_are_left_out(tmp_path: Path) -> None:
    line = [1, 1, 6, 1, 1, 1]
    masks = masks_of(write(tmp_path, [[SQUARE], {"size": [6, 8], "counts": COUNTS}, [line], [[1, 1, 3, 3], FAR]], (1,)))
    assert [int(mask.sum()) for mask in masks] == [9, 6]  # of the last object, the polygon of two points is passed over


MALFORMED: dict[str, Any] = {
    "found nothing, expected polygons": None,
    "found no polygon of three points": [],
    "of three points or more": [[1, 2, 3, 4]],
    "found malformed polygons": [[1, 2, 3, 4, 5]],
    r"segmentation: found malformed polygons, expected": [["1", 2, 3, 4, 5, 6]],
    r"annotations\[0\] \(id 0\)\.segmentation: found malformed": [[1e300, 0, 3, 4, 5, 6]],
    "found malformed RLE": {"size": [6], "counts": COUNTS},
    "malformed RLE, expected polygons": {"size": [6, 8], "counts": [6, -2, 44]},
    r"malformed RLE, expected polygons \[\[x": {"size": [6, 8], "counts": 7},
    r"annotations\[0\] \(id 0\)\.segmentation: found RLE of 6 x 8 pixels, the image has 8 x 6": {
        "size": [8, 6],
        "counts": COUNTS,
    },
    "RLE that does not add up to the image's pixels; correct it": {"size": [6, 8], "counts": [6, 2]},
    r"segmentation: found (invalid RLE|RLE)": {"size": [6, 8], "counts": "~~~~~~"},
}


@pytest.mark.parametrize("message", MALFORMED)
def test_malformed_segmentation_is_rejected(tmp_path: Path, message: str) -> None:
    with pytest.raises(DatasetError, match=message) as caught:
        masks_of(write(tmp_path, [MALFORMED[message]]))
    assert "\n" not in str(caught.value)
    assert len(load_dataset(tmp_path / "instances.json").train.records[0].labels) == 1, "boxes alone do not need it"


def rle(counts: Any, size: Any = (6, 8)) -> dict[str, Any]:
    return {"size": list(size), "counts": counts}


GOOD = "6241m0"  # COUNTS, compressed
MALFORMED_RLE = {
    "swapped": rle(GOOD, (8, 6)),
    "larger": rle(GOOD, (12, 16)),
    "huge": rle(GOOD, (2**30, 2**30)),
    "negative size": rle(GOOD, (-6, 8)),
    "one side": rle(GOOD, (6,)),
    "side of text": rle(GOOD, ("6", "8")),
    "no size": {"counts": GOOD},
    "no counts": {"size": [6, 8]},
    "null": rle(None),
    "number": rle(5),
    "object": rle({}),
    "no runs": rle([]),
    "no text": rle(""),
    "negative run": rle([50, -2]),
    "fraction": rle([10.5, 37.5]),
    "overflow": rle([2**62, 1]),
    "sum of 32 bits": rle([2**31, 2**31, 48]),
    "too short": rle([5, 5]),
    "too long": rle([5, 48]),
    "nested": rle([[1, 2]]),
    "words": rle(["1", "47"]),
    "control characters": rle("\x00\x01"),
    "high characters": rle("\x7f" * 40),
    "not ASCII": rle("é"),
    "half a character": rle("\ud800"),
    "spaces": rle("   "),
    "not terminated": rle("o" * 15),
    "number of 150 bits": rle("o" * 30 + "0"),
    "negative compressed": rle("d1L"),  # 52 and -4
    "repr of bytes": rle(f"b'{GOOD}'"),
    "one more run": rle(GOOD + "1"),
    "backslash": rle(GOOD + "\\"),
}


@pytest.mark.parametrize("segmentation", MALFORMED_RLE.values(), ids=MALFORMED_RLE)
def test_malformed_run_lengths_are_one_sentence_everywhere(tmp_path: Path, segmentation: dict[str, Any]) -> None:
    file = write(tmp_path / "data", [segmentation, rle(GOOD)])
    with pytest.raises(DatasetError, match="segmentation"):
        load_dataset(file, masks=True)
    report = examine(file, workers=0, cache=False)
    assert len(report.dataset.train.records[0].labels) == 2  # the objects keep their boxes
    with pytest.raises(DatasetError, match="segmentation"):
        convert_dataset(file, tmp_path / "copy", "coco")
    document = json.loads(file.read_text())
    results = [{"image_id": 1, "category_id": 1, "segmentation": rle(GOOD), "score": 0.5}]
    with pytest.raises(DatasetError, match="segmentation"):
        GroundTruth.from_coco(document, masks=True)
    (tmp_path / "results.json").write_text(json.dumps([{**results[0], "segmentation": segmentation}]))
    with pytest.raises(DatasetError, match=r"segmentation|mask of"):
        evaluate(tmp_path / "results.json", write(tmp_path / "good", [rle(GOOD)]), split="train")


def test_polygon_far_outside_allocates_little_memory() -> None:
    mask = to_rle([[-9e8, -9e8, 9e8, -9e8, 9e8, 9e8, -9e8, 9e8]], (6, 8))
    assert mask["size"] == [6, 8]


def test_boxes_without_segmentations_have_no_masks(tmp_path: Path) -> None:
    file = write(tmp_path, [[SQUARE]])
    train = load_dataset(file).train
    assert not train.records.has_masks
    assert DetectionDataset(train)[0].annotations.masks is None
    with pytest.raises(DatasetError, match="boxes without masks"):
        DetectionDataset(train, masks=True)
    assert DetectionDataset(load_dataset(file, masks=True).train)[0].annotations.masks is None


def test_segmentations_stay_with_their_objects_after_selection(tmp_path: Path) -> None:
    file = write(tmp_path, [[SQUARE], [FAR]])
    record = read_coco_file(file, tmp_path / "images", ReadContext(masks=True)).records[0]
    second = record.keep(np.array([False, True]))
    records = Records.of([record, second, record.keep(np.array([False, False]))])
    assert [len(one.segmentations or ()) for one in records] == [2, 1, 0]
    assert [one.segmentations for one in records.select([2, 1])] == [
        (),
        record.segmentations[1:] if record.segmentations else None,
    ]
    mask = read_masks(records[1], np.array([0]))
    assert mask[0, 2:5, 5:7].all()
    assert int(mask.sum()) == 6


def test_format_without_masks_is_rejected_for_a_mask_model(tmp_path: Path) -> None:
    config = RunConfig(data=str(write_coco(tmp_path / "boxes")), model="detr-r18")
    panoptic = config.model_copy(update={"model_overrides": {"mask_head": True}})
    with pytest.raises(DatasetError, match=r"segmentation: found nothing, expected polygons"):
        open_data(panoptic)
    (tmp_path / "yolo" / "train" / "images").mkdir(parents=True)
    (tmp_path / "yolo" / "data.yaml").write_text("train: train/images\nnames: [a]\n")
    with pytest.raises((DatasetError, ConfigError), match="reads no masks from yolo data"):
        open_data(panoptic.model_copy(update={"data": str(tmp_path / "yolo")}))


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # pycocotools' own
def test_masks_of_coco_mini_equal_pycocotools(shared: Path) -> None:
    reference = pytest.importorskip("pycocotools.mask")
    root = shared / "data" / "coco-mini-dev"
    split = load_dataset(root, masks=True).val
    document = json.loads((root / "annotations" / "instances_val2017.json").read_text())
    kinds = set()
    for record in split.records:
        entries = [entry for entry in document["annotations"] if entry["image_id"] == record.image_id]
        masks = read_masks(record, np.arange(len(entries))).numpy()
        for entry, mask in zip(entries, masks, strict=True):
            segmentation = entry["segmentation"]
            kinds.add(type(segmentation))
            expected = reference.frPyObjects(segmentation, *record.size)
            expected = reference.merge(expected) if isinstance(segmentation, list) else expected
            np.testing.assert_array_equal(mask, reference.decode(expected))
    assert kinds == {list, dict}


def test_split_with_masks_can_be_pickled(tmp_path: Path) -> None:
    import pickle

    split = load_dataset(write(tmp_path, [[SQUARE]]), masks=True).train
    again: Split = pickle.loads(pickle.dumps(split))
    assert again.records[0].segmentations == split.records[0].segmentations
