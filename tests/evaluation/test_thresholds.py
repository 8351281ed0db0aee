"""Best thresholds, threshold curves and calibration: by hand, and against exhaustive search."""

import math

import numpy as np
import pytest
from hotcoco import metrics

from detrkit.evaluation.analysis import analyse
from detrkit.evaluation.calibration import compute_calibration
from detrkit.evaluation.coco import evaluate_boxes
from detrkit.evaluation.coco_matching import compute_ious, match_detections
from detrkit.evaluation.registry import METRICS
from detrkit.evaluation.thresholds import MIN_OBJECTS, best_operating_point, best_thresholds, threshold_curves
from tests.evaluation.cases import case, random_case


def test_best_threshold_by_hand() -> None:
    """True positives at 0.9 and 0.6, false ones at 0.8 and 0.3, three objects: F1 is 2/4, 2/5, 4/6, 4/7."""
    best = best_operating_point(np.array([0.3, 0.9, 0.6, 0.8]), np.array([False, True, True, False]), 3)
    assert best is not None
    assert best.threshold == pytest.approx(0.45)  # halfway from 0.6 to 0.3
    assert best.f1 == pytest.approx(4 / 6)
    assert best.precision == pytest.approx(2 / 3)
    assert best.recall == pytest.approx(2 / 3)


def test_no_threshold_separates_equal_scores() -> None:
    """A true and a false positive with the same score are both above a threshold or both below."""
    best = best_operating_point(np.array([0.5, 0.5]), np.array([True, False]), 1)
    assert best is not None
    assert best.f1 == pytest.approx(2 / 3)
    assert best.threshold == pytest.approx(0.25)


def test_without_true_positives_there_is_no_best_threshold() -> None:
    assert best_operating_point(np.array([0.5]), np.array([False]), 1) is None
    assert best_operating_point(np.zeros(0), np.zeros(0, bool), 0) is None
    assert best_thresholds(case([(1, 3, [0.0, 0, 9, 9])], [])).thresholds is None


@pytest.mark.parametrize("seed", range(3))
def test_best_threshold_has_the_highest_f1(seed: int) -> None:
    one = random_case(seed)
    matching = match_detections(one, compute_ious(one))
    best = best_thresholds(one, matching)
    curves = threshold_curves(one, matching)
    assert best.overall is not None
    assert max(curves.f1) <= best.overall.f1 + 1e-12
    counts = ~matching.is_ignored
    for threshold, precision, recall, f1 in zip(*curves.to_json().values(), strict=True):
        shown = counts & (one.detections.scores >= threshold)
        right = (shown & matching.is_true_positive).sum()
        assert precision == pytest.approx(right / shown.sum() if shown.any() else 1)
        assert recall == pytest.approx(right / one.ground_truth.num_objects)
        assert f1 == pytest.approx(2 * right / (shown.sum() + one.ground_truth.num_objects))
    shown = counts & (one.detections.scores >= best.overall.threshold)
    assert best.overall.precision == pytest.approx((shown & matching.is_true_positive).sum() / shown.sum())


def test_classes_with_few_objects_use_the_overall_threshold() -> None:
    """One class has just enough objects, another one too few."""
    objects = [(1, 3, [20.0 * i, 0, 10, 10]) for i in range(MIN_OBJECTS)]
    objects += [(1, 7, [20.0 * i, 100, 10, 10]) for i in range(MIN_OBJECTS - 1)]
    scores = {3: 0.9, 7: 0.3}
    best = best_thresholds(case(objects, [(*one, scores[one[1]]) for one in objects]))
    assert best.thresholds is not None
    assert best.thresholds.per_class == {3: pytest.approx(0.45)}
    assert best.thresholds.of((3, 7, 20)) == (pytest.approx(0.45), pytest.approx(0.15), pytest.approx(0.15))
    assert best.per_class[1] is not None  # but it is in the report
    assert best.per_class[2] is None


def test_calibration_by_hand() -> None:
    """Three detections of 0.9, two of them true positives, and a false positive of 0.2: |0.9 - 2/3| and 0.2, 3 to 1."""
    objects = [(1, 3, [0.0, 0, 10, 10]), (1, 3, [20.0, 0, 10, 10])]
    detections = [(1, 3, [20.0 * i, 0, 10, 10], score) for i, score in enumerate((0.9, 0.9, 0.9, 0.2))]
    one = case(objects, detections)
    calibration = compute_calibration(one, match_detections(one, compute_ious(one)), threshold=0.5)
    assert calibration.ece == pytest.approx(0.75 * (0.9 - 2 / 3) + 0.25 * 0.2)
    assert calibration.ece_above_threshold == pytest.approx(0.9 - 2 / 3)
    assert [one.count for one in calibration.bins] == [0, 0, 1, 0, 0, 0, 0, 0, 0, 3]
    assert math.isnan(calibration.bins[0].mean_score)


@pytest.mark.parametrize("seed", range(3))
def test_calibration_error_equals_that_of_hotcoco(seed: int) -> None:
    one = random_case(seed, crowd_share=0)
    matching = match_detections(one, compute_ious(one))
    expected, _ = metrics.calibration_error(one.detections.scores, matching.is_true_positive, 10)
    assert compute_calibration(one, matching, 0.5).ece == pytest.approx(expected, abs=1e-12)


def test_thresholds_do_not_change_ap() -> None:
    """COCO metrics are computed from all detections, not from those above the best threshold."""
    one = random_case(3)
    analysis = analyse(one.ground_truth, one.detections, 100, METRICS)
    assert 0.2 < analysis.threshold < 1
    everything = evaluate_boxes(one.ground_truth, one.detections)
    assert analysis.metrics.values == everything.values
    assert [score.ap for score in analysis.metrics.per_class] == [score.ap for score in everything.per_class]
    cut = evaluate_boxes(one.ground_truth, one.detections.select(one.detections.scores >= analysis.threshold))
    assert cut.ap < analysis.metrics.ap  # so a threshold would have mattered
