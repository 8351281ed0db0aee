"""Conversions, IoU and generalised IoU of boxes: exact values, then properties."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from detrkit.ops.boxes import box_area, cxcywh_to_xyxy, generalized_iou, xyxy_to_cxcywh

UNIT = st.floats(0, 1, width=32)


def boxes_from(numbers: list[tuple[float, ...]]) -> torch.Tensor:
    corners = torch.tensor(numbers, dtype=torch.float64).reshape(-1, 2, 2)
    return torch.cat([corners.amin(1), corners.amax(1)], dim=-1)


BOXES = st.lists(st.tuples(UNIT, UNIT, UNIT, UNIT), min_size=1, max_size=5).map(boxes_from)


def test_conversions_of_one_box_equal_values_by_hand() -> None:
    assert cxcywh_to_xyxy(torch.tensor([5.0, 4.0, 2.0, 6.0])).tolist() == [4.0, 1.0, 6.0, 7.0]
    assert xyxy_to_cxcywh(torch.tensor([4.0, 1.0, 6.0, 7.0])).tolist() == [5.0, 4.0, 2.0, 6.0]


def test_generalized_iou_of_three_pairs_equals_values_by_hand() -> None:
    square = torch.tensor([0.0, 0.0, 2.0, 2.0])
    half = torch.tensor([1.0, 0.0, 3.0, 2.0])  # intersection 2, union 6, hull 6
    apart = torch.tensor([3.0, 0.0, 4.0, 2.0])  # union 6, hull 8
    assert generalized_iou(square, square).item() == 1.0
    torch.testing.assert_close(generalized_iou(square, half), torch.tensor(1 / 3))
    torch.testing.assert_close(generalized_iou(square, apart), torch.tensor(-2 / 8))


def test_generalized_iou_of_boxes_without_area_is_zero_with_finite_gradient() -> None:
    point = torch.tensor([[0.5, 0.5, 0.5, 0.5]], requires_grad=True)
    value = generalized_iou(point, torch.tensor([[0.5, 0.5, 0.5, 0.5]]))
    value.sum().backward()
    assert value.item() == 0.0
    assert point.grad is not None
    assert point.grad.isfinite().all()


@given(BOXES)
def test_conversions_are_inverses(boxes: torch.Tensor) -> None:
    torch.testing.assert_close(cxcywh_to_xyxy(xyxy_to_cxcywh(boxes)), boxes)


@given(BOXES, BOXES)
def test_generalized_iou_is_symmetric_bounded_and_at_most_the_iou(first: torch.Tensor, second: torch.Tensor) -> None:
    giou = generalized_iou(first[:, None], second)
    torch.testing.assert_close(giou, generalized_iou(second[:, None], first).T)
    assert (giou >= -1 - 1e-9).all()
    assert (giou <= 1 + 1e-9).all()
    corner = torch.minimum(first[:, None, 2:], second[:, 2:]) - torch.maximum(first[:, None, :2], second[:, :2])
    intersection = corner.clamp(min=0).prod(-1)
    union = box_area(first)[:, None] + box_area(second) - intersection
    assert (giou <= intersection / union.clamp(min=1e-300) + 1e-9).all()
