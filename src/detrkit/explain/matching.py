"""How predictions of one photo meet its objects: costs, pairs, each query's part of the loss, and why objects are missed.

Input: predictions of one photo and its target. Output: a `Matching`. Paper: equations 1 and 2, section A.2.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torchvision.ops import box_iou

from detrkit.losses.classification import Classification, IoUAwareClassification, SigmoidFocalClassification
from detrkit.losses.criterion import SetCriterion
from detrkit.losses.matcher import MatchingCosts
from detrkit.ops.boxes import cxcywh_to_xyxy
from detrkit.structures import Predictions, Target

CLOSE = 0.5  # least IoU of a box that finds an object, as in AP50


@dataclass(frozen=True)
class QueryLoss:
    """One query's part of the last layer's loss, each term as it enters the total: weighted and divided.

    Attributes:
        query: number of the query.
        object: which object it answers for; None for no-object.
        entropy: how far what it says is from what it should have said, as the loss measures it (`Matching.measure`),
            without weight or divisor.
        class_loss: its part of weight x loss_ce.
        box_loss: its part of weight x loss_bbox; 0 without object.
        giou_loss: its part of weight x loss_giou; 0 without object.
    """

    query: int
    object: int | None
    entropy: float
    class_loss: float
    box_loss: float
    giou_loss: float

    @property
    def total(self) -> float:
        """Its part of the last layer's loss."""
        return self.class_loss + self.box_loss + self.giou_loss


@dataclass(frozen=True)
class ObjectOutcome:
    """What became of an object.

    Attributes:
        object: its number.
        label: its class.
        matched_query: who answers for it in the loss; None when there are more objects than queries.
        found_by: the query that finds it: its class, IoU of at least 0.5; None when no query does.
        score: of that query; the object counts as found at thresholds up to it.
        best_query: the query whose box comes closest; None when none overlaps it.
        best_iou: how close; 0 when none overlaps it.
        if_missed: why it is missed when the threshold is higher than `score`, or at any threshold; one sentence.
    """

    object: int
    label: int
    matched_query: int | None
    found_by: int | None
    score: float | None
    best_query: int | None
    best_iou: float
    if_missed: str


@dataclass(frozen=True)
class MatchingExplanation:
    """The matching of one photo, after the last decoder layer unless said otherwise.

    Attributes:
        class_cost: (Q, N) weight x cost of saying the object's class: minus its probability, for softmax scores.
        box_cost: (Q, N) weight x L1 distance.
        giou_cost: (Q, N) -weight x generalised IoU.
        layer_pairs: after every decoder layer, the matched (query, object) pairs.
        iou: (Q, N) plain IoU.
        losses: of every query.
        outcomes: of every object.
        measure: what `QueryLoss.entropy` is.
    """

    class_cost: Float[Tensor, "Q N"]
    box_cost: Float[Tensor, "Q N"]
    giou_cost: Float[Tensor, "Q N"]
    layer_pairs: tuple[tuple[tuple[int, int], ...], ...]
    iou: Float[Tensor, "Q N"]
    losses: tuple[QueryLoss, ...]
    outcomes: tuple[ObjectOutcome, ...]
    measure: str

    @property
    def cost(self) -> Float[Tensor, "Q N"]:
        """What the matching minimises."""
        return self.class_cost + self.box_cost + self.giou_cost


@torch.no_grad()
def explain_matching(
    predictions: Predictions, target: Target, loss: SetCriterion, names: Sequence[str]
) -> MatchingExplanation:
    """Match one photo as training does, and say what came of it.

    Args:
        predictions: of one photo (B = 1).
        target: its objects.
        loss: with the weights of the run, or the published ones.
        names: of the labels.
    """
    logits, boxes = predictions.layer_class_logits.float(), predictions.layer_boxes.float()
    matches = loss.matcher(logits, boxes, [target])
    pairs = tuple(
        tuple(zip(*(numbers.tolist() for numbers in matches.pairs(layer, 0)), strict=True))
        for layer in range(len(logits))
    )
    terms = loss.matcher.unweighted_costs(logits[-1:], boxes[-1:], [target])
    found, true = cxcywh_to_xyxy(boxes[-1, 0]), cxcywh_to_xyxy(target.boxes.float())
    iou = box_iou(found, true)
    probabilities = predictions.probabilities[0]
    no_object = predictions.layer_no_object[-1, 0] if predictions.class_scores == "softmax" else None
    return MatchingExplanation(
        class_cost=loss.matcher.cost_class * terms.classification[0, 0],
        box_cost=loss.matcher.cost_bbox * terms.distance[0, 0],
        giou_cost=-loss.matcher.cost_giou * terms.giou[0, 0],
        layer_pairs=pairs,
        iou=iou,
        losses=tuple(_query_losses(logits[-1, 0], terms, iou, dict(pairs[-1]), target, loss)),
        outcomes=tuple(_outcomes(probabilities, no_object, iou, dict(pairs[-1]), target, names)),
        measure=_measure(loss.classification),
    )


def _measure(way: Classification) -> str:
    """What the loss of one query's classes is called: of what it should have said, or of all classes together."""
    if isinstance(way, IoUAwareClassification):
        return "IoU-aware loss"
    return "focal loss" if isinstance(way, SigmoidFocalClassification) else "−log p"  # noqa: RUF001  # a minus, as in print


def _query_losses(
    logits: Float[Tensor, "Q K1"],
    terms: MatchingCosts,
    iou: Float[Tensor, "Q N"],
    pairs: dict[int, int],
    target: Target,
    loss: SetCriterion,
) -> list[QueryLoss]:
    """Divide the last layer's loss among the queries."""
    norms = loss.normalizers([target], num_queries=len(logits))
    num_boxes = float(norms.num_boxes)
    numbers = [pairs.get(query) for query in range(len(logits))]
    wanted = torch.tensor([loss.num_classes if one is None else int(target.labels[one]) for one in numbers])
    overlap = logits.new_zeros(len(logits))
    overlap[list(pairs)] = iou[list(pairs), list(pairs.values())]
    class_losses, entropies = loss.query_class_losses(logits, wanted.to(logits.device), norms, overlap)
    parts = []
    for query, number in enumerate(numbers):
        box_loss = giou_loss = 0.0
        if number is not None:
            box_loss = loss.weight_dict["loss_bbox"] * float(terms.distance[0, 0, query, number]) / num_boxes
            giou_loss = loss.weight_dict["loss_giou"] * (1 - float(terms.giou[0, 0, query, number])) / num_boxes
        parts.append(QueryLoss(query, number, float(entropies[query]), float(class_losses[query]), box_loss, giou_loss))
    return parts


def _outcomes(
    probabilities: Float[Tensor, "Q K"],
    no_object: Float[Tensor, "Q"] | None,
    iou: Float[Tensor, "Q N"],
    pairs: dict[int, int],
    target: Target,
    names: Sequence[str],
) -> list[ObjectOutcome]:
    scores, labels = probabilities.max(-1)
    finder = _finders(scores, labels, iou, target)
    query_of = {number: query for query, number in pairs.items()}
    outcomes = []
    for number, label in enumerate(target.labels.tolist()):
        query = finder.get(number)
        best = int(iou[:, number].argmax())
        outcomes.append(
            ObjectOutcome(
                object=number,
                label=label,
                matched_query=query_of.get(number),
                found_by=query,
                score=None if query is None else float(scores[query]),
                best_query=best if iou[best, number] > 0 else None,
                best_iou=float(iou[best, number]),
                if_missed=_too_weak(query, number, scores, no_object, iou)
                if query is not None
                else _never_found(number, label, probabilities, iou, finder, names),
            )
        )
    return outcomes


def _finders(scores: Float[Tensor, "Q"], labels: Tensor, iou: Float[Tensor, "Q N"], target: Target) -> dict[int, int]:
    """Which query finds which object: best score first, each takes the closest object of its class that is left.

    As COCO counts, so that the answer at a threshold is this one without the queries below it.
    """
    finder: dict[int, int] = {}
    for query in scores.argsort(descending=True, stable=True).tolist():
        free = (target.labels == labels[query]) & (iou[query] >= CLOSE)
        free[list(finder)] = False
        if free.any():
            finder[int((iou[query] * free).argmax())] = query
    return finder


def _too_weak(
    query: int, number: int, scores: Float[Tensor, "Q"], no_object: Float[Tensor, "Q"] | None, iou: Float[Tensor, "Q N"]
) -> str:
    rest = "" if no_object is None else f" (no object: {no_object[query]:.2f})"
    return (
        f"query {query} has the class right and the box (IoU {iou[query, number]:.2f}), but says so with a score of "
        f"{scores[query]:.2f} only, which is below the threshold{rest}"
    )


def _never_found(
    number: int,
    label: int,
    probabilities: Float[Tensor, "Q K"],
    iou: Float[Tensor, "Q N"],
    finder: dict[int, int],
    names: Sequence[str],
) -> str:
    """Say why no query finds an object, whatever the threshold."""
    num_queries, num_objects = iou.shape
    if num_objects > num_queries:
        return f"there are {num_objects} objects and only {num_queries} queries, each of which finds one at most"
    scores, labels = probabilities.max(-1)
    close = iou[:, number] >= CLOSE
    right = close & (labels == label)
    if right.any():
        query = int((scores * right).argmax())
        other = next((taken for taken, by in finder.items() if by == query), None)
        return f"query {query} has a box on it, but finds object {other} nearby; no other query speaks up for this one"
    if close.any():
        query = int((scores * close).argmax())
        return (
            f"query {query} has a box on it (IoU {iou[query, number]:.2f}), but calls it {names[int(labels[query])]} "
            f"({scores[query]:.2f}; {names[label]}: {probabilities[query, label]:.2f})"
        )
    best = int(iou[:, number].argmax())
    if not iou[best, number]:
        return "no query has a box on it: none overlaps it at all"
    return (
        f"no query has a box on it: the closest is that of query {best} (IoU {iou[best, number]:.2f}, "
        f"{names[int(labels[best])]} {scores[best]:.2f})"
    )
