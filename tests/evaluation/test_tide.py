"""Error types and confusion matrix: each type by hand, and counts against hotcoco's TIDE."""

import numpy as np
import pytest

from detrkit.evaluation.arrays import EvalInput
from detrkit.evaluation.coco import run_hotcoco
from detrkit.evaluation.coco_matching import compute_ious, match_detections
from detrkit.evaluation.confusion import compute_confusion_matrix
from detrkit.evaluation.tide import ERROR_TYPES, TIDE_NAMES, DetectionErrors, classify_errors
from tests.evaluation.cases import case, random_case

CAT = (1, 3, [0.0, 0, 100, 100])


def classify(one: EvalInput, threshold: float = 0.5) -> DetectionErrors:
    overlaps = compute_ious(one)
    return classify_errors(one, overlaps, match_detections(one, overlaps), threshold)


def types_of(errors: DetectionErrors) -> list[str]:
    return ["-" if kind < 0 else ERROR_TYPES[kind] for kind in errors.error_types]


# moved by d of 100 px, two equal boxes have an IoU of (100 - d) / (100 + d): 25 px give 0.6, 50 px 0.33, 90 px 0.05
@pytest.mark.parametrize(
    ("detection", "error_type", "missed"),
    [
        ((1, 3, [50.0, 0, 100, 100], 0.9), "localization", 0),
        ((1, 7, [25.0, 0, 100, 100], 0.9), "classification", 0),
        ((1, 3, [90.0, 0, 100, 100], 0.9), "background", 1),
        ((1, 3, [300.0, 0, 100, 100], 0.9), "background", 1),
        ((1, 7, [50.0, 0, 100, 100], 0.9), "both", 1),
        ((2, 3, [0.0, 0, 100, 100], 0.9), "background", 1),
    ],
)
def test_error_type_of_one_false_positive(
    detection: tuple[int, int, list[float], float], error_type: str, missed: int
) -> None:
    errors = classify(one := case([CAT], [detection], num_images=2))
    assert types_of(errors) == [error_type]
    assert errors.counts == {**dict.fromkeys(ERROR_TYPES, 0), error_type: 1, "missed": missed}
    assert errors.is_unmatched.tolist() == [True]
    assert errors.num_true_positives == 0
    expected = [1, 1] if detection[0] == 2 else [2, 0]
    assert errors.errors_per_image(one).tolist() == expected


def test_lower_score_on_a_matched_object_is_a_duplicate() -> None:
    errors = classify(case([CAT], [(1, 3, [25.0, 0, 100, 100], 0.8), (1, 3, [0.0, 0, 100, 100], 0.9)]))
    assert types_of(errors) == ["duplicate", "-"]
    assert errors.num_true_positives == 1
    assert not errors.is_unmatched.any()


def test_detections_below_the_threshold_are_ignored() -> None:
    errors = classify(case([CAT], [(1, 3, [0.0, 0, 100, 100], 0.4), (1, 7, [300.0, 0, 9, 9], 0.4)]))
    assert types_of(errors) == ["-", "-"]
    assert errors.counts["missed"] == 1


def test_first_error_type_that_applies_counts() -> None:
    """A "cat" on a dog, overlapping a cat: localization. A second "cat" on a dog and a matched cat: classification."""
    dog = (1, 7, [50.0, 0, 100, 100])
    errors = classify(case([CAT, dog], [(1, 3, [50.0, 0, 100, 100], 0.9)]))
    assert types_of(errors) == ["localization"]
    assert errors.counts["missed"] == 1  # the dog: the error accounts for the cat
    near_dog = (1, 7, [10.0, 0, 100, 100])
    assert types_of(classify(case([CAT, near_dog], [(1, 3, CAT[2], 0.9), (1, 3, CAT[2], 0.8)]))) == [
        "-",
        "classification",
    ]


def test_detections_in_crowds_are_not_errors() -> None:
    errors = classify(case([CAT], [(1, 3, [10.0, 10, 50, 50], 0.9)], crowds=(0,)))
    assert types_of(errors) == ["-"]
    assert errors.counts["missed"] == 0


@pytest.mark.parametrize("seed", range(4))
def test_counts_equal_those_of_hotcoco(seed: int) -> None:
    one = random_case(seed, crowd_share=0)
    expected = run_hotcoco(one, 100).tide_errors()["counts"]
    counts = classify(one, threshold=0.0).counts
    assert {TIDE_NAMES[error_type]: count for error_type, count in counts.items()} == expected
    assert min(counts.values()) > 0


def test_every_false_positive_has_an_error_type() -> None:
    one = random_case(7)
    errors = classify(one, 0.3)
    shown = one.detections.scores >= 0.3
    ignored = match_detections(one, compute_ious(one)).is_ignored
    assert ((errors.error_types >= 0) == (shown & ~errors.is_true_positive & ~ignored)).all()


def test_confusion_matrix_by_hand() -> None:
    """A cat detected, a cat predicted as dog, a dog missed, a "cow" on background, and a "cow" on the detected cat."""
    objects = [CAT, (1, 3, [200.0, 0, 100, 100]), (1, 7, [400.0, 0, 100, 100])]
    detections = [
        (1, 3, [0.0, 0, 100, 100], 0.6),
        (1, 20, [0.0, 0, 100, 100], 0.9),
        (1, 7, [200.0, 0, 100, 100], 0.8),
        (1, 20, [700.0, 0, 100, 100], 0.7),
        (1, 20, [700.0, 0, 100, 100], 0.1),
    ]
    overlaps = compute_ious(one := case(objects, detections))
    confusion = compute_confusion_matrix(one, overlaps, match_detections(one, overlaps), threshold=0.5)
    expected = [
        [1, 1, 0, 0],
        [0, 0, 0, 1],
        [0, 0, 0, 0],
        [0, 0, 2, 0],
    ]
    assert confusion.counts.tolist() == expected
    assert confusion.most_frequent(3) == [("cat", "dog", 1, 0.5)]


def test_confusion_matrix_counts_every_object_and_detection_once() -> None:
    one = random_case(9)
    overlaps = compute_ious(one)
    matching = match_detections(one, overlaps)
    confusion = compute_confusion_matrix(one, overlaps, matching, 0.3)
    objects = one.ground_truth.objects_per_class()
    assert confusion.counts[:-1].sum(1).tolist() == objects.tolist()
    assert confusion.counts[:, :-1].sum() == ((one.detections.scores >= 0.3) & ~matching.is_ignored).sum()
    assert np.trace(confusion.counts) == ((one.detections.scores >= 0.3) & matching.is_true_positive).sum()


def test_merging_classes_keeps_the_sums_of_the_confusion_matrix() -> None:
    one = random_case(9)
    overlaps = compute_ious(one)
    confusion = compute_confusion_matrix(one, overlaps, match_detections(one, overlaps), 0.3)
    merged = confusion.merge_rarely_confused(2)
    assert merged.counts.sum() == confusion.counts.sum()
    assert len(merged.class_names) == 2
    assert merged.class_names[-1] == "2 other classes"
    assert merged.counts[-1, -1] == 0
    assert merged.counts[-1].sum() == confusion.counts[-1].sum()
    assert confusion.merge_rarely_confused(3) is confusion
