"""Who answers for whom: by hand, and as a loop over COCO's rules would have it."""

import numpy as np
import pytest

from detrkit.evaluation import coco_matching as matching
from detrkit.evaluation.arrays import EvalInput
from detrkit.evaluation.coco_matching import compute_ious, match
from tests.evaluation.cases import case, random_case


def test_the_better_score_chooses_first_and_takes_the_larger_overlap() -> None:
    """Both detections fit the left object best; the weaker one has to take the right one."""
    objects = [(1, 3, [0.0, 0, 100, 100]), (1, 3, [30.0, 0, 100, 100])]
    found = [(1, 3, [8.0, 0, 100, 100], 0.6), (1, 3, [0.0, 0, 100, 100], 0.9)]
    result = match(one := case(objects, found), compute_ious(one))
    assert result.object_of.tolist() == [1, 0]
    assert result.detection_of.tolist() == [1, 0]


def test_a_crowd_makes_detections_neither_right_nor_wrong() -> None:
    """Inside the crowd wholly: its share of overlap is 1, though the crowd is a hundred times as large."""
    one = case(
        [(1, 3, [0.0, 0, 500, 500])], [(1, 3, [50.0, 50, 50, 50], 0.9), (1, 7, [50.0, 50, 50, 50], 0.8)], 1, (0,)
    )
    result = match(one, compute_ious(one))
    assert result.is_ignored.tolist() == [True, False]
    assert not result.is_right.any()


def by_loop(one: EvalInput, min_iou: float) -> tuple[list[int], list[bool]]:
    """COCO's rules, detection by detection."""
    object_of, is_ignored = [-1] * len(one.found), [False] * len(one.found)
    taken: set[int] = set()
    for d in np.argsort(-one.found.scores, kind="stable").tolist():
        x, y, w, h = one.found.boxes[d]
        best, best_iou = -1, min_iou
        for o, (ox, oy, ow, oh) in enumerate(one.truth.boxes):
            if one.truth.photos[o] != one.photos[d] or one.truth.labels[o] != one.labels[d]:
                continue
            common = max(0, min(x + w, ox + ow) - max(x, ox)) * max(0, min(y + h, oy + oh) - max(y, oy))
            if one.truth.is_crowd[o]:
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
def test_choosing_all_at_once_gives_what_choosing_one_by_one_gives(
    seed: int, min_iou: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = random_case(seed)
    result = match(one, compute_ious(one), min_iou)
    object_of, is_ignored = by_loop(one, min_iou)
    assert result.object_of.tolist() == object_of
    assert result.is_ignored.tolist() == is_ignored
    assert 0 < result.is_right.sum() < len(one.found)
    monkeypatch.setattr(matching, "_MAX_PAIRS", 7)  # compared in many parts
    assert match(one, compute_ious(one), min_iou).object_of.tolist() == object_of


def test_leaving_out_weak_detections_leaves_the_other_matches_as_they_are() -> None:
    one = random_case(5)
    strong = EvalInput.of(one.truth, one.found.select(one.found.scores >= 0.4))
    whole, part = (match(c, compute_ious(c)).object_of for c in (one, strong))
    assert whole[one.found.scores >= 0.4].tolist() == part.tolist()


def test_nothing_found_and_nothing_there() -> None:
    for one in (case([], []), case([(1, 3, [0.0, 0, 9, 9])], []), case([], [(1, 3, [0.0, 0, 9, 9], 0.5)])):
        result = match(one, compute_ious(one))
        assert not result.is_right.any()
        assert (result.detection_of == -1).all()
