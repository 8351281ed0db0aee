"""Thresholds, curves and calibration: by hand, and against trying everything."""

import math

import numpy as np
import pytest
from hotcoco import metrics

from detrkit.evaluation.analysis import analyse
from detrkit.evaluation.calibration import calibrate
from detrkit.evaluation.coco import evaluate_boxes
from detrkit.evaluation.coco_matching import compute_ious, match
from detrkit.evaluation.thresholds import MIN_OBJECTS, best_operating_point, best_thresholds, threshold_curves
from tests.evaluation.cases import case, random_case


def test_the_best_threshold_by_hand() -> None:
    """Right at 0.9 and 0.6, false at 0.8 and 0.3, three objects: F1 is 2/4, 2/5, 4/6, 4/7."""
    best = best_operating_point(np.array([0.3, 0.9, 0.6, 0.8]), np.array([False, True, True, False]), 3)
    assert best is not None
    assert best.threshold == pytest.approx(0.45)  # halfway from 0.6 to 0.3
    assert best.f1 == pytest.approx(4 / 6)
    assert best.precision == pytest.approx(2 / 3)
    assert best.recall == pytest.approx(2 / 3)


def test_equal_scores_are_shown_together() -> None:
    """A threshold between the right and the false detection does not exist."""
    best = best_operating_point(np.array([0.5, 0.5]), np.array([True, False]), 1)
    assert best is not None
    assert best.f1 == pytest.approx(2 / 3)
    assert best.threshold == pytest.approx(0.25)


def test_where_nothing_is_right_no_threshold_is_best() -> None:
    assert best_operating_point(np.array([0.5]), np.array([False]), 1) is None
    assert best_operating_point(np.zeros(0), np.zeros(0, bool), 0) is None
    assert best_thresholds(case([(1, 3, [0.0, 0, 9, 9])], [])).to_store is None


@pytest.mark.parametrize("seed", range(3))
def test_no_threshold_is_better_than_the_best(seed: int) -> None:
    one = random_case(seed)
    matching = match(one, compute_ious(one))
    best = best_thresholds(one, matching)
    curves = threshold_curves(one, matching)
    assert best.overall is not None
    assert max(curves.f1) <= best.overall.f1 + 1e-12
    counts = ~matching.is_ignored
    for threshold, precision, recall, f1 in zip(*vars(curves).values(), strict=True):
        shown = counts & (one.found.scores >= threshold)
        right = (shown & matching.is_right).sum()
        assert precision == pytest.approx(right / shown.sum() if shown.any() else 1)
        assert recall == pytest.approx(right / one.truth.num_objects)
        assert f1 == pytest.approx(2 * right / (shown.sum() + one.truth.num_objects))
    shown = counts & (one.found.scores >= best.overall.threshold)
    assert best.overall.precision == pytest.approx((shown & matching.is_right).sum() / shown.sum())


def test_rare_classes_use_the_threshold_of_all() -> None:
    """Just enough objects of one class, one too few of another."""
    objects = [(1, 3, [20.0 * i, 0, 10, 10]) for i in range(MIN_OBJECTS)]
    objects += [(1, 7, [20.0 * i, 100, 10, 10]) for i in range(MIN_OBJECTS - 1)]
    scores = {3: 0.9, 7: 0.3}
    best = best_thresholds(case(objects, [(*one, scores[one[1]]) for one in objects]))
    assert best.to_store is not None
    assert best.to_store.per_class == {3: pytest.approx(0.45)}
    assert best.to_store.of((3, 7, 20)) == (pytest.approx(0.45), pytest.approx(0.15), pytest.approx(0.15))
    assert best.per_class[1] is not None  # shown in the report, all the same
    assert best.per_class[2] is None


def test_calibration_by_hand() -> None:
    """Three detections near 0.9, two of them right; one of 0.2, wrong: |0.9 - 2/3| and 0.2, weighted 3 to 1."""
    objects = [(1, 3, [0.0, 0, 10, 10]), (1, 3, [20.0, 0, 10, 10])]
    found = [(1, 3, [20.0 * i, 0, 10, 10], score) for i, score in enumerate((0.9, 0.9, 0.9, 0.2))]
    one = case(objects, found)
    calibration = calibrate(one, match(one, compute_ious(one)), threshold=0.5)
    assert calibration.error == pytest.approx(0.75 * (0.9 - 2 / 3) + 0.25 * 0.2)
    assert calibration.error_shown == pytest.approx(0.9 - 2 / 3)
    assert [one.count for one in calibration.bins] == [0, 0, 1, 0, 0, 0, 0, 0, 0, 3]
    assert math.isnan(calibration.bins[0].mean_score)


@pytest.mark.parametrize("seed", range(3))
def test_the_calibration_error_is_that_of_another_implementation(seed: int) -> None:
    one = random_case(seed, crowd_share=0)
    matching = match(one, compute_ious(one))
    expected, _ = metrics.calibration_error(one.found.scores, matching.is_right, 10)
    assert calibrate(one, matching, 0.5).error == pytest.approx(expected, abs=1e-12)


def test_thresholds_never_change_ap() -> None:
    """The analysis looks for thresholds and uses them; its COCO numbers are those of all detections."""
    one = random_case(3)
    analysis = analyse(one.truth, one.found, 100)
    assert 0.2 < analysis.threshold < 1
    everything = evaluate_boxes(one.truth, one.found)
    assert analysis.scores.values == everything.values
    assert [score.ap for score in analysis.scores.per_class] == [score.ap for score in everything.per_class]
    cut = evaluate_boxes(one.truth, one.found.select(one.found.scores >= analysis.threshold))
    assert cut.ap < analysis.scores.ap  # so it would have mattered
