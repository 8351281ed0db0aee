"""Panoptic segments, by hand and compared with golden numbers of the published code and with transformers."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from detrkit.postprocess.panoptic import VOID, KeptQueries, SegmentMap, Style, confident_queries, merge_segments

THING, STUFF = 0, 1  # labels
IS_THING = (True, False)


def make_queries(
    logits: Tensor, labels: list[int], scores: list[float] | None = None, size: tuple[int, int] | None = None
) -> KeptQueries:
    size = size or (logits.shape[1], logits.shape[2])
    given_scores = torch.tensor(scores or [0.9] * len(labels))
    return KeptQueries(logits, torch.tensor(labels, dtype=torch.int64), given_scores, size, size, size)


def regions(rows: list[str]) -> Tensor:
    """Return mask logits of one query per digit: 5 at the digit, -5 elsewhere."""
    digits = torch.tensor([[int(character) for character in row] for row in rows])
    return torch.stack([torch.where(digits == query, 5.0, -5.0) for query in range(int(digits.max()) + 1)])


def kept(class_logits: Tensor, threshold: float) -> tuple[Tensor, Tensor, Tensor]:
    probabilities = class_logits.softmax(-1)
    keep = confident_queries(probabilities[:, :-1], probabilities[:, -1], threshold)
    return keep, *probabilities[keep, :-1].max(-1)


@pytest.mark.parametrize("threshold", [0.85, 0.5])
@pytest.mark.parametrize("image", [0, 1])
def test_reference_segments_equal_the_published_ones_exactly(shared: Path, threshold: float, image: int) -> None:
    golden = np.load(shared / "golden" / "postprocess_masks.npz")
    is_thing = [label <= 90 for label in range(250)]
    class_logits = torch.from_numpy(golden["pred_logits"][image])
    keep, scores, labels = kept(class_logits, threshold)
    processed, original = (tuple(golden[f"{name}_sizes"][image].tolist()) for name in ("processed", "original"))
    logits = torch.from_numpy(golden["pred_masks"][image])[keep]
    merged = merge_segments(KeptQueries(logits, labels, scores, (160, 208), processed, original), is_thing, "reference")
    expected = golden[f"panoptic_t{threshold}_image{image}_segments"].reshape(-1, 4)
    rows = [
        [number, int(is_thing[label]), label, area]
        for number, (label, area) in enumerate(zip(merged.labels, merged.areas, strict=True))
    ]
    assert rows == expected.tolist()
    if rows:
        np.testing.assert_array_equal(merged.ids.numpy(), golden[f"panoptic_t{threshold}_image{image}_ids"])
    else:
        assert (merged.ids == VOID).all()


def test_merged_stuff_stays_merged_after_small_segments_are_dropped() -> None:
    """The published code merges once; merged queries have no area, are dropped as too small, and go to other segments."""
    sky = regions(["0000222111", "0000222111"])  # two queries of one stuff segment, and a thing in between
    sky[2] = sky[2].clamp(min=-4.0)  # second best everywhere
    queries = make_queries(sky, [STUFF, STUFF, THING])
    corrected = merge_segments(queries, IS_THING)
    assert (corrected.labels, corrected.areas) == ((STUFF, THING), (14, 6))
    reference = merge_segments(queries, IS_THING, "reference")
    assert (reference.labels, reference.areas) == ((STUFF, THING), (8, 12))


def test_padding_is_removed_before_masks_are_resized() -> None:
    """The image is the left half of the padded image; the published code resizes all of it to the image."""
    left = regions(["0011222222222222"] * 8)  # cells; the image covers the first eight columns
    queries = KeptQueries(
        left[:3], torch.tensor([STUFF, THING, STUFF]), torch.tensor([0.9, 0.9, 0.9]), (32, 64), (32, 32), (32, 32)
    )
    ids = merge_segments(queries, (True, False)).ids
    reference = merge_segments(queries, (True, False), "reference").ids
    assert int((ids == 1).sum()) == pytest.approx(8 * 32, abs=32)  # the thing: cells 2 and 3, pixels 8 to 15
    assert ids[16, 12] == 1
    assert reference[16, 12] != 1
    assert reference[16, 6] == 1  # at half its x


def test_pixels_of_a_small_segment_go_to_the_next_best_segment() -> None:
    logits = regions(["0000011111", "0000011111", "0000011111"])
    speck = torch.full((1, 3, 10), -5.0)
    speck[0, 1, 2:4] = 9.0  # two pixels on top of query 0
    merged = merge_segments(make_queries(torch.cat([logits, speck]), [THING, THING, THING]), IS_THING)
    assert merged.areas == (15, 15)
    assert merged.ids[1].tolist() == [0] * 5 + [1] * 5


def test_things_of_one_class_are_kept_and_stuff_is_merged_with_the_highest_score() -> None:
    things = merge_segments(make_queries(regions(["00001111"] * 2), [THING, THING]), IS_THING)
    assert (things.labels, things.areas) == ((THING, THING), (8, 8))
    stuff = merge_segments(make_queries(regions(["00001111"] * 2), [STUFF, STUFF], [0.9, 0.95]), IS_THING)
    assert (stuff.labels, stuff.areas) == ((STUFF,), (16,))
    assert stuff.scores == pytest.approx((0.95,))


@pytest.mark.parametrize("style", ["corrected", "reference", "huggingface"])
def test_no_confident_queries_give_no_segments(style: Style) -> None:
    merged = merge_segments(make_queries(torch.zeros(0, 4, 4), [], []), IS_THING, style)
    assert merged.labels == ()
    assert (merged.ids == VOID).all()


@pytest.mark.parametrize("style", ["corrected", "reference"])
def test_segments_that_are_all_too_small_give_no_segments(style: Style) -> None:
    merged = merge_segments(make_queries(regions(["01", "01"]), [THING, THING]), IS_THING, style)
    assert merged.labels == ()
    assert (merged.ids == VOID).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 8), st.sampled_from(["corrected", "huggingface"]))
def test_ids_areas_and_labels_are_consistent(seed: int, count: int, style: Style) -> None:
    random = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, 6, 7, generator=random) * 3
    labels = torch.randint(0, 4, (count,), generator=random)
    is_thing = (True, False, True, False)
    queries = KeptQueries(logits, labels, torch.rand(count, generator=random), (24, 28), (22, 25), (33, 40))
    merged = merge_segments(queries, is_thing, style)
    check_areas(merged)
    if style == "corrected":
        assert min(merged.areas, default=5) > 4
        stuff = [label for label in merged.labels if not is_thing[label]]
        assert len(stuff) == len(set(stuff))
        assert set(merged.labels) <= set(labels.tolist())


def check_areas(merged: SegmentMap) -> None:
    assert len(merged.labels) == len(merged.scores) == len(merged.areas)
    assert [int((merged.ids == number).sum()) for number in range(len(merged.labels))] == list(merged.areas)
    assert int((merged.ids == VOID).sum()) == merged.ids.numel() - sum(merged.areas)


@pytest.mark.parametrize("seed", range(6))
def test_huggingface_segments_equal_those_of_transformers(seed: int) -> None:
    transformers = pytest.importorskip("transformers")
    random = torch.Generator().manual_seed(seed)
    class_logits = torch.randn(1, 30, 9, generator=random) * 4
    coarse = torch.randn(1, 30, 3, 4, generator=random) * 6
    masks = torch.nn.functional.interpolate(coarse, (24, 32), mode="bilinear")
    is_thing = [label < 5 for label in range(8)]
    outputs = transformers.models.detr.modeling_detr.DetrSegmentationOutput(
        logits=class_logits, pred_masks=masks, pred_boxes=torch.zeros(1, 30, 4)
    )
    expected = transformers.DetrImageProcessor().post_process_panoptic_segmentation(
        outputs, threshold=0.5, label_ids_to_fuse={5, 6, 7}, target_sizes=[(60, 90)]
    )[0]
    keep, scores, labels = kept(class_logits[0], 0.5)
    queries = KeptQueries(masks[0][keep], labels, scores, (96, 128), (96, 128), (60, 90))
    merged = merge_segments(queries, is_thing, "huggingface")
    assert torch.equal(merged.ids + 1, expected["segmentation"].long())
    labels_of = {}
    for one in expected["segments_info"]:
        labels_of.setdefault(one["id"], one["label_id"])
    assert labels_of == {number + 1: label for number, label in enumerate(merged.labels)}
