"""Calibration of scores: expected calibration error (Naeini et al. 2015).

The ECE is the mean distance between score and precision over bins of the score, weighted by the number of detections.
True positives are detections matched at IoU 0.5.
"""

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from detrkit.evaluation.arrays import EvalInput
from detrkit.evaluation.coco_matching import Matches
from detrkit.evaluation.report.section import Section

NUM_BINS = 10


@dataclass(frozen=True)
class CalibrationBin:
    """Detections with scores in `low` .. `high`, half-open but for the last bin; means of an empty bin are NaN."""

    low: float
    high: float
    count: int
    mean_score: float
    precision: float


@dataclass(frozen=True)
class Calibration:
    """Calibration of scores.

    Attributes:
        bins: ten of equal width.
        ece: expected calibration error of all detections, most of which have scores near 0.
        ece_above_threshold: of the detections above the score threshold; NaN without any.
    """

    bins: tuple[CalibrationBin, ...]
    ece: float
    ece_above_threshold: float

    def to_json(self) -> dict[str, Any]:
        """Convert to plain values."""
        return asdict(self)

    def to_section(self) -> Section:
        """Return the section of the report."""
        from detrkit.visualization.charts import as_svg, draw_reliability

        columns = ([one.mean_score for one in self.bins], [one.precision for one in self.bins])
        chart = as_svg(draw_reliability(*columns, [one.count for one in self.bins]))
        section = Section.render("Calibration", "calibration.html", calibration=self, chart=chart)
        return replace(section, is_narrow=True)


def compute_calibration(inputs: EvalInput, matches: Matches, threshold: float) -> Calibration:
    """Compare scores with precision; detections in crowds are ignored."""
    counted = ~matches.is_ignored
    scores, is_true_positive = inputs.detections.scores[counted], matches.is_true_positive[counted]
    bins = _bins(scores, is_true_positive)
    is_above = scores >= threshold
    return Calibration(bins, _ece(bins), _ece(_bins(scores[is_above], is_true_positive[is_above])))


def _bins(scores: np.ndarray, is_true_positive: np.ndarray) -> tuple[CalibrationBin, ...]:
    indices = (scores * NUM_BINS).astype(np.int64).clip(0, NUM_BINS - 1)
    counts = np.bincount(indices, minlength=NUM_BINS)
    with np.errstate(invalid="ignore"):
        mean_scores = np.bincount(indices, weights=scores, minlength=NUM_BINS) / counts
        precision = np.bincount(indices, weights=is_true_positive.astype(np.float64), minlength=NUM_BINS) / counts
    edges = [index / NUM_BINS for index in range(NUM_BINS + 1)]
    columns = (edges[:-1], edges[1:], counts.tolist(), mean_scores.tolist(), precision.tolist())
    return tuple(CalibrationBin(*row) for row in zip(*columns, strict=True))


def _ece(bins: tuple[CalibrationBin, ...]) -> float:
    total = sum(one.count for one in bins)
    if not total:
        return float("nan")
    return sum(one.count * abs(one.mean_score - one.precision) for one in bins if one.count) / total
