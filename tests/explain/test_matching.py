"""Explained matching: costs and losses equal those of the criterion, and every missed object has a reason."""

import math
from dataclasses import replace

import pytest
import torch

from detrkit import Predictions, SetCriterion, Target
from detrkit.data.categories import Categories
from detrkit.explain.matching import MatchingExplanation, explain_matching
from detrkit.losses.classification import (
    Classification,
    IoUAwareClassification,
    MatchabilityAwareClassification,
    SigmoidFocalClassification,
    SoftmaxClassification,
    VarifocalClassification,
)
from detrkit.structures import ClassScores

CATEGORIES = Categories((1, 2), ("cat", "dog"))


def predictions_of(boxes: list[list[float]], probabilities: list[list[float]]) -> Predictions:
    """Predictions of one layer: boxes cxcywh, probabilities of cat, dog and no object."""
    return Predictions(torch.tensor(probabilities).log()[None, None], torch.tensor(boxes)[None, None])


def explained(predictions: Predictions, boxes: list[list[float]], labels: list[int]) -> MatchingExplanation:
    target = Target(torch.tensor(boxes).reshape(-1, 4), torch.tensor(labels, dtype=torch.int64))
    return explain_matching(predictions, target, SetCriterion(2), CATEGORIES)


HERE, BESIDE, FAR = [0.3, 0.3, 0.2, 0.2], [0.32, 0.3, 0.2, 0.2], [0.8, 0.8, 0.1, 0.1]


def test_costs_and_losses_of_two_queries() -> None:
    matching = explained(predictions_of([FAR, HERE], [[0.1, 0.1, 0.8], [0.5, 0.25, 0.25]]), [HERE], [0])
    assert matching.layer_pairs == (((1, 0),),)
    assert matching.cost[1].tolist() == pytest.approx([-0.5 - 2])  # equal boxes: L1 distance 0, GIoU 1
    assert matching.cost_bbox[0].item() == pytest.approx(5 * (0.5 + 0.5 + 0.1 + 0.1))
    unmatched, matched = matching.losses
    assert (matched.object, unmatched.object) == (0, None)
    assert matched.loss_ce == pytest.approx(-math.log(0.5) / 1.1)
    # the logarithm of 0.8 is 0.22, but its terms, which are rounded, are about 1
    assert unmatched.loss_ce == pytest.approx(-0.1 * math.log(0.8) / 1.1, rel=1e-5)
    assert matched.loss_bbox == pytest.approx(0, abs=1e-5)
    assert matched.loss_giou == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("num_objects", [0, 1, 5, 9])
@pytest.mark.parametrize(
    "classification",
    [SoftmaxClassification(3, 0.3), SigmoidFocalClassification(3), IoUAwareClassification(3)],
    ids=repr,
)
def test_losses_of_the_queries_sum_to_those_of_the_criterion(num_objects: int, classification: Classification) -> None:
    torch.manual_seed(num_objects)
    scores: ClassScores = "softmax" if isinstance(classification, SoftmaxClassification) else "sigmoid"
    logits = torch.randn(3, 1, 7, 4 if scores == "softmax" else 3)
    predictions = Predictions(logits, 0.2 + 0.3 * torch.rand(3, 1, 7, 4), class_scores=scores)
    target = Target(0.2 + 0.3 * torch.rand(num_objects, 4), torch.randint(0, 3, (num_objects,)))
    criterion = SetCriterion(3, cls_loss_coef=2, eos_coef=0.3, class_scores=scores, classification=classification)
    parts = criterion(predictions, [target]).losses
    matching = explain_matching(predictions, target, criterion, Categories((1, 2, 3), ("a", "b", "c")))
    assert sum(one.loss_ce for one in matching.losses) == pytest.approx(2 * parts["loss_ce"].item(), rel=1e-4)
    assert sum(one.loss_bbox for one in matching.losses) == pytest.approx(5 * parts["loss_bbox"].item(), rel=1e-4)
    assert sum(one.loss_giou for one in matching.losses) == pytest.approx(2 * parts["loss_giou"].item(), rel=1e-4)
    costs = criterion.matcher.costs(predictions.layer_class_logits, predictions.layer_boxes, [target])
    torch.testing.assert_close(matching.cost, costs[-1, 0])
    assert len(matching.layer_pairs) == 3
    assert all(len(pairs) == min(num_objects, 7) for pairs in matching.layer_pairs)


def test_object_is_detected_at_thresholds_up_to_the_score_of_its_query() -> None:
    detected, missed = explained(
        predictions_of([HERE, FAR], [[0.9, 0.05, 0.05], [0.1, 0.3, 0.6]]), [BESIDE, FAR], [0, 1]
    ).outcomes
    assert (detected.detected_by, detected.matched_query, detected.best_query) == (0, 0, 0)
    assert detected.score == pytest.approx(0.9)
    assert detected.best_iou == pytest.approx(0.18 / 0.22)
    assert missed.score == pytest.approx(0.3)
    why = "query 1 predicts the right class and box (IoU 1.00), but with a low score (no object: 0.60)"
    assert missed.reason == why
    assert missed.reason_at(0.5) == f"{why}: 0.30 is below the threshold of 0.50"
    close = replace(missed, score=0.49999997)
    assert close.reason_at(0.5) == f"{why}: 0.49999997 is below the threshold of 0.50000000"


def reason(
    boxes: list[list[float]], probabilities: list[list[float]], objects: list[list[float]], labels: list[int]
) -> str:
    outcome = explained(predictions_of(boxes, probabilities), objects, labels).outcomes[-1]
    assert outcome.detected_by is outcome.score is None
    return outcome.reason


def test_reasons_for_undetected_objects() -> None:
    cat, dog = [0.8, 0.1, 0.1], [0.2, 0.7, 0.1]
    assert (
        reason([HERE], [dog], [HERE], [0]) == "query 0 has a box on it (IoU 1.00), but predicts dog (0.70; cat: 0.20)"
    )
    shifted = [[0.44, 0.3, 0.2, 0.2]]  # intersection 0.06 x 0.2, union 0.068
    assert reason([FAR, HERE], [cat, cat], shifted, [0]) == (
        "no query has a box on it; the closest box is that of query 1 (IoU 0.18, cat 0.80)"
    )
    assert reason([HERE, FAR], [cat, dog], [HERE, BESIDE], [0, 0]) == (
        "query 0 has a box on it, but detects the nearby object 0; no other query predicts this one"
    )
    assert reason([HERE], [cat], [HERE, FAR], [0, 0]) == (
        "there are 2 objects but only 1 queries, and a query detects at most one object"
    )


def test_object_that_no_box_overlaps_has_no_best_query() -> None:
    lost = explained(predictions_of([FAR, HERE], [[0.8, 0.1, 0.1]] * 2), [[0.3, 0.8, 0.1, 0.1]], [0]).outcomes[0]
    assert lost.reason == "no predicted box overlaps it"
    assert (lost.best_query, lost.best_iou) == (None, 0)


@pytest.mark.parametrize(
    ("classification", "name", "has_no_object"),
    [
        (SoftmaxClassification(2), "\u2212log p", True),
        (SigmoidFocalClassification(2), "focal loss", False),
        (IoUAwareClassification(2), "IoU-aware loss", False),
        (VarifocalClassification(2), "varifocal loss", False),
        (MatchabilityAwareClassification(2), "matchability-aware loss", False),
    ],
    ids=repr,
)
def test_unweighted_class_loss_and_its_name_depend_on_the_classification(
    classification: Classification, name: str, has_no_object: bool
) -> None:
    scores: ClassScores = "softmax" if isinstance(classification, SoftmaxClassification) else "sigmoid"
    logits = torch.tensor([[1.0, -1.0, 0.0]])[:, : 3 if scores == "softmax" else 2]
    predictions = Predictions(logits[None, None], torch.tensor([HERE])[None, None], class_scores=scores)
    target = Target(torch.tensor([HERE]), torch.tensor([0]))
    matching = explain_matching(
        predictions, target, SetCriterion(2, class_scores=scores, classification=classification), CATEGORIES
    )
    assert matching.class_loss == name
    expected = classification.query_losses(logits, torch.tensor([0]), torch.tensor([1.0]))
    assert matching.losses[0].unweighted_class_loss == pytest.approx(expected.item())
    if name.endswith("p"):
        assert matching.losses[0].unweighted_class_loss == pytest.approx(-math.log(logits[0].softmax(-1)[0]))
    assert ("no object" in matching.outcomes[0].reason) == has_no_object


def test_queries_detect_one_object_each_by_descending_score() -> None:
    matching = explained(predictions_of([HERE, BESIDE], [[0.6, 0.2, 0.2], [0.9, 0.05, 0.05]]), [HERE, BESIDE], [0, 0])
    assert [one.detected_by for one in matching.outcomes] == [0, 1]
    alone = explained(predictions_of([HERE, BESIDE], [[0.6, 0.2, 0.2], [0.9, 0.05, 0.05]]), [HERE], [0])
    assert alone.outcomes[0].detected_by == 1  # query 0 has the better box but the lower score: a duplicate, as in COCO
