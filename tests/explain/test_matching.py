"""The matching explained: the numbers of the loss itself, and a reason for every miss."""

import math

import pytest
import torch

from detrkit import Predictions, SetCriterion, Target
from detrkit.explain.matching import MatchingExplanation, explain_matching
from detrkit.losses.classification import (
    Classification,
    IoUAwareClassification,
    SigmoidFocalClassification,
    SoftmaxClassification,
)
from detrkit.structures import ClassScores

NAMES = ("cat", "dog")


def photo(boxes: list[list[float]], probabilities: list[list[float]]) -> Predictions:
    """Predictions of one layer: boxes cxcywh, probabilities of cat, dog and no object."""
    return Predictions(torch.tensor(probabilities).log()[None, None], torch.tensor(boxes)[None, None])


def explained(predictions: Predictions, boxes: list[list[float]], labels: list[int]) -> MatchingExplanation:
    target = Target(torch.tensor(boxes).reshape(-1, 4), torch.tensor(labels, dtype=torch.int64))
    return explain_matching(predictions, target, SetCriterion(2), NAMES)


HERE, BESIDE, FAR = [0.3, 0.3, 0.2, 0.2], [0.32, 0.3, 0.2, 0.2], [0.8, 0.8, 0.1, 0.1]


def test_costs_and_losses_by_hand() -> None:
    matching = explained(photo([FAR, HERE], [[0.1, 0.1, 0.8], [0.5, 0.25, 0.25]]), [HERE], [0])
    assert matching.layer_pairs == (((1, 0),),)
    assert matching.cost[1].tolist() == pytest.approx([-0.5 - 2])  # the box is met: no distance, GIoU 1
    assert matching.box_cost[0].item() == pytest.approx(5 * (0.5 + 0.5 + 0.1 + 0.1))
    unmatched, matched = matching.losses
    assert (matched.object, unmatched.object) == (0, None)
    assert matched.class_loss == pytest.approx(-math.log(0.5) / 1.1)
    assert unmatched.class_loss == pytest.approx(-0.1 * math.log(0.8) / 1.1)
    assert matched.box_loss == pytest.approx(0, abs=1e-5)
    assert matched.giou_loss == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("num_objects", [0, 1, 5, 9])
@pytest.mark.parametrize(
    "way", [SoftmaxClassification(3, 0.3), SigmoidFocalClassification(3), IoUAwareClassification(3)], ids=repr
)
def test_the_queries_losses_add_up_to_the_reported_ones(num_objects: int, way: Classification) -> None:
    torch.manual_seed(num_objects)
    scores: ClassScores = "softmax" if isinstance(way, SoftmaxClassification) else "sigmoid"
    logits = torch.randn(3, 1, 7, 4 if scores == "softmax" else 3)
    predictions = Predictions(logits, 0.2 + 0.3 * torch.rand(3, 1, 7, 4), class_scores=scores)
    target = Target(0.2 + 0.3 * torch.rand(num_objects, 4), torch.randint(0, 3, (num_objects,)))
    loss = SetCriterion(3, cls_loss_coef=2, eos_coef=0.3, class_scores=scores, classification=way)
    parts = loss(predictions, [target]).losses
    matching = explain_matching(predictions, target, loss, ("a", "b", "c"))
    assert sum(one.class_loss for one in matching.losses) == pytest.approx(2 * parts["loss_ce"].item(), rel=1e-4)
    assert sum(one.box_loss for one in matching.losses) == pytest.approx(5 * parts["loss_bbox"].item(), rel=1e-4)
    assert sum(one.giou_loss for one in matching.losses) == pytest.approx(2 * parts["loss_giou"].item(), rel=1e-4)
    costs = loss.matcher.costs(predictions.layer_class_logits, predictions.layer_boxes, [target])
    torch.testing.assert_close(matching.cost, costs[-1, 0])
    assert len(matching.layer_pairs) == 3
    assert all(len(pairs) == min(num_objects, 7) for pairs in matching.layer_pairs)


def test_an_object_is_found_up_to_the_score_of_its_query() -> None:
    found, missed = explained(photo([HERE, FAR], [[0.9, 0.05, 0.05], [0.1, 0.3, 0.6]]), [BESIDE, FAR], [0, 1]).outcomes
    assert (found.found_by, found.matched_query, found.best_query) == (0, 0, 0)
    assert found.score == pytest.approx(0.9)
    assert found.best_iou == pytest.approx(0.18 / 0.22)
    assert missed.score == pytest.approx(0.3)
    assert missed.if_missed == (
        "query 1 has the class right and the box (IoU 1.00), but says so with a score of 0.30 only, which is below the "
        "threshold (no object: 0.60)"
    )


def reason(
    boxes: list[list[float]], probabilities: list[list[float]], true: list[list[float]], labels: list[int]
) -> str:
    outcome = explained(photo(boxes, probabilities), true, labels).outcomes[-1]
    assert outcome.found_by is outcome.score is None
    return outcome.if_missed


def test_why_objects_are_missed() -> None:
    cat, dog = [0.8, 0.1, 0.1], [0.2, 0.7, 0.1]
    assert (
        reason([HERE], [dog], [HERE], [0]) == "query 0 has a box on it (IoU 1.00), but calls it dog (0.70; cat: 0.20)"
    )
    beside = [[0.44, 0.3, 0.2, 0.2]]  # a strip of 0.06 x 0.2 in common, 0.068 together
    assert reason([FAR, HERE], [cat, cat], beside, [0]) == (
        "no query has a box on it: the closest is that of query 1 (IoU 0.18, cat 0.80)"
    )
    assert reason([HERE, FAR], [cat, dog], [HERE, BESIDE], [0, 0]) == (
        "query 0 has a box on it, but finds object 0 nearby; no other query speaks up for this one"
    )
    assert reason([HERE], [cat], [HERE, FAR], [0, 0]) == (
        "there are 2 objects and only 1 queries, each of which finds one at most"
    )


def test_a_query_that_overlaps_nothing_is_not_called_close() -> None:
    lost = explained(photo([FAR, HERE], [[0.8, 0.1, 0.1]] * 2), [[0.3, 0.8, 0.1, 0.1]], [0]).outcomes[0]
    assert lost.if_missed == "no query has a box on it: none overlaps it at all"
    assert (lost.best_query, lost.best_iou) == (None, 0)


@pytest.mark.parametrize(
    ("way", "measure", "says_no_object"),
    [
        (SoftmaxClassification(2), "\u2212log p", True),
        (SigmoidFocalClassification(2), "focal loss", False),
        (IoUAwareClassification(2), "IoU-aware loss", False),
    ],
    ids=repr,
)
def test_the_loss_of_one_query_is_called_by_its_name(way: Classification, measure: str, says_no_object: bool) -> None:
    scores: ClassScores = "softmax" if isinstance(way, SoftmaxClassification) else "sigmoid"
    logits = torch.tensor([[1.0, -1.0, 0.0]])[:, : 3 if scores == "softmax" else 2]
    predictions = Predictions(logits[None, None], torch.tensor([HERE])[None, None], class_scores=scores)
    target = Target(torch.tensor([HERE]), torch.tensor([0]))
    matching = explain_matching(predictions, target, SetCriterion(2, class_scores=scores, classification=way), NAMES)
    assert matching.measure == measure
    # the loss's own number, as it stands before weight and divisor
    own = way.query_losses(logits, torch.tensor([0]), torch.tensor([1.0]))
    assert matching.losses[0].entropy == pytest.approx(own.item())
    if measure.endswith("p"):
        assert matching.losses[0].entropy == pytest.approx(-math.log(logits[0].softmax(-1)[0]))
    assert ("no object" in matching.outcomes[0].if_missed) == says_no_object


def test_each_query_finds_one_object_and_the_better_score_goes_first() -> None:
    matching = explained(photo([HERE, BESIDE], [[0.6, 0.2, 0.2], [0.9, 0.05, 0.05]]), [HERE, BESIDE], [0, 0])
    assert [one.found_by for one in matching.outcomes] == [0, 1]
    alone = explained(photo([HERE, BESIDE], [[0.6, 0.2, 0.2], [0.9, 0.05, 0.05]]), [HERE], [0])
    assert alone.outcomes[0].found_by == 1  # query 0 fits better, but is second in score: a repetition, to COCO
