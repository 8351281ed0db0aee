"""From which score on detections are worth showing: precision, recall and F1 at every threshold, and where F1 is best.

Right means: matched at IoU 0.5. F1 = 2 · right / (shown + objects), the harmonic mean of precision and recall.
"""

from dataclasses import dataclass

import numpy as np

from detrkit.checkpoints.native import Thresholds
from detrkit.evaluation.arrays import EvalInput
from detrkit.evaluation.coco_matching import Matching, compute_ious, match

MIN_OBJECTS = 10  # of a class with a threshold of its own; with fewer, chance would choose it
_STEPS = 101  # thresholds 0.00 to 1.00 of the curves


@dataclass(frozen=True)
class OperatingPoint:
    """What is found at one threshold."""

    threshold: float
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class ThresholdCurves:
    """Precision (1 where nothing is shown), recall and F1 at thresholds from 0 to 1, all classes together."""

    thresholds: tuple[float, ...]
    precision: tuple[float, ...]
    recall: tuple[float, ...]
    f1: tuple[float, ...]


@dataclass(frozen=True)
class BestThresholds:
    """Where F1 is best; None where nothing right was found.

    Attributes:
        overall: of all classes together.
        per_class: of each class by itself, in the order of the labels; also of classes too rare to use it.
        to_store: what `--threshold auto` uses; None where nothing right was found.
    """

    overall: OperatingPoint | None
    per_class: tuple[OperatingPoint | None, ...]
    to_store: Thresholds | None


def best_thresholds(case: EvalInput, matching: Matching | None = None) -> BestThresholds:
    """Find the thresholds with the best F1, of all classes together and of each."""
    matching = matching or match(case, compute_ious(case))
    counts = ~matching.is_ignored
    objects = case.truth.objects_per_class()
    overall = best_operating_point(case.found.scores[counts], matching.is_right[counts], int(objects.sum()))
    per_class = tuple(
        best_operating_point(
            case.found.scores[counts & (case.labels == label)],
            matching.is_right[counts & (case.labels == label)],
            int(objects[label]),
        )
        for label in range(len(objects))
    )
    if overall is None:
        return BestThresholds(None, per_class, None)
    own = {
        number: best.threshold
        for number, best, count in zip(case.truth.categories.ids, per_class, objects.tolist(), strict=True)
        if best is not None and count >= MIN_OBJECTS
    }
    return BestThresholds(overall, per_class, Thresholds(overall=overall.threshold, per_class=own))


def best_operating_point(scores: np.ndarray, is_right: np.ndarray, num_objects: int) -> OperatingPoint | None:
    """Find the threshold with the best F1; of equals the highest.

    It lies halfway between the weakest detection that is shown and the next one below, so that rounding on another
    machine moves nothing across it.
    """
    order = np.argsort(-scores, kind="stable")
    ranked, right = scores[order], is_right[order].cumsum()
    if not len(right) or right[-1] == 0:
        return None
    shown = np.arange(1, len(ranked) + 1)
    can_end = np.r_[ranked[1:] < ranked[:-1], True]  # equal scores are shown together
    f1 = np.where(can_end, 2 * right / (shown + num_objects), -1.0)
    best = int(f1.argmax())
    below = float(ranked[best + 1]) if best + 1 < len(ranked) else 0.0
    return OperatingPoint(
        threshold=(float(ranked[best]) + below) / 2,
        precision=float(right[best] / shown[best]),
        recall=float(right[best] / num_objects),
        f1=float(f1[best]),
    )


def threshold_curves(case: EvalInput, matching: Matching) -> ThresholdCurves:
    """Precision, recall and F1 at thresholds from 0 to 1."""
    counts = ~matching.is_ignored
    order = np.argsort(case.found.scores[counts], kind="stable")
    scores, is_right = case.found.scores[counts][order], matching.is_right[counts][order]
    thresholds = np.linspace(0, 1, _STEPS)
    first = np.searchsorted(scores, thresholds)
    shown = len(scores) - first
    right = is_right.sum() - np.r_[0, is_right.cumsum()][first]
    num_objects = case.truth.num_objects
    curves = (
        np.where(shown > 0, right / shown.clip(min=1), 1.0),
        right / max(num_objects, 1),
        2 * right / (shown + num_objects).clip(min=1),
    )
    return ThresholdCurves(tuple(thresholds.tolist()), *(tuple(curve.tolist()) for curve in curves))
