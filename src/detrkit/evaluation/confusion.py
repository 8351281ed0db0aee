"""Which class is taken for which, and for background.

Detections that are shown are matched with objects of their own class first, as scores are counted; what is left on both
sides is matched regardless of class, at the same IoU of 0.5. An object left over was taken for background; a detection left
over took background for an object.
"""

from dataclasses import dataclass

import numpy as np

from detrkit._internal.text import plural
from detrkit.evaluation.arrays import EvalInput
from detrkit.evaluation.coco_matching import RIGHT, Matching, Overlaps, greedy_assign, ranks_of


@dataclass(frozen=True)
class Confusion:
    """Counts of objects and detections.

    Attributes:
        threshold: least score of a detection that counts.
        counts: (K + 1, K + 1), row: class of the object, column: class of the detection; last: background.
        names: of the classes.
    """

    threshold: float
    counts: np.ndarray
    names: tuple[str, ...]

    def most_frequent(self, limit: int) -> list[tuple[str, str, int, float]]:
        """The confusions between classes, most frequent first: object, taken for, how often, share of its objects."""
        between = self.counts[:-1, :-1].copy()
        np.fill_diagonal(between, 0)
        totals = self.counts[:-1].sum(1)
        order = np.argsort(-between, axis=None, kind="stable")[:limit]
        pairs = [divmod(int(place), len(self.names)) for place in order]
        return [
            (self.names[row], self.names[column], int(between[row, column]), float(between[row, column] / totals[row]))
            for row, column in pairs
            if between[row, column]
        ]

    def folded(self, most_classes: int) -> "Confusion":
        """Keep the classes with most confusions and put the others into one, so that the matrix can be read."""
        num_classes = len(self.names)
        if num_classes <= most_classes:
            return self
        wrong = self.counts.copy()
        np.fill_diagonal(wrong, 0)
        weight = (wrong.sum(0) + wrong.sum(1))[:-1]
        kept = np.sort(np.argsort(-weight, kind="stable")[: most_classes - 1])
        group = np.full(num_classes + 1, len(kept))
        group[kept] = np.arange(len(kept))
        group[-1] = len(kept) + 1
        counts = np.zeros((len(kept) + 2, len(kept) + 2), np.int64)
        np.add.at(counts, (group[:, None], group[None]), self.counts)
        others = plural(num_classes - len(kept), "other class", "other classes")
        return Confusion(self.threshold, counts, (*(self.names[label] for label in kept), others))


def confuse(case: EvalInput, overlaps: Overlaps, matching: Matching, threshold: float) -> Confusion:
    """Count which class is taken for which."""
    is_shown = (case.found.scores >= threshold) & ~matching.is_ignored
    object_of = np.where(is_shown, matching.object_of, -1)
    is_answered = np.zeros(len(case.truth.labels), bool)
    is_answered[object_of[object_of >= 0]] = True

    left = (overlaps.ious >= RIGHT) & ~overlaps.has_crowd & ~is_answered[overlaps.objects]
    left &= is_shown[overlaps.detections] & (object_of[overlaps.detections] < 0)
    crossed = greedy_assign(overlaps.select(left), ranks_of(case.found.scores))
    object_of = np.where(object_of >= 0, object_of, crossed)
    is_answered[object_of[object_of >= 0]] = True

    background = len(case.truth.categories)
    labels_of_objects = np.r_[case.truth.labels, background]  # so that object -1 is background
    counts = np.zeros((background + 1, background + 1), np.int64)
    np.add.at(counts, (labels_of_objects[object_of[is_shown]], case.labels[is_shown]), 1)
    unseen = ~is_answered & ~case.truth.is_crowd
    np.add.at(counts, (case.truth.labels[unseen], background), 1)
    return Confusion(threshold, counts, case.truth.categories.names)
