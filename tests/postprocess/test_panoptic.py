"""Segments out of masks: by hand, against the published numbers, and its two defects with what mends them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from detrkit.postprocess.panoptic import VOID, KeptQueries, Merged, Style, kept_queries, merge_segments

THING, STUFF = 0, 1  # labels of the tests by hand
IS_THING = (True, False)


def candidates_of(
    logits: Tensor, labels: list[int], scores: list[float] | None = None, size: tuple[int, int] | None = None
) -> KeptQueries:
    size = size or (logits.shape[1], logits.shape[2])
    given_scores = torch.tensor(scores or [0.9] * len(labels))
    return KeptQueries(logits, torch.tensor(labels, dtype=torch.int64), given_scores, size, size, size)


def regions(rows: list[str]) -> Tensor:
    """Mask logits of as many queries as there are digits: 5 where a query's digit stands, -5 elsewhere."""
    digits = torch.tensor([[int(character) for character in row] for row in rows])
    return torch.stack([torch.where(digits == query, 5.0, -5.0) for query in range(int(digits.max()) + 1)])


def kept(class_logits: Tensor, threshold: float) -> tuple[Tensor, Tensor, Tensor]:
    probabilities = class_logits.softmax(-1)
    keep = kept_queries(probabilities[:, :-1], probabilities[:, -1], threshold)
    return keep, *probabilities[keep, :-1].max(-1)


@pytest.mark.parametrize("threshold", [0.85, 0.5])
@pytest.mark.parametrize("image", [0, 1])
def test_published_segments_are_reproduced_bit_for_bit(shared: Path, threshold: float, image: int) -> None:
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


def test_merged_stuff_stays_merged() -> None:
    """The published code merges once; what was merged has no area left, is dropped as too small, and given to others."""
    sky = regions(["0000222111", "0000222111"])  # two queries for one sky, and a ball between them
    sky[2] = sky[2].clamp(min=-4.0)  # which is the next best everywhere
    candidates = candidates_of(sky, [STUFF, STUFF, THING])
    corrected = merge_segments(candidates, IS_THING)
    assert (corrected.labels, corrected.areas) == ((STUFF, THING), (14, 6))
    reference = merge_segments(candidates, IS_THING, "reference")
    assert (reference.labels, reference.areas) == ((STUFF, THING), (8, 12))


def test_padding_is_cut_off_before_masks_are_resized() -> None:
    """The photo is the left half of the padded image; the published code squeezes all of it into the photo."""
    left = regions(["0011222222222222"] * 8)  # cells; the photo covers the first eight columns
    candidates = KeptQueries(
        left[:3], torch.tensor([STUFF, THING, STUFF]), torch.tensor([0.9, 0.9, 0.9]), (32, 64), (32, 32), (32, 32)
    )
    ids = merge_segments(candidates, (True, False)).ids
    reference = merge_segments(candidates, (True, False), "reference").ids
    assert int((ids == 1).sum()) == pytest.approx(8 * 32, abs=32)  # the thing: cells 2 and 3, that is, pixels 8 to 15
    assert ids[16, 12] == 1
    assert reference[16, 12] != 1
    assert reference[16, 6] == 1  # half as far to the right as it is


def test_a_small_segment_is_returned_to_what_lies_beneath() -> None:
    logits = regions(["0000011111", "0000011111", "0000011111"])
    speck = torch.full((1, 3, 10), -5.0)
    speck[0, 1, 2:4] = 9.0  # two pixels on top of query 0
    merged = merge_segments(candidates_of(torch.cat([logits, speck]), [THING, THING, THING]), IS_THING)
    assert merged.areas == (15, 15)
    assert merged.ids[1].tolist() == [0] * 5 + [1] * 5


def test_things_of_one_class_are_not_merged_and_scores_are_those_of_the_best() -> None:
    things = merge_segments(candidates_of(regions(["00001111"] * 2), [THING, THING]), IS_THING)
    assert (things.labels, things.areas) == ((THING, THING), (8, 8))
    stuff = merge_segments(candidates_of(regions(["00001111"] * 2), [STUFF, STUFF], [0.9, 0.95]), IS_THING)
    assert (stuff.labels, stuff.areas) == ((STUFF,), (16,))
    assert stuff.scores == pytest.approx((0.95,))


@pytest.mark.parametrize("style", ["corrected", "reference", "huggingface"])
def test_without_kept_queries_there_are_no_segments(style: Style) -> None:
    merged = merge_segments(candidates_of(torch.zeros(0, 4, 4), [], []), IS_THING, style)
    assert merged.labels == ()
    assert (merged.ids == VOID).all()


@pytest.mark.parametrize("style", ["corrected", "reference"])
def test_where_all_segments_are_too_small_nothing_is_left(style: Style) -> None:
    merged = merge_segments(candidates_of(regions(["01", "01"]), [THING, THING]), IS_THING, style)
    assert merged.labels == ()
    assert (merged.ids == VOID).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 8), st.sampled_from(["corrected", "huggingface"]))
def test_ids_areas_and_labels_agree(seed: int, count: int, style: Style) -> None:
    random = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, 6, 7, generator=random) * 3
    labels = torch.randint(0, 4, (count,), generator=random)
    is_thing = (True, False, True, False)
    candidates = KeptQueries(logits, labels, torch.rand(count, generator=random), (24, 28), (22, 25), (33, 40))
    merged = merge_segments(candidates, is_thing, style)
    check_areas(merged)
    if style == "corrected":
        assert min(merged.areas, default=5) > 4
        stuff = [label for label in merged.labels if not is_thing[label]]
        assert len(stuff) == len(set(stuff))
        assert set(merged.labels) <= set(labels.tolist())


def check_areas(merged: Merged) -> None:
    assert len(merged.labels) == len(merged.scores) == len(merged.areas)
    assert [int((merged.ids == number).sum()) for number in range(len(merged.labels))] == list(merged.areas)
    assert int((merged.ids == VOID).sum()) == merged.ids.numel() - sum(merged.areas)


@pytest.mark.parametrize("seed", range(6))
def test_segments_in_the_style_of_transformers_are_its_own(seed: int) -> None:
    transformers = pytest.importorskip("transformers")
    random = torch.Generator().manual_seed(seed)
    class_logits = torch.randn(1, 30, 9, generator=random) * 4
    coarse = torch.randn(1, 30, 3, 4, generator=random) * 6
    masks = torch.nn.functional.interpolate(coarse, (24, 32), mode="bilinear")
    is_thing = [label < 5 for label in range(8)]
    outputs = transformers.models.detr.modeling_detr.DetrSegmentationOutput(
        logits=class_logits, pred_masks=masks, pred_boxes=torch.zeros(1, 30, 4)
    )
    theirs = transformers.DetrImageProcessor().post_process_panoptic_segmentation(
        outputs, threshold=0.5, label_ids_to_fuse={5, 6, 7}, target_sizes=[(60, 90)]
    )[0]
    keep, scores, labels = kept(class_logits[0], 0.5)
    candidates = KeptQueries(masks[0][keep], labels, scores, (96, 128), (96, 128), (60, 90))
    merged = merge_segments(candidates, is_thing, "huggingface")
    assert torch.equal(merged.ids + 1, theirs["segmentation"].long())
    labels_of = {}
    for one in theirs["segments_info"]:
        labels_of.setdefault(one["id"], one["label_id"])
    assert labels_of == {number + 1: label for number, label in enumerate(merged.labels)}
