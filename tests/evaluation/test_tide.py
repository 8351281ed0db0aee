"""Every mistake has one kind: each by hand, and all of them as another implementation counts them."""

import numpy as np
import pytest

from detrkit.evaluation.arrays import EvalInput
from detrkit.evaluation.coco import _run
from detrkit.evaluation.coco_matching import compute_ious, match
from detrkit.evaluation.confusion import confuse
from detrkit.evaluation.tide import KINDS, TIDE_NAMES, Errors, classify_errors
from tests.evaluation.cases import case, random_case

CAT = (1, 3, [0.0, 0, 100, 100])


def judged(one: EvalInput, threshold: float = 0.5) -> Errors:
    overlaps = compute_ious(one)
    return classify_errors(one, overlaps, match(one, overlaps), threshold)


def kinds(errors: Errors) -> list[str]:
    return ["-" if kind < 0 else KINDS[kind] for kind in errors.kind_of]


# moved by d of 100 px, two equal boxes have an IoU of (100 - d) / (100 + d): 25 px give 0.6, 50 px 0.33, 90 px 0.05
@pytest.mark.parametrize(
    ("found", "kind", "missed"),
    [
        ((1, 3, [50.0, 0, 100, 100], 0.9), "badly placed", 0),
        ((1, 7, [25.0, 0, 100, 100], 0.9), "wrong class", 0),
        ((1, 3, [90.0, 0, 100, 100], 0.9), "background", 1),
        ((1, 3, [300.0, 0, 100, 100], 0.9), "background", 1),
        ((1, 7, [50.0, 0, 100, 100], 0.9), "wrong class and badly placed", 1),
        ((2, 3, [0.0, 0, 100, 100], 0.9), "background", 1),
    ],
)
def test_one_false_detection_of_a_cat(found: tuple[int, int, list[float], float], kind: str, missed: int) -> None:
    errors = judged(one := case([CAT], [found], num_images=2))
    assert kinds(errors) == [kind]
    assert errors.counts == {**dict.fromkeys(KINDS, 0), kind: 1, "missed": missed}
    assert errors.is_unanswered.tolist() == [True]
    assert errors.num_right == 0
    expected = [1, 1] if found[0] == 2 else [2, 0]
    assert errors.per_photo(one).tolist() == expected


def test_a_duplicate_is_what_comes_second() -> None:
    errors = judged(case([CAT], [(1, 3, [25.0, 0, 100, 100], 0.8), (1, 3, [0.0, 0, 100, 100], 0.9)]))
    assert kinds(errors) == ["duplicate", "-"]
    assert errors.num_right == 1
    assert not errors.is_unanswered.any()


def test_what_is_not_shown_is_no_mistake_and_does_not_answer() -> None:
    errors = judged(case([CAT], [(1, 3, [0.0, 0, 100, 100], 0.4), (1, 7, [300.0, 0, 9, 9], 0.4)]))
    assert kinds(errors) == ["-", "-"]
    assert errors.counts["missed"] == 1


def test_the_first_kind_that_fits_counts() -> None:
    """A "cat" upon a dog, and a little upon a cat as well, is badly placed; a second "cat" upon both is a wrong class."""
    dog = (1, 7, [50.0, 0, 100, 100])
    errors = judged(case([CAT, dog], [(1, 3, [50.0, 0, 100, 100], 0.9)]))
    assert kinds(errors) == ["badly placed"]
    assert errors.counts["missed"] == 1  # the dog: the detection means the cat
    near_dog = (1, 7, [10.0, 0, 100, 100])
    assert kinds(judged(case([CAT, near_dog], [(1, 3, CAT[2], 0.9), (1, 3, CAT[2], 0.8)]))) == ["-", "wrong class"]


def test_crowds_are_no_mistakes() -> None:
    errors = judged(case([CAT], [(1, 3, [10.0, 10, 50, 50], 0.9)], crowds=(0,)))
    assert kinds(errors) == ["-"]
    assert errors.counts["missed"] == 0


@pytest.mark.parametrize("seed", range(4))
def test_counts_are_those_of_another_implementation(seed: int) -> None:
    one = random_case(seed, crowd_share=0)
    expected = _run(one, 100).tide_errors()["counts"]
    counts = judged(one, threshold=0.0).counts
    assert {TIDE_NAMES[kind]: count for kind, count in counts.items()} == expected
    assert min(counts.values()) > 0


def test_every_false_detection_has_exactly_one_kind() -> None:
    one = random_case(7)
    errors = judged(one, 0.3)
    shown = one.found.scores >= 0.3
    ignored = match(one, compute_ious(one)).is_ignored
    assert ((errors.kind_of >= 0) == (shown & ~errors.is_right & ~ignored)).all()


def test_confusions_by_hand() -> None:
    """A cat found, a cat taken for a dog, a dog missed, a cow where nothing is; a second "cow" on the cat that is found."""
    objects = [CAT, (1, 3, [200.0, 0, 100, 100]), (1, 7, [400.0, 0, 100, 100])]
    found = [
        (1, 3, [0.0, 0, 100, 100], 0.6),
        (1, 20, [0.0, 0, 100, 100], 0.9),
        (1, 7, [200.0, 0, 100, 100], 0.8),
        (1, 20, [700.0, 0, 100, 100], 0.7),
        (1, 20, [700.0, 0, 100, 100], 0.1),
    ]
    overlaps = compute_ious(one := case(objects, found))
    confusion = confuse(one, overlaps, match(one, overlaps), threshold=0.5)
    expected = [
        [1, 1, 0, 0],
        [0, 0, 0, 1],
        [0, 0, 0, 0],
        [0, 0, 2, 0],
    ]
    assert confusion.counts.tolist() == expected
    assert confusion.most_frequent(3) == [("cat", "dog", 1, 0.5)]


def test_a_confusion_matrix_counts_everything_once() -> None:
    one = random_case(9)
    overlaps = compute_ious(one)
    matching = match(one, overlaps)
    confusion = confuse(one, overlaps, matching, 0.3)
    objects = one.truth.objects_per_class()
    assert confusion.counts[:-1].sum(1).tolist() == objects.tolist()
    assert confusion.counts[:, :-1].sum() == ((one.found.scores >= 0.3) & ~matching.is_ignored).sum()
    assert np.trace(confusion.counts) == ((one.found.scores >= 0.3) & matching.is_right).sum()


def test_a_large_matrix_is_folded_without_losing_anything() -> None:
    one = random_case(9)
    overlaps = compute_ious(one)
    confusion = confuse(one, overlaps, match(one, overlaps), 0.3)
    folded = confusion.folded(2)
    assert folded.counts.sum() == confusion.counts.sum()
    assert len(folded.names) == 2
    assert folded.names[-1] == "2 other classes"
    assert folded.counts[-1, -1] == 0
    assert folded.counts[-1].sum() == confusion.counts[-1].sum()
    assert confusion.folded(3) is confusion
