"""COCO matching of detections and objects by descending score, at one IoU threshold, vectorised over images."""

from dataclasses import dataclass

import numpy as np

from detrkit.evaluation.arrays import EvalInput

MATCH_IOU = 0.5  # minimum IoU of a true positive
BACKGROUND_IOU = 0.1  # below it, a detection overlaps nothing (TIDE, section 2.2)
_MAX_PAIRS = 500_000  # compared at a time, so that they fit into the processor's cache


@dataclass(frozen=True)
class OverlappingPairs:
    """Pairs of a detection and an object of the same image with an IoU of at least BACKGROUND_IOU, P of them.

    Attributes:
        detections: (P,) index into `EvalInput.detections`, ascending.
        objects: (P,) index into `EvalInput.ground_truth`.
        ious: (P,) for crowds: intersection over the area of the detection.
        same_class: (P,)
        is_crowd: (P,) whether the object is a crowd.
    """

    detections: np.ndarray
    objects: np.ndarray
    ious: np.ndarray
    same_class: np.ndarray
    is_crowd: np.ndarray

    def select(self, index: np.ndarray) -> "OverlappingPairs":
        """Select by a boolean mask or by indices."""
        return OverlappingPairs(**{name: array[index] for name, array in vars(self).items()})


@dataclass(frozen=True)
class Matches:
    """Matched detections and objects.

    Attributes:
        matched_objects: (D,) index of the object that a detection is matched to, or -1.
        matched_detections: (N,) index of the detection that an object is matched to, or -1.
        is_ignored: (D,) unmatched detections inside a crowd of their class, which count neither as true nor as false
            positives.
    """

    matched_objects: np.ndarray
    matched_detections: np.ndarray
    is_ignored: np.ndarray

    @property
    def is_true_positive(self) -> np.ndarray:
        """(D,) matched detections."""
        return self.matched_objects >= 0


def rank_by_score(scores: np.ndarray) -> np.ndarray:
    """Rank detections by descending score, 0 for the highest; ties keep their order."""
    ranks = np.empty(len(scores), np.int64)
    ranks[np.argsort(-scores, kind="stable")] = np.arange(len(scores))
    return ranks


def compute_ious(inputs: EvalInput) -> OverlappingPairs:
    """Compute the IoU of every detection with every object of its image."""
    ground_truth = inputs.ground_truth
    objects_by_image = np.argsort(ground_truth.image_indices, kind="stable")
    objects_per_image = np.bincount(ground_truth.image_indices, minlength=len(ground_truth.image_ids))
    first_objects = np.cumsum(objects_per_image) - objects_per_image
    pairs_per_detection = objects_per_image[inputs.image_indices]
    ends = np.cumsum(pairs_per_detection)
    parts = []
    start = 0
    while start < len(ends):
        offset = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, offset + _MAX_PAIRS, side="right")))
        repeats = pairs_per_detection[start:stop]
        detections = np.repeat(np.arange(start, stop), repeats)
        steps = np.arange(len(detections)) + offset - np.repeat(ends[start:stop] - repeats, repeats)
        objects = objects_by_image[first_objects[inputs.image_indices[detections]] + steps]
        parts.append(_overlapping(inputs, detections, objects))
        start = stop
    if not parts:
        return _overlapping(inputs, np.zeros(0, np.int64), np.zeros(0, np.int64))
    return OverlappingPairs(**{name: np.concatenate([getattr(p, name) for p in parts]) for name in vars(parts[0])})


def _overlapping(inputs: EvalInput, detections: np.ndarray, objects: np.ndarray) -> OverlappingPairs:
    """Compute IoUs of candidate pairs and keep those that overlap enough."""
    predicted, annotated = inputs.detections.boxes, inputs.ground_truth.boxes
    for axis in (0, 1):  # most pairs are disjoint: drop them before computing more
        start, true_start = predicted[:, axis], annotated[:, axis]
        end, true_end = start + predicted[:, axis + 2], true_start + annotated[:, axis + 2]
        touches = np.minimum(end[detections], true_end[objects]) > np.maximum(start[detections], true_start[objects])
        detections, objects = detections[touches], objects[touches]
    boxes, true_boxes = predicted[detections], annotated[objects]
    bottom_right = np.minimum(boxes[:, :2] + boxes[:, 2:], true_boxes[:, :2] + true_boxes[:, 2:])
    intersections = (bottom_right - np.maximum(boxes[:, :2], true_boxes[:, :2])).clip(min=0).prod(1)
    areas, true_areas = boxes[:, 2:].prod(1), true_boxes[:, 2:].prod(1)
    is_crowd = inputs.ground_truth.is_crowd[objects]
    unions = np.where(is_crowd, areas, areas + true_areas - intersections)
    ious = np.divide(intersections, unions, out=np.zeros_like(intersections), where=unions > 0)
    same_class = inputs.labels[detections] == inputs.ground_truth.labels[objects]
    kept = ious >= BACKGROUND_IOU
    return OverlappingPairs(*(array[kept] for array in (detections, objects, ious, same_class, is_crowd)))


def match_detections(inputs: EvalInput, pairs: OverlappingPairs, min_iou: float = MATCH_IOU) -> Matches:
    """Match detections to objects of the same class as COCO does at one IoU threshold.

    Removing the detections below a score removes their matches and leaves all others as they are.
    """
    candidates = pairs.select(pairs.same_class & (pairs.ious >= min_iou))
    ranks = rank_by_score(inputs.detections.scores)
    matched_objects = greedy_assign(candidates.select(~candidates.is_crowd), ranks)
    matched_detections = np.full(len(inputs.ground_truth.labels), -1)
    matched = np.flatnonzero(matched_objects >= 0)
    matched_detections[matched_objects[matched]] = matched
    in_crowd = np.zeros(len(ranks), bool)
    in_crowd[candidates.detections[candidates.is_crowd]] = True
    return Matches(matched_objects, matched_detections, in_crowd & (matched_objects < 0))


def greedy_assign(pairs: OverlappingPairs, ranks: np.ndarray) -> np.ndarray:
    """Assign objects to detections greedily: by rank, each detection takes the remaining object with the largest IoU.

    Computed for all detections at once: each proposes to its best object, lower-ranked proposals to the same object are
    rejected, and the rejected propose again. The result is that of the sequential loop.

    Args:
        pairs: allowed pairs.
        ranks: (D,) of the detections, 0 first.

    Returns:
        (D,) index of the object of each detection, or -1.
    """
    # of objects with equal IoU the later one is taken, as pycocotools does
    order = np.lexsort((-pairs.objects, -pairs.ious, ranks[pairs.detections]))
    detections, objects = pairs.detections[order], pairs.objects[order]
    assigned = np.full(len(ranks), -1)
    while len(detections):
        is_proposal = np.r_[True, detections[1:] != detections[:-1]]
        best_rank = np.full(objects.max() + 1, len(ranks))
        np.minimum.at(best_rank, objects[is_proposal], ranks[detections[is_proposal]])
        is_allowed = ranks[detections] <= best_rank[objects]
        if is_allowed[is_proposal].all():
            assigned[detections[is_proposal]] = objects[is_proposal]
            break
        detections, objects = detections[is_allowed], objects[is_allowed]
    return assigned
