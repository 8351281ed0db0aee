"""Panoptic quality: by hand, against a pairwise implementation of the published rules, and against hotcoco."""

import contextlib
import io
import json
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from detrkit.data.categories import Categories
from detrkit.data.dataset import Split
from detrkit.data.splits import load_dataset
from detrkit.errors import DatasetError
from detrkit.evaluation.panoptic import (
    GroundTruthSegments,
    PanopticCounts,
    PanopticMetrics,
    count_image,
    count_panoptic,
    evaluate_panoptic,
    panoptic_metrics,
)
from detrkit.evaluation.results_io import read_panoptic_results, write_panoptic_results, write_segments
from detrkit.structures import PanopticSegment, PanopticSegments
from tests.datasets import write_panoptic

CLASSES = Categories((3, 7, 20), ("cat", "sky", "dog"), (True, False, True))
LABELS = {number: label for label, number in enumerate(CLASSES.ids)}
Pairs = list[tuple[int, PanopticSegments]]


def ground_truth(rows: list[list[int]], labels: dict[int, int], crowds: tuple[int, ...] = ()) -> GroundTruthSegments:
    numbers = np.array(list(labels), np.int64)
    return GroundTruthSegments(
        np.array(rows, np.int32), numbers, np.array(list(labels.values()), np.int64), np.isin(numbers, crowds)
    )


def predicted(rows: list[list[int]], labels: dict[int, int]) -> PanopticSegments:
    """Predicted segments; `labels` maps segment ids to category ids."""
    ids = torch.tensor(rows, dtype=torch.int32)
    return PanopticSegments(
        ids,
        tuple(
            PanopticSegment(n, LABELS.get(number, 0), number, True, 1.0, int((ids == n).sum()))
            for n, number in labels.items()
        ),
    )


def counts_of(true: GroundTruthSegments, found: PanopticSegments) -> list[tuple[float, int, int, int]]:
    counts = count_image(true, found, CLASSES)
    return list(
        zip(
            *(
                column.tolist()
                for column in (counts.iou_sum, counts.true_positives, counts.false_positives, counts.false_negatives)
            ),
            strict=True,
        )
    )


NOTHING = (0.0, 0, 0, 0)


def test_panoptic_counts_by_hand() -> None:
    true = ground_truth([[1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3]], {1: 0, 2: 1, 3: 2})
    cat, sky, dog = counts_of(true, predicted([[1, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3]], {1: 3, 2: 7, 3: 20}))
    assert cat == (pytest.approx(4 / 5), 1, 0, 0)
    assert sky == (pytest.approx(3 / 5), 1, 0, 0)
    assert dog == (pytest.approx(3 / 4), 1, 0, 0)


def test_segments_with_an_iou_of_one_half_do_not_match() -> None:
    true = ground_truth([[1, 1, 1, 1, 2, 2, 2, 2]], {1: 0, 2: 1})
    found = predicted([[5, 5, 0, 0, 6, 6, 6, 7]], {5: 3, 6: 20, 7: 7})
    assert counts_of(true, found) == [(0.0, 0, 1, 1), (0.0, 0, 1, 1), (0.0, 0, 1, 0)]


def test_void_pixels_are_left_out_of_the_union() -> None:
    true = ground_truth([[1, 1, 0, 0, 0, 0]], {1: 0})
    assert counts_of(true, predicted([[5, 5, 5, 5, 5, 5]], {5: 3}))[0] == (1.0, 1, 0, 0)


def test_segment_mostly_on_void_is_ignored_and_one_half_on_void_is_a_false_positive() -> None:
    true = ground_truth([[1, 1, 1, 1, 0, 0, 0]], {1: 1})
    assert counts_of(true, predicted([[0, 0, 0, 5, 5, 5, 0]], {5: 3})) == [NOTHING, (0.0, 0, 0, 1), NOTHING]
    assert counts_of(true, predicted([[0, 0, 5, 5, 5, 5, 0]], {5: 3})) == [(0.0, 0, 1, 0), (0.0, 0, 0, 1), NOTHING]


def test_crowds_are_not_false_negatives_and_ignore_only_their_own_class() -> None:
    true = ground_truth([[9, 9, 9, 1, 1]], {9: 0, 1: 1}, crowds=(9,))
    assert counts_of(true, predicted([[5, 5, 0, 0, 0]], {5: 3})) == [NOTHING, (0.0, 0, 0, 1), NOTHING]
    assert counts_of(true, predicted([[5, 5, 0, 0, 0]], {5: 20})) == [NOTHING, (0.0, 0, 0, 1), (0.0, 0, 1, 0)]
    # a crowd is never matched, even by the very same pixels
    assert counts_of(true, predicted([[5, 5, 5, 0, 0]], {5: 3}))[0] == NOTHING


def test_last_crowd_of_a_class_is_the_one_that_ignores() -> None:
    """As in panopticapi, which keeps one crowd per class."""
    true = ground_truth([[8, 8, 9, 9, 1]], {8: 0, 9: 0, 1: 1}, crowds=(8, 9))
    on_first, on_last = predicted([[5, 5, 0, 0, 0]], {5: 3}), predicted([[0, 0, 5, 5, 0]], {5: 3})
    assert counts_of(true, on_first)[0] == (0.0, 0, 1, 0)
    assert counts_of(true, on_last)[0] == NOTHING


def test_unlisted_ids_are_void_and_segments_without_pixels_are_not_counted() -> None:
    true = ground_truth([[1, 1, 4, 4]], {1: 0, 8: 2})  # 4 has no entry, 8 no pixel
    assert counts_of(true, predicted([[5, 5, 6, 6]], {5: 3, 7: 20})) == [(1.0, 1, 0, 0), NOTHING, NOTHING]
    assert counts_of(true, predicted([[5, 5, 5, 5]], {5: 3}))[0] == (1.0, 1, 0, 0)


def test_segments_of_unknown_categories_are_ignored() -> None:
    assert counts_of(ground_truth([[1, 1]], {1: 0}), predicted([[5, 6]], {5: 99, 6: 3})) == [
        (0.0, 0, 1, 1),
        NOTHING,
        NOTHING,
    ]


def test_means_are_over_the_classes_that_occur() -> None:
    true = ground_truth([[1, 1, 1, 1, 2, 2, 2, 2]], {1: 0, 2: 1})
    scores = panoptic_metrics(count_image(true, predicted([[1, 1, 1, 0, 2, 2, 2, 2]], {1: 3, 2: 7}), CLASSES), CLASSES)
    cat, sky, dog = scores.per_class
    assert (cat.pq, cat.sq, cat.rq) == (0.75, 0.75, 1.0)
    assert np.isnan([dog.pq, dog.sq, dog.rq]).all()
    assert (scores.overall.pq, scores.overall.num_classes) == (0.875, 2)
    assert scores.things is not None
    assert scores.stuff is not None
    assert (scores.things.pq, scores.things.num_classes, scores.stuff.pq) == (0.75, 1, 1.0)
    assert (sky.is_thing, sky.num_segments, scores.num_images, scores.num_segments) == (False, 1, 1, 2)
    again = PanopticMetrics.from_json(json.loads(json.dumps(scores.to_json())))
    assert str(again) == str(scores)
    unsorted = panoptic_metrics(PanopticCounts.zeros(3), replace(CLASSES, is_thing=None))
    assert list(unsorted.groups) == ["all"]
    assert np.isnan(unsorted.pq)


def test_segments_of_another_size_than_the_image_are_rejected() -> None:
    with pytest.raises(ValueError, match="the image has"):
        count_image(ground_truth([[1, 1]], {1: 0}), predicted([[1], [1]], {1: 3}), CLASSES)


def perfect_predictions(split: Split) -> Pairs:
    """The ground truth as predictions."""
    pairs = []
    for record in split.records:
        true = GroundTruthSegments.from_record(record)
        numbers = dict(zip(true.segment_ids.tolist(), true.labels.tolist(), strict=True))
        pairs.append(
            (record.image_id, predicted(true.ids.tolist(), {n: split.categories.ids[k] for n, k in numbers.items()}))
        )
    return pairs


def perturbed(split: Split, seed: int) -> Pairs:
    """The ground truth with segments shifted, cut, relabelled and removed, and others added on void pixels and crowds."""
    random = np.random.default_rng(seed)
    pairs = []
    for record in split.records:
        true = GroundTruthSegments.from_record(record)
        height, width = true.ids.shape
        ids, labels = np.zeros_like(true.ids), {}

        def add(mask: np.ndarray, label: int, ids: np.ndarray = ids, labels: dict[int, int] = labels) -> None:
            number = len(labels) + 1
            ids[mask] = number
            labels[number] = split.categories.ids[label]

        for place in random.permutation(len(true.labels)).tolist():
            mask = np.roll(true.ids == true.segment_ids[place], random.integers(-12, 13, 2), (0, 1))
            if random.random() < 0.15:
                mask[:, : width // 2] = False
            if random.random() < 0.9:
                add(mask, int(true.labels[place] if random.random() < 0.85 else random.choice(true.labels)))
        for _ in range(3):
            y, x = (int(random.integers(0, side)) for side in (height, width))
            mask = np.zeros_like(ids, bool)
            mask[y : y + 60, x : x + 60] = True
            add(mask & (ids == 0), int(random.integers(len(split.categories))))
        add(true.ids == 0, 0)
        for place in np.flatnonzero(true.is_crowd).tolist():
            mask = true.ids == true.segment_ids[place]
            left = np.arange(width) < mask.any(0).nonzero()[0].mean()
            add(mask & left, int(true.labels[place]))
            add(mask & ~left, int(true.labels[place]))
        present = set(np.unique(ids).tolist())
        pairs.append((record.image_id, predicted(ids.tolist(), {n: k for n, k in labels.items() if n in present})))
    return pairs


def matches_of(mask: np.ndarray, category: int, void: np.ndarray, segments: PanopticSegments) -> dict[int, float]:
    """IoUs of the predicted segments of a class that match a true one."""
    others = {one.id: segments.ids.numpy() == one.id for one in segments.segments if one.category_id == category}
    overlaps = {n: float((mask & other).sum() / (mask | (other & ~void)).sum()) for n, other in others.items()}
    return {number: overlap for number, overlap in overlaps.items() if overlap > 0.5}


def quality_by_the_rules(split: Split, pairs: Pairs) -> dict[str, tuple[float, float, float]]:
    """PQ, SQ and RQ of every class that occurs, by name, comparing the masks of every pair of segments."""
    overlaps: dict[int, list[float]] = defaultdict(list)
    num_unmatched: dict[int, int] = defaultdict(int)  # false positives and false negatives
    place_of = {image_id: place for place, image_id in enumerate(split.records.image_ids)}
    for image_id, segments in pairs:
        true, ids = GroundTruthSegments.from_record(split.records[place_of[image_id]]), segments.ids.numpy()
        masks = [(k, true.ids == n) for n, k in zip(true.segment_ids, true.labels.tolist(), strict=True)]
        crowds = {k: mask for (k, mask), is_crowd in zip(masks, true.is_crowd, strict=True) if is_crowd}
        void, matched = true.ids == 0, set()
        for (label, mask), is_crowd in zip(masks, true.is_crowd, strict=True):
            matches = {} if is_crowd else matches_of(mask, split.categories.ids[label], void, segments)
            assert len(matches) <= 1
            overlaps[label] += matches.values()
            matched |= matches.keys()
            num_unmatched[label] += not is_crowd and not matches
        for one in segments.segments:
            label, mask = split.categories.ids.index(one.category_id), ids == one.id
            ignored = (mask & (void | crowds.get(label, np.zeros_like(void)))).sum() / mask.sum()
            num_unmatched[label] += one.id not in matched and ignored <= 0.5
    qualities = {}
    for label, name in enumerate(split.categories.names):
        right, total = len(overlaps[label]), len(overlaps[label]) + num_unmatched[label] / 2
        if total:
            mean = sum(overlaps[label]) / right if right else 0.0
            qualities[name] = (sum(overlaps[label]) / total, mean, right / total)
    return qualities


@pytest.fixture(scope="module")
def mini(shared: Path) -> Split:
    return load_dataset(shared / "data" / "coco-panoptic-mini").val


def test_ground_truth_has_a_panoptic_quality_of_one(mini: Split) -> None:
    scores = evaluate_panoptic(mini, perfect_predictions(mini))
    for quality in scores.groups.values():
        assert (quality.pq, quality.sq, quality.rq) == (1, 1, 1)
    assert (scores.num_images, scores.num_segments) == (52, 642)  # 648 with crowds


def test_perturbed_ground_truth_is_scored_by_the_published_rules(mini: Split, tmp_path: Path) -> None:
    half = replace(mini, records=mini.records[10:36])
    assert sum(int(record.is_crowd.sum()) for record in half.records) > 1
    pairs = perturbed(half, 0)
    scores = evaluate_panoptic(half, pairs)
    expected = quality_by_the_rules(half, pairs)
    known = {one.name: (one.pq, one.sq, one.rq) for one in scores.per_class if not np.isnan(one.pq)}
    assert known.keys() == expected.keys()
    for name, numbers in expected.items():
        assert known[name] == pytest.approx(numbers, abs=1e-9), name
    assert scores.pq == pytest.approx(np.mean([one[0] for one in expected.values()]), abs=1e-9)
    assert 0.1 < scores.pq < 0.6
    assert sum(one.false_positives for one in scores.per_class) > 20


@pytest.mark.slow
def test_results_files_are_scored_as_by_hotcoco(mini: Split, tmp_path: Path) -> None:
    from hotcoco.panoptic import pq_compute

    pairs = perturbed(mini, 1)
    scores = evaluate_panoptic(mini, pairs)
    results = tmp_path / "panoptic_predictions.json"
    write_panoptic_results(results, [write_segments(results, *pair) for pair in pairs])
    assert len(list((tmp_path / "panoptic_predictions").glob("*.png"))) == len(pairs)
    again = evaluate_panoptic(mini, read_panoptic_results(results, mini))
    assert str(again) == str(scores)
    folder = mini.source.parent.parent / "panoptic_val2017"
    with contextlib.redirect_stdout(io.StringIO()):
        theirs = pq_compute(str(mini.source), str(results), str(folder), str(tmp_path / "panoptic_predictions"))
    for name, quality in zip(("All", "Things", "Stuff"), scores.groups.values(), strict=True):
        assert theirs[name]["n"] == quality.num_classes
        for number in ("pq", "sq", "rq"):
            assert theirs[name][number] == pytest.approx(getattr(quality, number), abs=1e-9)


def test_counts_of_processes_add_up(tmp_path: Path) -> None:
    split = load_dataset(write_panoptic(tmp_path / "a", num_images=5)).val
    pairs = perturbed(split, 2)
    whole = count_panoptic(split, pairs)
    parts = [count_panoptic(split, pairs[rank::2]) for rank in range(2)]
    joined = PanopticCounts.sum(parts, len(split.categories))
    assert joined.num_images == 5
    for name in ("true_positives", "false_positives", "false_negatives"):
        assert getattr(joined, name).tolist() == getattr(whole, name).tolist()
    np.testing.assert_allclose(joined.iou_sum, whole.iou_sum, rtol=0, atol=1e-12)


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Split, Path]:
    split = load_dataset(write_panoptic(tmp_path / "data")).val
    results = tmp_path / "run" / "panoptic_predictions.json"
    write_panoptic_results(results, [write_segments(results, *pair) for pair in perfect_predictions(split)])
    return split, results


def test_pngs_may_be_in_the_folder_of_the_json(saved: tuple[Split, Path]) -> None:
    split, results = saved
    for file in results.with_suffix("").iterdir():
        file.rename(results.parent / file.name)
    results.with_suffix("").rmdir()
    assert evaluate_panoptic(split, read_panoptic_results(results, split)).pq == 1


Document = dict[str, Any]
MALFORMED: dict[str, Callable[[Document], Any]] = {
    "has image_id 77, which the dataset does not have": lambda d: d["annotations"][0].update(image_id=77),
    "image_id 1 occurs twice": lambda d: d["annotations"].append(d["annotations"][0]),
    "has no entry for 1 of 2 images, first 2": lambda d: d["annotations"].pop(),
    "expected COCO panoptic results": lambda d: d.pop("annotations"),
    r"annotations\[0\]: found 3, expected COCO panoptic": lambda d: d["annotations"].insert(0, 3),
    "leads out of": lambda d: d["annotations"][0].update(file_name="../x.png"),
    "cannot be read": lambda d: d["annotations"][0].update(file_name="x.png"),
    r"segments_info: found None": lambda d: d["annotations"][0].pop("segments_info"),
    r"segments_info\[0\]: found 1": lambda d: d["annotations"][0]["segments_info"].insert(0, 1),
    r"id: found 300, expected unique ids from 1 to": lambda d: d["annotations"][0]["segments_info"].append(
        d["annotations"][0]["segments_info"][1]
    ),
    r"category_id 5, which the dataset": lambda d: d["annotations"][0]["segments_info"][0].update(category_id=5),
    r"1 segment ids are not in the JSON's segments_info, first 70000": lambda d: d["annotations"][0][
        "segments_info"
    ].pop(0),
}


@pytest.mark.parametrize("message", MALFORMED)
def test_malformed_results_are_rejected_in_one_sentence(saved: tuple[Split, Path], message: str) -> None:
    split, results = saved
    document = json.loads(results.read_text())
    MALFORMED[message](document)
    results.write_text(json.dumps(document))
    with pytest.raises(DatasetError, match=message) as caught:
        list(read_panoptic_results(results, split))
    assert "\n" not in str(caught.value)
