"""The set loss: small numbers by hand, then what must never happen."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detrkit import Predictions, SetCriterion, Target
from detrkit.losses.masks import dice_loss, sigmoid_focal_loss
from detrkit.losses.matcher import HungarianMatcher


def target(boxes: list[list[float]], labels: list[int]) -> Target:
    return Target(torch.tensor(boxes).reshape(-1, 4), torch.tensor(labels, dtype=torch.int64))


def predictions(layers: int, photos: int, queries: int, classes: int, seed: int = 0) -> Predictions:
    torch.manual_seed(seed)
    boxes = (0.2 + 0.3 * torch.rand(layers, photos, queries, 4)).requires_grad_()
    return Predictions(torch.randn(layers, photos, queries, classes + 1, requires_grad=True), boxes)


def test_losses_by_hand() -> None:
    # one photo, two queries, one class; the object is where query 1 is, shifted by 0.1
    logits = torch.tensor([[[[0.0, 0.0], [math.log(3.0), 0.0]]]])
    boxes = torch.tensor([[[[0.2, 0.2, 0.2, 0.2], [0.5, 0.5, 0.2, 0.2]]]])
    report = SetCriterion(1)(Predictions(logits, boxes), [target([[0.6, 0.5, 0.2, 0.2]], [0])])
    assert [x.tolist() for x in report.matches.pairs(-1, 0)] == [[1], [0]]
    # cross entropy: query 0 is no-object (weight 0.1, -log 0.5), query 1 the object (weight 1, -log 0.75)
    expected_ce = (0.1 * math.log(2) - math.log(0.75)) / 1.1
    # boxes overlap by half: intersection 0.02, union 0.06, hull 0.06
    assert report.parts["loss_ce"].item() == pytest.approx(expected_ce)
    assert report.parts["loss_bbox"].item() == pytest.approx(0.1)
    assert report.parts["loss_giou"].item() == pytest.approx(2 / 3)
    assert report.total.item() == pytest.approx(expected_ce + 5 * 0.1 + 2 * 2 / 3)
    assert report.parts["class_error"].item() == 0
    # query 0's scores are equal, and the first wins: two queries claim an object, one exists
    assert report.parts["cardinality_error"].item() == 1


def test_boxes_apart_are_told_how_far() -> None:
    # no intersection, union 0.08, hull 0.6 by 0.2; nothing is found where an object is
    logits, boxes = torch.tensor([[[[0.0, 1.0]]]]), torch.tensor([[[[0.2, 0.5, 0.2, 0.2]]]])
    report = SetCriterion(1)(Predictions(logits, boxes), [target([[0.6, 0.5, 0.2, 0.2]], [0])])
    assert report.parts["loss_giou"].item() == pytest.approx(1 + 0.04 / 0.12)
    assert report.parts["cardinality_error"].item() == 1


def test_every_layer_is_matched_for_itself() -> None:
    boxes = torch.tensor([[0.2, 0.2, 0.1, 0.1], [0.8, 0.8, 0.1, 0.1]])
    swapped = torch.stack([boxes, boxes.flip(0)])[:, None]
    matches = HungarianMatcher()(torch.zeros(2, 1, 2, 3), swapped, [target(boxes.tolist(), [0, 1])])
    assert matches.pairs(0, 0)[1].tolist() == [0, 1]
    assert matches.pairs(1, 0)[1].tolist() == [1, 0]


def test_all_layers_at_once_equal_each_layer_alone() -> None:
    whole = predictions(3, 2, 5, 4)
    targets = [target([[0.3, 0.3, 0.2, 0.2], [0.5, 0.6, 0.3, 0.1]], [1, 3]), target([[0.4, 0.5, 0.1, 0.3]], [0])]
    report = SetCriterion(4)(whole, targets)
    total = 0.0
    for layer in range(3):
        one = Predictions(whole.layer_class_logits[layer : layer + 1], whole.layer_boxes[layer : layer + 1])
        alone = SetCriterion(4)(one, targets)
        suffix = "" if layer == 2 else f"_{layer}"
        for part in ("loss_ce", "loss_bbox", "loss_giou", "cardinality_error"):
            torch.testing.assert_close(report.parts[part + suffix], alone.parts[part])
        total += alone.total.item()
    assert report.total.item() == pytest.approx(total, rel=1e-5)


@settings(max_examples=25, deadline=None)
@given(counts=st.lists(st.integers(0, 7), min_size=1, max_size=3), seed=st.integers(0, 1000))
def test_any_number_of_objects_is_finite_and_learns(counts: list[int], seed: int) -> None:
    """None at all, and more than there are queries, included."""
    found = predictions(2, len(counts), 4, 3, seed)
    targets = [Target(0.3 + 0.2 * torch.rand(count, 4), torch.randint(3, (count,))) for count in counts]
    report = SetCriterion(3)(found, targets)
    report.total.backward()
    assert report.total.isfinite()
    assert found.layer_class_logits.grad is not None
    assert found.layer_class_logits.grad.isfinite().all()
    assert len(report.matches.queries) == 2 * sum(min(count, 4) for count in counts)
    if not sum(counts):
        assert report.parts["loss_bbox"] == 0
        assert report.parts["class_error"].isnan()


def test_the_order_of_objects_does_not_matter() -> None:
    found = predictions(1, 1, 6, 3)
    boxes, labels = 0.3 + 0.2 * torch.rand(4, 4), torch.randint(3, (4,))
    order = torch.tensor([2, 0, 3, 1])
    first = SetCriterion(3)(found, [Target(boxes, labels)])
    second = SetCriterion(3)(found, [Target(boxes[order], labels[order])])
    torch.testing.assert_close(first.total, second.total)


def test_bfloat16_predictions_are_compared_in_float32() -> None:
    found = predictions(1, 1, 6, 3)
    targets = [Target(0.3 + 0.2 * torch.rand(4, 4), torch.randint(3, (4,)))]
    rounded = Predictions(found.layer_class_logits.bfloat16(), found.layer_boxes.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        report = SetCriterion(3)(rounded, targets)
    assert report.total.dtype == torch.float32
    as_float = Predictions(rounded.layer_class_logits.float(), rounded.layer_boxes.float())
    torch.testing.assert_close(report.total, SetCriterion(3)(as_float, targets).total)


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_predictions_that_are_not_finite_give_a_loss_that_is_not(broken: float) -> None:
    found = predictions(1, 1, 3, 2)
    report = SetCriterion(2)(
        Predictions(found.layer_class_logits * broken, found.layer_boxes), [target([[0.5, 0.5, 0.1, 0.1]], [0])]
    )
    assert not report.total.isfinite()
    assert report.parts["loss_bbox"].isfinite()


def test_batches_of_one_step_add_up_to_the_loss_of_all() -> None:
    found = predictions(2, 4, 5, 3)
    targets = [target([[0.5, 0.5, 0.2, 0.1]] * count, [1] * count) for count in (0, 7, 1, 2)]
    loss = SetCriterion(3)
    norms = loss.normalizers(targets, num_queries=5)
    assert norms.num_boxes == 10
    assert norms.cls_loss_coef == pytest.approx(8 + 0.1 * 12)  # 5 of the 7 find a query
    halves = [
        loss(Predictions(found.layer_class_logits[:, part], found.layer_boxes[:, part]), targets[part], norms).total
        for part in (slice(0, 3), slice(3, 4))
    ]
    torch.testing.assert_close(sum(halves), loss(found, targets).total)


def test_mask_losses_by_hand() -> None:
    logits = torch.tensor([[[0.0, 0.0]]])
    truth = torch.tensor([[[1.0, 0.0]]])
    # probability 1/2 everywhere: entropy log 2, missed 1/2; weights 0.25 inside and 0.75 outside
    assert sigmoid_focal_loss(logits, truth).item() == pytest.approx((0.25 + 0.75) / 2 * 0.25 * math.log(2))
    # overlap 2 * 1/2, areas 1 and 1
    assert dice_loss(logits, truth).item() == pytest.approx(1 - (1 + 1) / (1 + 1 + 1))
