"""Explain the matching of one image: costs, matched pairs, the loss of every query, and the reasons for missed objects.

Equations 1 and 2 and section A.2 of the paper.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from detrkit._internal.text import format_distinctly
from detrkit.data.categories import Categories
from detrkit.losses.classification import Classification, IoUAwareClassification, SigmoidFocalClassification
from detrkit.losses.criterion import SetCriterion
from detrkit.losses.matcher import MatchingCosts
from detrkit.ops.boxes import cxcywh_to_xyxy, elementwise_iou
from detrkit.structures import Predictions, Target

MIN_IOU = 0.5  # of a box that detects an object, as in AP50


@dataclass(frozen=True)
class QueryLoss:
    """Contribution of one query to the loss of the last decoder layer, weighted and normalised as in the total.

    Attributes:
        query: index of the query.
        object: index of the object it is matched to; None for "no object".
        unweighted_class_loss: classification loss before weights and normalisation; see `MatchingExplanation.class_loss`.
        loss_ce: contribution to cls_loss_coef * loss_ce.
        loss_bbox: contribution to bbox_loss_coef * loss_bbox; 0 for unmatched queries.
        loss_giou: contribution to giou_loss_coef * loss_giou; 0 for unmatched queries.
    """

    query: int
    object: int | None
    unweighted_class_loss: float
    loss_ce: float
    loss_bbox: float
    loss_giou: float

    @property
    def total(self) -> float:
        """Sum of the three losses."""
        return self.loss_ce + self.loss_bbox + self.loss_giou


@dataclass(frozen=True)
class ObjectOutcome:
    """Detection of a ground truth object, and by which query.

    Attributes:
        object: index of the object.
        label: its class, 0..K-1.
        matched_query: query it is matched to in the loss; None if there are more objects than queries.
        detected_by: query that detects it (same class, IoU of at least 0.5), or None.
        score: score of that query; the object is detected at thresholds up to it.
        best_query: query with the highest IoU; None if no box overlaps the object.
        best_iou: that IoU; 0 if no box overlaps the object.
        reason: why it is missed if `detected_by` is None, or at thresholds above `score`; see `reason_at`.
    """

    object: int
    label: int
    matched_query: int | None
    detected_by: int | None
    score: float | None
    best_query: int | None
    best_iou: float
    reason: str

    def is_detected(self, threshold: float) -> bool:
        """Return whether the object is detected by a query with a score of at least `threshold`."""
        return self.score is not None and self.score >= threshold

    def reason_at(self, threshold: float) -> str:
        """Return why the object is missed at a threshold, with enough digits to tell the score from the threshold."""
        if self.score is None:
            return self.reason
        score, limit = format_distinctly(self.score, threshold)
        return f"{self.reason}: {score} is below the threshold of {limit}"


@dataclass(frozen=True)
class MatchingExplanation:
    """Matching of one image; of the last decoder layer unless stated otherwise.

    Attributes:
        cost_class: weighted classification cost; for softmax models, minus the probability of the object's class.
        cost_bbox: weighted L1 cost.
        cost_giou: weighted GIoU cost, minus the GIoU.
        layer_pairs: matched (query, object) pairs after every decoder layer.
        iou: IoU of every query and object.
        losses: of every query.
        outcomes: of every object.
        class_loss: name of `QueryLoss.unweighted_class_loss`.
    """

    cost_class: Float[Tensor, "Q N"]
    cost_bbox: Float[Tensor, "Q N"]
    cost_giou: Float[Tensor, "Q N"]
    layer_pairs: tuple[tuple[tuple[int, int], ...], ...]
    iou: Float[Tensor, "Q N"]
    losses: tuple[QueryLoss, ...]
    outcomes: tuple[ObjectOutcome, ...]
    class_loss: str

    @property
    def cost(self) -> Float[Tensor, "Q N"]:
        """Total matching cost."""
        return self.cost_class + self.cost_bbox + self.cost_giou


@torch.no_grad()
def explain_matching(
    predictions: Predictions, target: Target, criterion: SetCriterion, categories: Categories
) -> MatchingExplanation:
    """Match the predictions for one image as in training, and explain the result.

    Args:
        predictions: for one image (B = 1).
        target: its objects.
        criterion: with the loss coefficients of the run, or the published ones.
        categories: classes of the model.
    """
    logits, boxes = predictions.layer_class_logits.float(), predictions.layer_boxes.float()
    matcher = criterion.matcher
    matches = matcher(logits, boxes, [target])
    pairs = tuple(
        tuple(zip(*(indices.tolist() for indices in matches.pairs(layer, 0)), strict=True))
        for layer in range(len(logits))
    )
    terms = matcher.unweighted_costs(logits[-1:], boxes[-1:], [target])
    iou = elementwise_iou(cxcywh_to_xyxy(boxes[-1, 0, :, None]), cxcywh_to_xyxy(target.boxes.float()))
    no_object = predictions.layer_no_object[-1, 0] if predictions.class_scores == "softmax" else None
    return MatchingExplanation(
        cost_class=matcher.cost_class * terms.classification[0, 0],
        cost_bbox=matcher.cost_bbox * terms.distance[0, 0],
        cost_giou=-matcher.cost_giou * terms.giou[0, 0],
        layer_pairs=pairs,
        iou=iou,
        losses=tuple(_query_losses(logits[-1, 0], terms, iou, dict(pairs[-1]), target, criterion)),
        outcomes=tuple(
            _object_outcomes(predictions.probabilities[0], no_object, iou, dict(pairs[-1]), target, categories.names)
        ),
        class_loss=_class_loss_name(criterion.classification),
    )


_CLASS_LOSSES = {"loss_vfl": "varifocal loss", "loss_mal": "matchability-aware loss"}


def _class_loss_name(classification: Classification) -> str:
    if classification.name in _CLASS_LOSSES:
        return _CLASS_LOSSES[classification.name]
    if isinstance(classification, IoUAwareClassification):
        return "IoU-aware loss"
    return "focal loss" if isinstance(classification, SigmoidFocalClassification) else "−log p"  # noqa: RUF001  # minus


def _query_losses(
    logits: Float[Tensor, "Q K1"],
    terms: MatchingCosts,
    iou: Float[Tensor, "Q N"],
    object_of_query: dict[int, int],
    target: Target,
    criterion: SetCriterion,
) -> list[QueryLoss]:
    """Split the loss of the last layer into the contributions of the queries."""
    norms = criterion.normalizers([target], num_queries=len(logits))
    num_boxes = float(norms.num_boxes)
    objects = [object_of_query.get(query) for query in range(len(logits))]
    target_classes = torch.tensor(
        [criterion.num_classes if one is None else int(target.labels[one]) for one in objects]
    )
    matched_iou = logits.new_zeros(len(logits))
    matched_iou[list(object_of_query)] = iou[list(object_of_query), list(object_of_query.values())]
    class_losses, unweighted = criterion.query_class_losses(
        logits, target_classes.to(logits.device), norms, matched_iou
    )
    losses = []
    for query, index in enumerate(objects):
        loss_bbox = loss_giou = 0.0
        if index is not None:
            loss_bbox = criterion.weight_dict["loss_bbox"] * float(terms.distance[0, 0, query, index]) / num_boxes
            loss_giou = criterion.weight_dict["loss_giou"] * (1 - float(terms.giou[0, 0, query, index])) / num_boxes
        losses.append(
            QueryLoss(query, index, float(unweighted[query]), float(class_losses[query]), loss_bbox, loss_giou)
        )
    return losses


def _object_outcomes(
    probabilities: Float[Tensor, "Q K"],
    no_object: Float[Tensor, "Q"] | None,
    iou: Float[Tensor, "Q N"],
    object_of_query: dict[int, int],
    target: Target,
    names: Sequence[str],
) -> list[ObjectOutcome]:
    scores, labels = probabilities.max(-1)
    detecting_query = _detecting_queries(scores, labels, iou, target)
    query_of_object = {index: query for query, index in object_of_query.items()}
    outcomes = []
    for index, label in enumerate(target.labels.tolist()):
        query = detecting_query.get(index)
        best = int(iou[:, index].argmax())
        outcomes.append(
            ObjectOutcome(
                object=index,
                label=label,
                matched_query=query_of_object.get(index),
                detected_by=query,
                score=None if query is None else float(scores[query]),
                best_query=best if iou[best, index] > 0 else None,
                best_iou=float(iou[best, index]),
                reason=_reason_below_threshold(query, index, no_object, iou)
                if query is not None
                else _reason_undetected(index, label, probabilities, iou, detecting_query, names),
            )
        )
    return outcomes


def _detecting_queries(
    scores: Float[Tensor, "Q"], labels: Tensor, iou: Float[Tensor, "Q N"], target: Target
) -> dict[int, int]:
    """Assign queries to the objects they detect: by descending score, each to the remaining object with the highest IoU.

    This is COCO's greedy matching, so that the result at a threshold is this one without the queries below it.
    """
    detecting_query: dict[int, int] = {}
    for query in scores.argsort(descending=True, stable=True).tolist():
        is_candidate = (target.labels == labels[query]) & (iou[query] >= MIN_IOU)
        is_candidate[list(detecting_query)] = False
        if is_candidate.any():
            detecting_query[int((iou[query] * is_candidate).argmax())] = query
    return detecting_query


def _reason_below_threshold(
    query: int, index: int, no_object: Float[Tensor, "Q"] | None, iou: Float[Tensor, "Q N"]
) -> str:
    rest = "" if no_object is None else f" (no object: {no_object[query]:.2f})"
    return f"query {query} predicts the right class and box (IoU {iou[query, index]:.2f}), but with a low score{rest}"


def _reason_undetected(
    index: int,
    label: int,
    probabilities: Float[Tensor, "Q K"],
    iou: Float[Tensor, "Q N"],
    detecting_query: dict[int, int],
    names: Sequence[str],
) -> str:
    """Explain why no query detects an object at any threshold."""
    num_queries, num_objects = iou.shape
    if num_objects > num_queries:
        return f"there are {num_objects} objects but only {num_queries} queries, and a query detects at most one object"
    scores, labels = probabilities.max(-1)
    is_close = iou[:, index] >= MIN_IOU
    is_right = is_close & (labels == label)
    if is_right.any():
        query = int((scores * is_right).argmax())
        other = next((detected for detected, by in detecting_query.items() if by == query), None)
        return f"query {query} has a box on it, but detects the nearby object {other}; no other query predicts this one"
    if is_close.any():
        query = int((scores * is_close).argmax())
        return (
            f"query {query} has a box on it (IoU {iou[query, index]:.2f}), but predicts {names[int(labels[query])]} "
            f"({scores[query]:.2f}; {names[label]}: {probabilities[query, label]:.2f})"
        )
    best = int(iou[:, index].argmax())
    if not iou[best, index]:
        return "no predicted box overlaps it"
    return (
        f"no query has a box on it; the closest box is that of query {best} (IoU {iou[best, index]:.2f}, "
        f"{names[int(labels[best])]} {scores[best]:.2f})"
    )
