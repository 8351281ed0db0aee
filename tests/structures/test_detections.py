"""Detections as a collection, and their conversions to other formats."""

import io
import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from detrkit import Detections
from detrkit.errors import ConfigError
from detrkit.structures import LowResMasks


@pytest.fixture
def detections() -> Detections:
    return Detections(
        boxes=torch.tensor([[10.0, 20, 30, 60], [-5, 50, 20, 120], [150, 0, 160, 10]]),
        scores=torch.tensor([0.9, 0.75, 0.5]),
        labels=torch.tensor([0, 1, 0]),
        category_ids=torch.tensor([18, 44, 18]),
        class_names=("dog", "bottle", "dog"),
        path="image.jpg",
        size=(100, 100),
        queries=torch.tensor([7, 3, 5]),
    )


@pytest.fixture
def masked(detections: Detections) -> Detections:
    """Detections with masks: object n covers row n of cells."""
    logits = torch.eye(4)[:3, :, None].expand(-1, -1, 4) * 20 - 10
    object.__setattr__(detections, "low_res_masks", LowResMasks(logits.contiguous(), (8, 8), (8, 8), (16, 16)))
    return detections


def test_integer_index_returns_one_detection(detections: Detections) -> None:
    first = detections[0]
    assert first.box == (10, 20, 30, 60)
    assert first.score == pytest.approx(0.9)
    assert (first.label, first.category_id, first.class_name, first.mask) == (0, 18, "dog", None)
    assert detections[-1] == detections[2] == detections[np.int64(2)] == detections[torch.tensor(2)]
    with pytest.raises(IndexError, match="3 elements"):
        detections[3]


def test_iteration_yields_every_detection_in_order(detections: Detections) -> None:
    assert len(detections) == 3
    assert [one.class_name for one in detections] == ["dog", "bottle", "dog"]
    assert [one.box for one in detections] == [tuple(box) for box in detections.boxes.tolist()]
    assert detections[0] in detections


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        (slice(2), [0, 1]),
        (slice(None, None, -1), [2, 1, 0]),
        ([2, 0], [2, 0]),
        ((-1,), [2]),
        ([], []),
        ([True, False, True], [0, 2]),
        (np.array([False, True, False]), [1]),
        (torch.tensor([1, 1]), [1, 1]),
        (torch.tensor([0.9, 0.75, 0.5]) > 0.6, [0, 1]),
    ],
)
def test_slice_mask_and_indices_select_detections(masked: Detections, index: object, expected: list[int]) -> None:
    selected = masked[index]  # type: ignore[call-overload]
    assert isinstance(selected, Detections)
    assert torch.equal(selected.boxes, masked.boxes[expected])
    assert torch.equal(selected.scores, masked.scores[expected])
    assert torch.equal(selected.labels, masked.labels[expected])
    assert torch.equal(selected.category_ids, masked.category_ids[expected])
    assert selected.class_names == tuple(masked.class_names[number] for number in expected)
    assert masked.queries is not None
    assert selected.queries is not None
    assert torch.equal(selected.queries, masked.queries[expected])
    assert masked.masks is not None
    assert selected.masks is not None
    assert torch.equal(selected.masks, masked.masks[expected])
    assert (selected.path, selected.size) == (masked.path, masked.size)


@pytest.mark.parametrize(
    ("index", "error"),
    [
        ([True], IndexError),
        ([0, 3], IndexError),
        ([-4], IndexError),
        (torch.zeros(1), TypeError),
        (np.zeros((1, 1), int), TypeError),
    ],
)
def test_wrong_index_is_rejected(detections: Detections, index: object, error: type[Exception]) -> None:
    with pytest.raises(error, match="found"):
        detections[index]  # type: ignore[call-overload]


def test_mask_of_one_detection_is_its_row_of_all_masks(masked: Detections) -> None:
    assert masked.masks is not None
    for number, one in enumerate(masked):
        assert one.mask is not None
        assert torch.equal(one.mask, masked.masks[number])
    assert masked.masks.shape == (3, 16, 16)
    assert masked.masks[1, 4:8].all()


def test_repr_is_one_line_with_counts_of_classes(detections: Detections) -> None:
    assert repr(detections) == "Detections(3 objects: 2 dog, 1 bottle; image 100x100)"
    assert repr(detections[:1]) == "Detections(1 object: 1 dog; image 100x100)"
    assert repr(detections[[]].scale(2)) == "Detections(0 objects)"


def test_repr_of_many_classes_names_the_most_frequent() -> None:
    labels = torch.arange(8)
    names = tuple(f"class {label}" for label in labels.tolist())
    text = repr(Detections(torch.zeros(8, 4), torch.ones(8), labels, labels, names))
    assert text.endswith("1 class 4, 3 of 3 other classes)")


def test_notebook_shows_the_image_with_boxes(detections: Detections) -> None:
    object.__setattr__(detections, "image", Image.new("RGB", (100, 100)))
    assert detections._repr_html_() is None
    png = detections._repr_png_()
    assert png is not None
    assert np.asarray(Image.open(io.BytesIO(png))).any()


def test_notebook_shows_a_table_without_an_image(detections: Detections) -> None:
    object.__setattr__(detections, "class_names", ("<dog>", "bottle", "dog"))
    assert detections._repr_png_() is None
    table = detections._repr_html_()
    assert table is not None
    assert table.count("<tr>") == 4
    assert "&lt;dog&gt;</td><td>0.900</td><td>10.000" in table


def test_draw_takes_an_image_if_none_was_kept(detections: Detections) -> None:
    with pytest.raises(ValueError, match="pass it"):
        detections.draw()
    assert detections.draw(Image.new("RGB", (100, 100))).size == (100, 100)


def test_json_has_category_ids_names_and_rounded_boxes(detections: Detections) -> None:
    content = json.loads(detections.to_json())
    assert content["image"] == "image.jpg"
    assert content["objects"][1] == {"name": "bottle", "category_id": 44, "score": 0.75, "box": [-5, 50, 20, 120]}


def test_coco_results_have_xywh_and_category_ids(detections: Detections) -> None:
    first = detections.to_coco(7)[0]
    assert first == {"image_id": 7, "category_id": 18, "bbox": [10, 20, 20, 40], "score": pytest.approx(0.9)}


def test_yolo_rows_are_clipped_to_the_image(detections: Detections) -> None:
    rows = detections.to_yolo().splitlines()
    # the second is clipped to 0 .. 20, 50 .. 100; the third lies outside
    assert rows == ["0 0.200000 0.400000 0.200000 0.400000", "1 0.100000 0.750000 0.200000 0.500000"]
    assert detections.to_yolo(with_scores=True).splitlines()[0].endswith(" 0.900000")
    assert detections.to_yolo(size=(200, 200)).splitlines()[0] == "0 0.100000 0.200000 0.100000 0.200000"
    with pytest.raises(ValueError, match="size is unknown"):
        detections.scale(2).to_yolo()


def test_yolo_rows_are_read_back(detections: Detections) -> None:
    from detrkit.data.formats.yolo import read_row

    label, box = read_row(detections.to_yolo().splitlines()[0], "here")
    assert label == 0
    assert [round(100 * side, 3) for side in box] == [10, 20, 30, 60]


def test_data_frame_has_a_row_per_object(detections: Detections) -> None:
    table = detections.to_pandas()
    assert list(table.columns) == ["image", "class_name", "label", "category_id", "score", "x1", "y1", "x2", "y2"]
    assert table.loc[1].to_dict() == {
        **{"image": "image.jpg", "class_name": "bottle", "label": 1, "category_id": 44, "score": 0.75},
        **{"x1": -5, "y1": 50, "x2": 20, "y2": 120},
    }
    assert len(detections[[]].to_pandas()) == 0


@pytest.mark.filterwarnings("ignore:OpenCV:UserWarning")  # about a slower fallback
def test_supervision_has_the_same_objects(masked: Detections) -> None:
    converted = masked.to_supervision()
    assert converted.xyxy.tolist() == masked.boxes.tolist()
    assert converted.class_id.tolist() == [0, 1, 0]
    assert converted["category_id"].tolist() == [18, 44, 18]
    assert converted["class_name"].tolist() == ["dog", "bottle", "dog"]
    assert masked.masks is not None
    np.testing.assert_array_equal(converted.mask, masked.masks)
    assert len(masked[[]].to_supervision()) == 0


@pytest.mark.parametrize("package", ["pandas", "supervision"])
def test_missing_package_is_named_in_the_error(
    detections: Detections, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=f"to_{package} needs the package {package}; install it with: .*pip install"):
        getattr(detections, f"to_{package}")()


def test_scaled_and_translated_detections_have_no_image_size(detections: Detections) -> None:
    assert detections.translate((5, 7)).boxes[0].tolist() == [15, 27, 35, 67]
    assert detections.scale(2).boxes[0].tolist() == [20, 40, 60, 120]
    assert detections.translate((5, 7)).size is None


def test_detections_are_filtered_by_score_class_and_area() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 2, 3], [0, 0, 100, 1], [5, 5, 4, 9]])
    ids = torch.tensor([3, 7, 3, 9])
    names = ("cat", "dog, large", "cat", "fish")
    found = Detections(boxes, torch.tensor([0.9, 0.8, 0.5, 0.4]), torch.tensor([0, 1, 0, 2]), ids, names)
    assert found.areas.tolist() == [100, 6, 100, 0]
    assert found.filter(min_score=0.5).scores.tolist() == pytest.approx([0.9, 0.8, 0.5])
    assert found.filter(classes="cat").class_names == ("cat", "cat")
    assert found.filter(classes="dog, large").class_names == ("dog, large",)
    assert found.filter(classes="cat,fish").class_names == ("cat", "cat", "fish")
    assert found.filter(classes=iter([7, "fish"])).class_names == ("dog, large", "fish")
    assert found.filter(classes=np.int64(9)).class_names == ("fish",)
    assert found.filter(min_area=7, max_area=100, min_score=0.6).class_names == ("cat",)
    assert len(found.filter()) == 4
    assert len(found[:0].filter(min_score=0.5, classes=["cat"], min_area=1)) == 0
