"""Set criterion: exact small numbers, then properties."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detrkit import Predictions, SetCriterion, Target
from detrkit.losses.masks import mask_losses
from detrkit.losses.matcher import HungarianMatcher


def target(boxes: list[list[float]], labels: list[int]) -> Target:
    return Target(torch.tensor(boxes).reshape(-1, 4), torch.tensor(labels, dtype=torch.int64))


def predictions(layers: int, images: int, queries: int, classes: int, seed: int = 0) -> Predictions:
    torch.manual_seed(seed)
    boxes = (0.2 + 0.3 * torch.rand(layers, images, queries, 4)).requires_grad_()
    return Predictions(torch.randn(layers, images, queries, classes + 1, requires_grad=True), boxes)


def test_losses_of_two_queries_and_one_object_are_exact() -> None:
    # one image, two queries, one class; the object is the box of query 1, shifted by 0.1
    logits = torch.tensor([[[[0.0, 0.0], [math.log(3.0), 0.0]]]])
    boxes = torch.tensor([[[[0.2, 0.2, 0.2, 0.2], [0.5, 0.5, 0.2, 0.2]]]])
    output = SetCriterion(1)(Predictions(logits, boxes), [target([[0.6, 0.5, 0.2, 0.2]], [0])])
    assert [x.tolist() for x in output.matches.pairs(-1, 0)] == [[1], [0]]
    # cross-entropy: the target of query 0 is no-object (weight 0.1, -log 0.5), of query 1 the object (weight 1, -log 0.75)
    expected_ce = (0.1 * math.log(2) - math.log(0.75)) / 1.1
    # boxes overlap by half: intersection 0.02, union 0.06, hull 0.06
    assert output.losses["loss_ce"].item() == pytest.approx(expected_ce)
    assert output.losses["loss_bbox"].item() == pytest.approx(0.1)
    assert output.losses["loss_giou"].item() == pytest.approx(2 / 3)
    assert output.total.item() == pytest.approx(expected_ce + 5 * 0.1 + 2 * 2 / 3)
    assert output.losses["class_error"].item() == 0
    # query 0 has equal scores, of which argmax takes the first: two queries predict an object, one exists
    assert output.losses["cardinality_error"].item() == 1


def test_giou_loss_of_disjoint_boxes_grows_with_their_distance() -> None:
    # no intersection, union 0.08, hull 0.6 by 0.2; no query predicts the object
    logits, boxes = torch.tensor([[[[0.0, 1.0]]]]), torch.tensor([[[[0.2, 0.5, 0.2, 0.2]]]])
    output = SetCriterion(1)(Predictions(logits, boxes), [target([[0.6, 0.5, 0.2, 0.2]], [0])])
    assert output.losses["loss_giou"].item() == pytest.approx(1 + 0.04 / 0.12)
    assert output.losses["cardinality_error"].item() == 1


def test_every_layer_is_matched_independently() -> None:
    boxes = torch.tensor([[0.2, 0.2, 0.1, 0.1], [0.8, 0.8, 0.1, 0.1]])
    swapped = torch.stack([boxes, boxes.flip(0)])[:, None]
    matches = HungarianMatcher()(torch.zeros(2, 1, 2, 3), swapped, [target(boxes.tolist(), [0, 1])])
    assert matches.pairs(0, 0)[1].tolist() == [0, 1]
    assert matches.pairs(1, 0)[1].tolist() == [1, 0]


def test_batched_layers_equal_each_layer_alone() -> None:
    whole = predictions(3, 2, 5, 4)
    targets = [target([[0.3, 0.3, 0.2, 0.2], [0.5, 0.6, 0.3, 0.1]], [1, 3]), target([[0.4, 0.5, 0.1, 0.3]], [0])]
    output = SetCriterion(4)(whole, targets)
    total = 0.0
    for layer in range(3):
        one = Predictions(whole.layer_class_logits[layer : layer + 1], whole.layer_boxes[layer : layer + 1])
        alone = SetCriterion(4)(one, targets)
        suffix = "" if layer == 2 else f"_{layer}"
        for part in ("loss_ce", "loss_bbox", "loss_giou", "cardinality_error"):
            torch.testing.assert_close(output.losses[part + suffix], alone.losses[part])
        total += alone.total.item()
    assert output.total.item() == pytest.approx(total, rel=1e-5)


@settings(max_examples=25, deadline=None)
@given(counts=st.lists(st.integers(0, 7), min_size=1, max_size=3), seed=st.integers(0, 1000))
def test_any_number_of_objects_gives_finite_losses_and_gradients(counts: list[int], seed: int) -> None:
    """Including no objects, and more objects than queries."""
    predicted = predictions(2, len(counts), 4, 3, seed)
    targets = [Target(0.3 + 0.2 * torch.rand(count, 4), torch.randint(3, (count,))) for count in counts]
    output = SetCriterion(3)(predicted, targets)
    output.total.backward()
    assert output.total.isfinite()
    assert predicted.layer_class_logits.grad is not None
    assert predicted.layer_class_logits.grad.isfinite().all()
    assert len(output.matches.queries) == 2 * sum(min(count, 4) for count in counts)
    if not sum(counts):
        assert output.losses["loss_bbox"] == 0
        assert output.losses["class_error"].isnan()


def test_order_of_objects_does_not_change_the_loss() -> None:
    predicted = predictions(1, 1, 6, 3)
    boxes, labels = 0.3 + 0.2 * torch.rand(4, 4), torch.randint(3, (4,))
    order = torch.tensor([2, 0, 3, 1])
    first = SetCriterion(3)(predicted, [Target(boxes, labels)])
    second = SetCriterion(3)(predicted, [Target(boxes[order], labels[order])])
    torch.testing.assert_close(first.total, second.total)


def test_loss_of_bfloat16_predictions_is_computed_in_float32() -> None:
    predicted = predictions(1, 1, 6, 3)
    targets = [Target(0.3 + 0.2 * torch.rand(4, 4), torch.randint(3, (4,)))]
    rounded = Predictions(predicted.layer_class_logits.bfloat16(), predicted.layer_boxes.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        output = SetCriterion(3)(rounded, targets)
    assert output.total.dtype == torch.float32
    as_float = Predictions(rounded.layer_class_logits.float(), rounded.layer_boxes.float())
    torch.testing.assert_close(output.total, SetCriterion(3)(as_float, targets).total)


@pytest.mark.parametrize("factor", [torch.nan, torch.inf])
def test_nonfinite_predictions_give_a_nonfinite_loss(factor: float) -> None:
    predicted = predictions(1, 1, 3, 2)
    output = SetCriterion(2)(
        Predictions(predicted.layer_class_logits * factor, predicted.layer_boxes), [target([[0.5, 0.5, 0.1, 0.1]], [0])]
    )
    assert not output.total.isfinite()
    assert output.losses["loss_bbox"].isfinite()


def test_losses_of_accumulated_batches_add_up_to_that_of_one_batch() -> None:
    predicted = predictions(2, 4, 5, 3)
    targets = [target([[0.5, 0.5, 0.2, 0.1]] * count, [1] * count) for count in (0, 7, 1, 2)]
    loss = SetCriterion(3)
    normalizers = loss.normalizers(targets, num_queries=5)
    assert normalizers.num_boxes == 10
    assert normalizers.ce_normalizer == pytest.approx(8 + 0.1 * 12)  # 5 of the 7 are matched
    halves = [
        loss(
            Predictions(predicted.layer_class_logits[:, part], predicted.layer_boxes[:, part]),
            targets[part],
            normalizers,
        ).total
        for part in (slice(0, 3), slice(3, 4))
    ]
    torch.testing.assert_close(sum(halves), loss(predicted, targets).total)


def test_focal_and_dice_loss_of_two_pixels_are_exact() -> None:
    masks = torch.tensor([[[True, False]]])
    target = Target(torch.tensor([[0.25, 0.5, 0.5, 1.0]]), torch.tensor([0]), masks)
    losses = mask_losses(torch.zeros(1, 1, 2), [torch.tensor([0])], [target], padding_invariant=False)
    # probability 1/2 everywhere: entropy log 2, error 1/2; weights 0.25 inside and 0.75 outside
    assert losses[0].item() == pytest.approx((0.25 + 0.75) / 2 * 0.25 * math.log(2))
    # intersection 1/2, areas 1 and 1
    assert losses[1].item() == pytest.approx(1 - (1 + 1) / (1 + 1 + 1))
