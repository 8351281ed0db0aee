"""Matching: small cases by hand, and random ones against a loop over COCO's rules."""

import numpy as np
import pytest

from detrkit.evaluation import coco_matching
from detrkit.evaluation.arrays import EvalInput
from detrkit.evaluation.coco_matching import compute_ious, match_detections
from tests.evaluation.cases import case, random_case


def test_higher_score_is_matched_first_to_the_object_with_the_largest_iou() -> None:
    """Both detections overlap the left object most; the lower score is matched to the other object."""
    objects = [(1, 3, [0.0, 0, 100, 100]), (1, 3, [30.0, 0, 100, 100])]
    detections = [(1, 3, [8.0, 0, 100, 100], 0.6), (1, 3, [0.0, 0, 100, 100], 0.9)]
    result = match_detections(one := case(objects, detections), compute_ious(one))
    assert result.matched_objects.tolist() == [1, 0]
    assert result.matched_detections.tolist() == [1, 0]


def test_detection_inside_a_crowd_is_ignored() -> None:
    """The IoU with a crowd is the intersection over the area of the detection: 1, although the crowd is far larger."""
    one = case(
        [(1, 3, [0.0, 0, 500, 500])], [(1, 3, [50.0, 50, 50, 50], 0.9), (1, 7, [50.0, 50, 50, 50], 0.8)], 1, (0,)
    )
    result = match_detections(one, compute_ious(one))
    assert result.is_ignored.tolist() == [True, False]
    assert not result.is_true_positive.any()


def match_in_a_loop(one: EvalInput, min_iou: float) -> tuple[list[int], list[bool]]:
    """COCO's rules as a loop over detections."""
    object_of, is_ignored = [-1] * len(one.detections), [False] * len(one.detections)
    taken: set[int] = set()
    for d in np.argsort(-one.detections.scores, kind="stable").tolist():
        x, y, w, h = one.detections.boxes[d]
        best, best_iou = -1, min_iou
        for o, (ox, oy, ow, oh) in enumerate(one.ground_truth.boxes):
            if one.ground_truth.image_indices[o] != one.image_indices[d] or one.ground_truth.labels[o] != one.labels[d]:
                continue
            common = max(0, min(x + w, ox + ow) - max(x, ox)) * max(0, min(y + h, oy + oh) - max(y, oy))
            if one.ground_truth.is_crowd[o]:
                is_ignored[d] |= common / (w * h) >= min_iou
            elif o not in taken and (iou := common / (w * h + ow * oh - common)) >= best_iou:
                best, best_iou = o, iou
        if best >= 0:
            object_of[d] = best
            taken.add(best)
            is_ignored[d] = False
    return object_of, [ignored and o < 0 for ignored, o in zip(is_ignored, object_of, strict=True)]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("min_iou", [0.3, 0.5])
def test_vectorised_matching_equals_the_loop(seed: int, min_iou: float, monkeypatch: pytest.MonkeyPatch) -> None:
    one = random_case(seed)
    result = match_detections(one, compute_ious(one), min_iou)
    object_of, is_ignored = match_in_a_loop(one, min_iou)
    assert result.matched_objects.tolist() == object_of
    assert result.is_ignored.tolist() == is_ignored
    assert 0 < result.is_true_positive.sum() < len(one.detections)
    monkeypatch.setattr(coco_matching, "_MAX_PAIRS", 7)  # computed in many chunks
    assert match_detections(one, compute_ious(one), min_iou).matched_objects.tolist() == object_of


def test_removing_low_scores_keeps_the_other_matches() -> None:
    one = random_case(5)
    strong = EvalInput.align(one.ground_truth, one.detections.select(one.detections.scores >= 0.4))
    whole, part = (match_detections(c, compute_ious(c)).matched_objects for c in (one, strong))
    assert whole[one.detections.scores >= 0.4].tolist() == part.tolist()


def test_matching_without_detections_or_objects() -> None:
    for one in (case([], []), case([(1, 3, [0.0, 0, 9, 9])], []), case([], [(1, 3, [0.0, 0, 9, 9], 0.5)])):
        result = match_detections(one, compute_ious(one))
        assert not result.is_true_positive.any()
        assert (result.matched_detections == -1).all()
