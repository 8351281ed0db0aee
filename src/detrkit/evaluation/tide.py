"""Error types of detections (TIDE: Bolya et al. 2020, arXiv:2008.08115, section 2.2).

A detection above the score threshold that matches no object at IoU 0.5 is a false positive. Its error type is the first
that applies, by its largest IoU with an object of its own class and with one of another class:

1. localization: IoU of 0.1 to 0.5 with an object of its class;
2. classification: IoU of at least 0.5 with an object of another class;
3. duplicate: IoU of at least 0.5 with an object of its class, which is matched to a higher score;
4. background: IoU below 0.1 with every object;
5. both (classification and localization): all others, IoU of 0.1 to 0.5 with an object of another class.

An unmatched object is missed, unless it is the object of a localization or classification error: then that error alone
counts. Crowds, and detections inside crowds of their class, are ignored.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from detrkit.evaluation.arrays import EvalInput
from detrkit.evaluation.coco_matching import BACKGROUND_IOU, MATCH_IOU, Matches, OverlappingPairs
from detrkit.evaluation.report.section import Section

ERROR_TYPES = ("localization", "classification", "duplicate", "background", "both")
LOCALIZATION, CLASSIFICATION, DUPLICATE, BACKGROUND, BOTH = range(len(ERROR_TYPES))
MISSED = "missed"
NO_ERROR = -1
# names in the TIDE toolbox
TIDE_NAMES = {
    "localization": "Loc",
    "classification": "Cls",
    "duplicate": "Dupe",
    "background": "Bkg",
    "both": "Both",
    MISSED: "Miss",
}


@dataclass(frozen=True)
class DetectionErrors:
    """Errors at one score threshold.

    Attributes:
        threshold: minimum score of a detection that counts.
        error_types: (D,) index into ERROR_TYPES; NO_ERROR for true positives, ignored detections and low scores.
        is_true_positive: (D,) matched detections above the threshold.
        is_unmatched: (N,) objects without a matching detection above the threshold.
        is_missed: (N,) unmatched objects that no localization or classification error accounts for.
        ap50_gains: AP50 gained without the errors of one type, by type; over all detections (TIDE's dAP).
    """

    threshold: float
    error_types: np.ndarray
    is_true_positive: np.ndarray
    is_unmatched: np.ndarray
    is_missed: np.ndarray
    ap50_gains: dict[str, float | None]

    @property
    def num_true_positives(self) -> int:
        """Number of true positives."""
        return int(self.is_true_positive.sum())

    @property
    def num_false_positives(self) -> int:
        """Number of false positives."""
        return int((self.error_types != NO_ERROR).sum())

    @property
    def num_false_negatives(self) -> int:
        """Number of unmatched objects."""
        return int(self.is_unmatched.sum())

    @property
    def counts(self) -> dict[str, int]:
        """Number of errors by type, missed objects last."""
        counts = {name: int((self.error_types == index).sum()) for index, name in enumerate(ERROR_TYPES)}
        return {**counts, MISSED: int(self.is_missed.sum())}

    def errors_per_image(self, inputs: EvalInput) -> np.ndarray:
        """Count false positives and unmatched objects of every image: (I,)."""
        count = len(inputs.ground_truth.image_ids)
        false_positives = np.bincount(inputs.image_indices[self.error_types != NO_ERROR], minlength=count)
        return false_positives + np.bincount(inputs.ground_truth.image_indices[self.is_unmatched], minlength=count)

    def to_json(self) -> dict[str, Any]:
        """Convert to plain values."""
        return {
            "threshold": self.threshold,
            "true_positives": self.num_true_positives,
            "false_positives": self.num_false_positives,
            "false_negatives": self.num_false_negatives,
            "counts": self.counts,
            "ap50_gains": self.ap50_gains,
        }

    def to_section(self) -> Section:
        """Return the section of the report."""
        return Section.render("Error types", "errors.html", errors=self)


def classify_errors(
    inputs: EvalInput,
    pairs: OverlappingPairs,
    matches: Matches,
    threshold: float,
    tide_gains: dict[str, float] | None = None,
) -> DetectionErrors:
    """Assign an error type to every false positive, and find missed objects.

    Args:
        inputs: ground truth and detections.
        pairs: IoUs between them.
        matches: at IoU 0.5.
        threshold: minimum score of a detection that counts.
        tide_gains: AP50 gains under TIDE's names, as in `CocoEvaluation.ap50_gains`.
    """
    is_above = inputs.detections.scores >= threshold
    is_true_positive = is_above & matches.is_true_positive
    is_false_positive = is_above & ~matches.is_true_positive & ~matches.is_ignored

    candidates = pairs.select(~pairs.is_crowd & is_false_positive[pairs.detections])
    count = len(inputs.detections)
    own_iou, own_object = _largest_iou(candidates.select(candidates.same_class), count)
    other_iou, other_object = _largest_iou(candidates.select(~candidates.same_class), count)
    rules = [
        (own_iou >= BACKGROUND_IOU) & (own_iou < MATCH_IOU),
        other_iou >= MATCH_IOU,
        own_iou >= MATCH_IOU,
        np.maximum(own_iou, other_iou) < BACKGROUND_IOU,
    ]
    first_type = np.select(rules, [LOCALIZATION, CLASSIFICATION, DUPLICATE, BACKGROUND], BOTH)
    error_types = np.where(is_false_positive, first_type, NO_ERROR)

    is_matched = np.zeros(len(inputs.ground_truth.labels), bool)
    is_matched[matches.matched_objects[is_true_positive]] = True
    has_error = np.zeros_like(is_matched)
    has_error[own_object[error_types == LOCALIZATION]] = True
    has_error[other_object[error_types == CLASSIFICATION]] = True
    is_unmatched = ~is_matched & ~inputs.ground_truth.is_crowd
    gains = {name: (tide_gains or {}).get(tide_name) for name, tide_name in TIDE_NAMES.items()}
    return DetectionErrors(threshold, error_types, is_true_positive, is_unmatched, is_unmatched & ~has_error, gains)


def _largest_iou(pairs: OverlappingPairs, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Largest IoU of each detection, 0 without a pair, and the object it is with, or -1."""
    largest, objects = np.zeros(count), np.full(count, -1)
    order = np.argsort(pairs.ious, kind="stable")
    largest[pairs.detections[order]] = pairs.ious[order]  # of several writes to one index the last one stays
    objects[pairs.detections[order]] = pairs.objects[order]
    return largest, objects
