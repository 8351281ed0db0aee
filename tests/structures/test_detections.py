"""Detections in other people's forms."""

import sys

import pytest
import torch

from detrkit import Detections
from detrkit.errors import ConfigError


@pytest.fixture
def found() -> Detections:
    return Detections(
        boxes=torch.tensor([[10.0, 20, 30, 60], [-5, 50, 20, 120], [150, 0, 160, 10]]),
        scores=torch.tensor([0.9, 0.75, 0.5]),
        labels=torch.tensor([0, 1, 0]),
        category_ids=torch.tensor([18, 44, 18]),
        class_names=("dog", "bottle", "dog"),
        path="photo.jpg",
        size=(100, 100),
    )


def test_coco_by_hand(found: Detections) -> None:
    first = found.to_coco(7)[0]
    assert first == {"image_id": 7, "category_id": 18, "bbox": [10, 20, 20, 40], "score": pytest.approx(0.9)}


def test_yolo_by_hand(found: Detections) -> None:
    rows = found.to_yolo().splitlines()
    # the second is cut to the photo: 0 .. 20, 50 .. 100; the third lies outside of it
    assert rows == ["0 0.200000 0.400000 0.200000 0.400000", "1 0.100000 0.750000 0.200000 0.500000"]
    assert found.to_yolo(with_scores=True).splitlines()[0].endswith(" 0.900000")
    assert found.to_yolo(size=(200, 200)).splitlines()[0] == "0 0.100000 0.200000 0.100000 0.200000"
    with pytest.raises(ValueError, match="how large"):
        found.scaled(2).to_yolo()


def test_yolo_rows_are_read_back(found: Detections) -> None:
    from detrkit.data.formats.yolo import _read_row

    category, box = _read_row(found.to_yolo().splitlines()[0], "here")
    assert category == 0
    assert [round(100 * side, 3) for side in box] == [10, 20, 30, 60]


def test_pandas_has_a_row_per_object(found: Detections) -> None:
    table = found.to_pandas()
    assert list(table.columns) == ["image", "class_name", "label", "category_id", "score", "x1", "y1", "x2", "y2"]
    assert table.loc[1].to_dict() == {
        **{"image": "photo.jpg", "class_name": "bottle", "label": 1, "category_id": 44, "score": 0.75},
        **{"x1": -5, "y1": 50, "x2": 20, "y2": 120},
    }
    assert len(found.keep([]).to_pandas()) == 0


@pytest.mark.filterwarnings("ignore:OpenCV:UserWarning")  # without which it is only slower
def test_supervision_has_the_same_objects(found: Detections) -> None:
    there = found.to_supervision()
    assert there.xyxy.tolist() == found.boxes.tolist()
    assert there.class_id.tolist() == [0, 1, 0]
    assert there["category_id"].tolist() == [18, 44, 18]
    assert there["class_name"].tolist() == ["dog", "bottle", "dog"]
    assert len(found.keep([]).to_supervision()) == 0


@pytest.mark.parametrize("package", ["pandas", "supervision"])
def test_a_missing_package_is_one_sentence(found: Detections, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=f"to_{package}: needs the package {package}; pip install"):
        getattr(found, f"to_{package}")()


def test_moved_and_scaled_boxes_are_of_another_photo(found: Detections) -> None:
    assert found.moved((5, 7)).boxes[0].tolist() == [15, 27, 35, 67]
    assert found.scaled(2).boxes[0].tolist() == [20, 40, 60, 120]
    assert found.moved((5, 7)).size is None
