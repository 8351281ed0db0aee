"""Whether scores are probabilities: of detections with a score of 0.7, are 70 % right?

Expected calibration error (Naeini et al. 2015): the mean distance between score and share of right ones, over bins of the
score, weighted by how many detections lie in them. Right means: matched at IoU 0.5.
"""

from dataclasses import dataclass

import numpy as np

from detrkit.evaluation.arrays import EvalInput
from detrkit.evaluation.coco_matching import Matching

NUM_BINS = 10


@dataclass(frozen=True)
class Bin:
    """Detections with scores from `low` to below `high` (the last bin holds 1, too); NaN means in an empty bin."""

    low: float
    high: float
    count: int
    mean_score: float
    share_right: float


@dataclass(frozen=True)
class Calibration:
    """How far scores are from probabilities.

    Attributes:
        bins: ten of equal width.
        error: expected calibration error over all detections, most of which are queries that say nothing.
        error_shown: the same over detections that reach the threshold; NaN where none does.
    """

    bins: tuple[Bin, ...]
    error: float
    error_shown: float


def calibrate(case: EvalInput, matching: Matching, threshold: float) -> Calibration:
    """Compare scores with the share of right detections; those inside crowds do not count."""
    counts = ~matching.is_ignored
    scores, is_right = case.found.scores[counts], matching.is_right[counts]
    bins = _bins(scores, is_right)
    is_shown = scores >= threshold
    return Calibration(bins, _error(bins), _error(_bins(scores[is_shown], is_right[is_shown])))


def _bins(scores: np.ndarray, is_right: np.ndarray) -> tuple[Bin, ...]:
    places = (scores * NUM_BINS).astype(np.int64).clip(0, NUM_BINS - 1)
    counts = np.bincount(places, minlength=NUM_BINS)
    with np.errstate(invalid="ignore"):
        means = np.bincount(places, weights=scores, minlength=NUM_BINS) / counts
        shares = np.bincount(places, weights=is_right.astype(np.float64), minlength=NUM_BINS) / counts
    edges = [index / NUM_BINS for index in range(NUM_BINS + 1)]
    columns = (edges[:-1], edges[1:], counts.tolist(), means.tolist(), shares.tolist())
    return tuple(Bin(*row) for row in zip(*columns, strict=True))


def _error(bins: tuple[Bin, ...]) -> float:
    total = sum(one.count for one in bins)
    if not total:
        return float("nan")
    return sum(one.count * abs(one.mean_score - one.share_right) for one in bins if one.count) / total
