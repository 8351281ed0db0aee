"""What kind of mistake every mistake is, by the rules of TIDE (Bolya et al. 2020, arXiv:2008.08115, section 2.2).

A detection is false when it is shown (its score reaches the threshold) and answers for no object at IoU 0.5. It gets the
first kind that fits:

1. badly placed: it overlaps an object of its class with an IoU of 0.1 to 0.5;
2. wrong class: it overlaps an object of another class with at least 0.5;
3. duplicate: it overlaps an object of its class with at least 0.5, for which a better detection answers;
4. background: it overlaps nothing with 0.1 or more;
5. wrong class and badly placed: what is left, an IoU of 0.1 to 0.5 with an object of another class.

"It overlaps" speaks of the largest overlap of that sort. An object that nobody answers for is missed, unless a detection of
kind 1 or 2 means it: then that one mistake counts once. Crowds, and detections in crowds of their class, do not count.
"""

from dataclasses import dataclass

import numpy as np

from detrkit.evaluation.arrays import EvalInput
from detrkit.evaluation.coco_matching import NEAR, RIGHT, Matching, Overlaps

KINDS = ("badly placed", "wrong class", "duplicate", "background", "wrong class and badly placed")
BADLY_PLACED, WRONG_CLASS, DUPLICATE, BACKGROUND, BOTH = range(len(KINDS))
MISSED = "missed"
# under which names the tool of the paper knows them
TIDE_NAMES = {
    "badly placed": "Loc",
    "wrong class": "Cls",
    "duplicate": "Dupe",
    "background": "Bkg",
    "wrong class and badly placed": "Both",
    MISSED: "Miss",
}
NO_ERROR = -1


@dataclass(frozen=True)
class Errors:
    """The mistakes at one threshold.

    Attributes:
        threshold: least score of a detection that is shown.
        kind_of: (D,) position in KINDS, or NO_ERROR for detections that are right, ignored or not shown.
        is_unanswered: (N,) objects that no shown detection answers for.
        is_missed: (N,) those of them that no badly placed or wrongly named detection means.
        is_right: (D,) shown detections that answer for an object.
    """

    threshold: float
    kind_of: np.ndarray
    is_unanswered: np.ndarray
    is_missed: np.ndarray
    is_right: np.ndarray

    @property
    def num_right(self) -> int:
        """Detections that are right."""
        return int(self.is_right.sum())

    @property
    def counts(self) -> dict[str, int]:
        """How many mistakes there are of each kind."""
        of_kinds = {name: int((self.kind_of == kind).sum()) for kind, name in enumerate(KINDS)}
        return {**of_kinds, MISSED: int(self.is_missed.sum())}

    def per_photo(self, case: EvalInput) -> np.ndarray:
        """(P,) false detections and objects that nobody answers for, on every photo."""
        count = len(case.truth.image_ids)
        false = np.bincount(case.photos[self.kind_of != NO_ERROR], minlength=count)
        return false + np.bincount(case.truth.photos[self.is_unanswered], minlength=count)


def classify_errors(case: EvalInput, overlaps: Overlaps, matching: Matching, threshold: float) -> Errors:
    """Give every mistake its kind."""
    is_shown = case.found.scores >= threshold
    is_right = is_shown & matching.is_right
    is_false = is_shown & ~matching.is_right & ~matching.is_ignored

    pairs = overlaps.select(~overlaps.has_crowd & is_false[overlaps.detections])
    count = len(case.found)
    with_own, own_object = _largest(pairs.select(pairs.has_same_class), count)
    with_other, other_object = _largest(pairs.select(~pairs.has_same_class), count)
    rules = [
        (with_own >= NEAR) & (with_own < RIGHT),
        with_other >= RIGHT,
        with_own >= RIGHT,
        np.maximum(with_own, with_other) < NEAR,
    ]
    kind_of = np.where(is_false, np.select(rules, [BADLY_PLACED, WRONG_CLASS, DUPLICATE, BACKGROUND], BOTH), NO_ERROR)

    is_answered = np.zeros(len(case.truth.labels), bool)
    is_answered[matching.object_of[is_right]] = True
    is_meant = np.zeros_like(is_answered)
    is_meant[own_object[kind_of == BADLY_PLACED]] = True
    is_meant[other_object[kind_of == WRONG_CLASS]] = True
    is_unanswered = ~is_answered & ~case.truth.is_crowd
    return Errors(threshold, kind_of, is_unanswered, is_unanswered & ~is_meant, is_right)


def _largest(pairs: Overlaps, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The largest overlap of each detection, 0 where there is none, and the object it is with (-1)."""
    largest, object_of = np.zeros(count), np.full(count, -1)
    order = np.argsort(pairs.ious, kind="stable")
    largest[pairs.detections[order]] = pairs.ious[order]  # of those written to one place, the last stays
    object_of[pairs.detections[order]] = pairs.objects[order]
    return largest, object_of
