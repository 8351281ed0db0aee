"""Confusion matrix of a detector, with background as an additional class.

Detections above the threshold are matched to objects of their own class first, as for AP. The remaining detections and
objects are then matched regardless of class, at the same IoU of 0.5. Unmatched objects count as predicted background,
unmatched detections as true background.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from detrkit._internal.text import plural
from detrkit.evaluation.arrays import EvalInput
from detrkit.evaluation.coco_matching import MATCH_IOU, Matches, OverlappingPairs, greedy_assign, rank_by_score
from detrkit.evaluation.report.section import Section

MAX_MATRIX_CLASSES = 25  # rows of the matrix in the report
MAX_CONFUSIONS = 10  # listed in the report


@dataclass(frozen=True)
class ConfusionMatrix:
    """Counts of objects and detections by true and predicted class.

    Attributes:
        threshold: minimum score of a detection that counts.
        counts: (K + 1, K + 1) true class by predicted class; the last row and column are background.
        class_names: of the K classes.
    """

    threshold: float
    counts: np.ndarray
    class_names: tuple[str, ...]

    def most_frequent(self, limit: int) -> list[tuple[str, str, int, float]]:
        """List the most frequent confusions: true class, predicted class, count, fraction of the true class."""
        confused = self.counts[:-1, :-1].copy()
        np.fill_diagonal(confused, 0)
        totals, names = self.counts[:-1].sum(1), self.class_names
        order = np.argsort(-confused, axis=None, kind="stable")[:limit]
        pairs = [divmod(int(index), len(names)) for index in order]
        return [
            (names[row], names[column], int(confused[row, column]), float(confused[row, column] / totals[row]))
            for row, column in pairs
            if confused[row, column]
        ]

    def merge_rarely_confused(self, max_classes: int) -> "ConfusionMatrix":
        """Merge the classes with the fewest confusions into one, so that at most `max_classes` remain."""
        num_classes = len(self.class_names)
        if num_classes <= max_classes:
            return self
        confused = self.counts.copy()
        np.fill_diagonal(confused, 0)
        total = (confused.sum(0) + confused.sum(1))[:-1]
        kept = np.sort(np.argsort(-total, kind="stable")[: max_classes - 1])
        group = np.full(num_classes + 1, len(kept))
        group[kept] = np.arange(len(kept))
        group[-1] = len(kept) + 1
        counts = np.zeros((len(kept) + 2, len(kept) + 2), np.int64)
        np.add.at(counts, (group[:, None], group[None]), self.counts)
        merged = plural(num_classes - len(kept), "other class", "other classes")
        return ConfusionMatrix(self.threshold, counts, (*(self.class_names[label] for label in kept), merged))

    def to_json(self) -> dict[str, Any]:
        """Convert to plain values."""
        return {
            "threshold": self.threshold,
            "class_names": [*self.class_names, "background"],
            "counts": self.counts.tolist(),
        }

    def to_section(self) -> Section:
        """Return the section of the report."""
        merged = self.merge_rarely_confused(MAX_MATRIX_CLASSES)
        rows = list(zip((*merged.class_names, "background"), merged.counts.tolist(), strict=True))
        frequent = self.most_frequent(MAX_CONFUSIONS)
        return Section.render("Confusion matrix", "confusion.html", matrix=merged, rows=rows, frequent=frequent)


def compute_confusion_matrix(
    inputs: EvalInput, pairs: OverlappingPairs, matches: Matches, threshold: float
) -> ConfusionMatrix:
    """Count predicted classes of every true class.

    Args:
        inputs: ground truth and detections.
        pairs: IoUs between them.
        matches: at IoU 0.5, of the same class.
        threshold: minimum score of a detection that counts.
    """
    ground_truth = inputs.ground_truth
    is_above = (inputs.detections.scores >= threshold) & ~matches.is_ignored
    matched_objects = np.where(is_above, matches.matched_objects, -1)
    is_matched = np.zeros(len(ground_truth.labels), bool)
    is_matched[matched_objects[matched_objects >= 0]] = True

    is_remaining = (pairs.ious >= MATCH_IOU) & ~pairs.is_crowd & ~is_matched[pairs.objects]
    is_remaining &= is_above[pairs.detections] & (matched_objects[pairs.detections] < 0)
    across_classes = greedy_assign(pairs.select(is_remaining), rank_by_score(inputs.detections.scores))
    matched_objects = np.where(matched_objects >= 0, matched_objects, across_classes)
    is_matched[matched_objects[matched_objects >= 0]] = True

    background = len(ground_truth.categories)
    true_labels = np.r_[ground_truth.labels, background]  # so that object -1 is background
    counts = np.zeros((background + 1, background + 1), np.int64)
    np.add.at(counts, (true_labels[matched_objects[is_above]], inputs.labels[is_above]), 1)
    is_unmatched = ~is_matched & ~ground_truth.is_crowd
    np.add.at(counts, (ground_truth.labels[is_unmatched], background), 1)
    return ConfusionMatrix(threshold, counts, ground_truth.categories.names)
