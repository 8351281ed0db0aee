"""Masks of an explanation: computed by the mask head, packed, and shown on the page."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from detrkit import Detector, Sample
from detrkit.data.batching import collate
from detrkit.data.categories import Categories
from detrkit.data.transforms.geometry import EvalTransform
from detrkit.errors import CheckpointError
from detrkit.explain.document import PageDocument, page_document
from detrkit.explain.explain import explain_sample
from detrkit.explain.explanation import Explanation
from detrkit.explain.masks import MAX_MASK_SIDE, Masks, masks_for, pack_masks, pack_segments
from detrkit.explain.packing import BinaryBlock
from detrkit.explain.page import build_page, read_parts
from detrkit.models.attention.recording import record_attention
from detrkit.structures import Annotations, ComputedMasks, PanopticSegments
from tests.detectors import NAMES, small_detector
from tests.explain.test_page import OpenedPage, browser
from tests.rounding import assert_equal_up_to_rounding

__all__ = ["browser"]  # a fixture
_STUFF = Categories((1, 2, 5), NAMES, (True, True, False))


@pytest.fixture(scope="module")
def mask_detector(image: Sample) -> Detector:
    """Random weights whose masks differ between queries and cells, with probabilities around 0.5."""
    detector = small_detector(mask_head=True)
    head = detector.model.mask_head
    assert head is not None
    with torch.no_grad():
        detector.model.get_parameter("heads.class_head.bias")[-1] -= 2  # so that queries exceed the segment threshold
        first = head.get_parameter("input_stages.0.convolution.weight")
        first[:, head.width :].mul_(400)  # amplify what differs between queries
        logits = _all_logits(detector, image)
        head.output.weight.div_(logits.std())
        head.output.bias.sub_(logits.mean()).div_(logits.std())
    return Detector.from_model(detector.model, _STUFF, image_size=64)


@pytest.fixture(scope="module")
def image() -> Sample:
    """96 x 73 pixels, resized to 84 x 64 for a model of 64 pixels: not a whole number of cells."""
    pixels = torch.zeros(3, 96, 73, dtype=torch.uint8)
    pixels[0, 20:60, 10:40], pixels[1, 50:, 30:], pixels[2, :30] = 250, 200, 230
    return Sample(pixels, Annotations(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)), 0, (96, 73))


@pytest.fixture(scope="module")
def explained(mask_detector: Detector, image: Sample) -> Explanation:
    return explain_sample(mask_detector, image, threshold=0, segment_threshold=0.1)


def _masks_and_segments(explanation: Explanation) -> tuple[Masks, PanopticSegments]:
    assert explanation.masks is not None
    assert explanation.segments is not None
    return explanation.masks, explanation.segments


def _array(page: PageDocument, location: dict[str, Any]) -> np.ndarray:
    count = int(np.prod(location["shape"]))
    return np.frombuffer(page.block, location["type"], count, location["offset"]).reshape(location["shape"])


def _all_logits(detector: Detector, image: Sample) -> Tensor:
    """Mask logits of all queries from the model's forward pass."""
    batch = collate([EvalTransform(64)(image)])
    with torch.no_grad():
        detector.model.padding_invariant = True
        masks = detector.model.eval()(batch.images).masks
    assert masks is not None
    return masks[0]


def test_packed_masks_equal_the_models_to_one_part_in_255(
    mask_detector: Detector, image: Sample, explained: Explanation
) -> None:
    page = page_document(explained, queries=[7, 2])
    included = page.document["includedQueries"]
    assert included[:2] == [7, 2]
    expected = _all_logits(mask_detector, image)[included].sigmoid()
    assert expected.flatten(1).std(1).min() > 0.02, "constant masks would hide errors"
    packed = torch.from_numpy(_array(page, page.document["masks"]["bytes"]) / np.float32(255))
    torch.testing.assert_close(packed, expected, rtol=0, atol=1 / 255)
    assert page.document["masks"]["cell"] == (4.0, 4.0)


@pytest.mark.parametrize("padding_invariant", [True, False])
def test_masks_are_cropped_to_the_image(mask_detector: Detector, image: Sample, padding_invariant: bool) -> None:
    wide = replace(image, image=torch.full((3, 90, 200), 90, dtype=torch.uint8), original_size=(90, 200))
    batch = collate([EvalTransform(64)(one) for one in (image, wide)])
    assert batch.is_padded
    mask_detector.model.padding_invariant = padding_invariant
    attention = record_attention(mask_detector.model.eval(), batch)[0]
    masks = masks_for(attention, padding_invariant)
    assert masks is not None
    probabilities = masks.probabilities([3, 8])
    height, width = batch.sizes[0]
    padded = batch.images.shape[-1]
    side = 4 if padding_invariant else padded / -(-padded // 4)
    assert probabilities.shape == (2, -(-height // 4), int(-(-width // side)))
    with torch.no_grad():
        predictions = mask_detector.model(batch.images, batch.padding_mask)
        whole = predictions.masks_of([torch.tensor([3, 8]), torch.tensor([0])], batch.sizes).sigmoid()
    assert_equal_up_to_rounding(probabilities, whole[:2, : probabilities.shape[1], : probabilities.shape[2]])
    assert probabilities.shape[2] < whole.shape[2]


def test_large_masks_are_average_pooled() -> None:
    logits = torch.randn(1, 2, 267, 200, generator=torch.Generator().manual_seed(0))
    fine, block = Masks(ComputedMasks(logits), (1066, 800), (1066, 800), padding_invariant=True), BinaryBlock()
    packed = pack_masks(block, fine, [0, 1])
    assert packed.bytes.shape == (2, 134, 100)
    assert max(packed.bytes.shape) <= MAX_MASK_SIDE
    assert fine.num_values == 134 * 100
    assert packed.cell == (8.0, 8.0)
    pooled = np.frombuffer(bytes(block.content), np.uint8).reshape(2, 134, 100) / 255
    expected = fine.logits(torch.tensor([0, 1]), [2]).sigmoid()
    assert pooled[1, 3, 5] == pytest.approx(float(expected[1, 6:8, 10:12].mean()), abs=1 / 255)
    assert pooled[0, 133, 9] == pytest.approx(float(expected[0, 266, 18:20].mean()), abs=1 / 255)


def test_segments_equal_those_of_the_detector(mask_detector: Detector, image: Sample, explained: Explanation) -> None:
    _, segments = _masks_and_segments(explained)
    expected = mask_detector.predict_segments(image.image, threshold=0.1)
    assert isinstance(expected, PanopticSegments)
    assert len(segments) > 1, "a single segment would hide errors"
    # the detector fuses batch norms, so that pixels at edges may differ
    assert float((segments.ids == expected.ids).float().mean()) > 0.995
    assert [one.label for one in segments.segments] == [one.label for one in expected.segments]
    page = page_document(explained)
    packed = page.document["masks"]["segments"]
    np.testing.assert_array_equal(_array(page, packed["ids"]), segments.ids.numpy())
    assert [one["name"] for one in packed["named"]] == [one.class_name for one in segments.segments]
    assert sum(one["share"] for one in packed["named"]) == pytest.approx(1, abs=0.01)


def test_large_segment_maps_are_reduced() -> None:
    ids = torch.arange(300, dtype=torch.int32).repeat_interleave(4).expand(900, -1).contiguous()
    block = BinaryBlock()
    location = pack_segments(block, PanopticSegments(ids, ()))
    assert location.shape == (200, 267)
    assert max(block.content) == 255, "ids above 255 become 0"


def test_stages_include_the_mask_head(explained: Explanation) -> None:
    stage = next(stage for stage in explained.stages if stage.part == "mask_head")
    assert stage.outputs[0][0] == 1


def test_mask_head_with_nan_is_rejected(image: Sample) -> None:
    detector = small_detector(mask_head=True)
    with torch.no_grad():
        detector.model.get_parameter("mask_head.output.bias").fill_(torch.nan)
    with pytest.raises(CheckpointError, match="not finite"):
        explain_sample(detector, image)


def test_page_without_a_mask_head_has_no_mask_views(explanation: Explanation) -> None:
    page = page_document(explanation)
    assert "masks" not in page.document
    html = build_page(page)
    added = set(read_parts().script.splitlines()) - set(read_parts(with_masks=False).script.splitlines())
    assert len(added) > 100
    assert not added & set(html.splitlines())
    assert 'value="mask"' not in html


@pytest.fixture(params=[pytest.param(400, marks=pytest.mark.slow), 1280])
def opened(
    request: pytest.FixtureRequest, browser: Any, explained: Explanation, tmp_path: Path
) -> Iterator[OpenedPage]:
    path = tmp_path / "masks.html"
    explained.to_html(path)
    page = OpenedPage(browser, path, request.param)
    yield page
    assert page.messages == []
    assert [url for url in page.requests if not url.startswith(("file:", "data:"))] == []
    page.context.close()


def test_mask_view_shows_the_mask_of_the_chosen_query(opened: OpenedPage, explained: Explanation) -> None:
    masks, _ = _masks_and_segments(explained)
    opened.page.check('input[value="mask"]')
    opened.slide("opacity", 1)
    chips, scores = opened.page.locator("#detections button"), explained.scores
    for number, query in enumerate(scores.argsort(descending=True).tolist()[:3]):
        chips.nth(number).click()
        assert opened.page.is_checked('input[value="mask"]'), "choosing another query keeps the view"
        mask = masks.probabilities([query])[0]
        rows, columns = mask.shape
        # the centers of the last row and column may lie outside the image
        cells = [divmod(int(values.argmax()), columns - 1) for values in (mask[:-1, :-1], -mask[:-1, :-1])]
        grid = (masks.resized[0] / 4, masks.resized[1] / 4)
        shown = [opened.heat_at(*cell, grid)[3] for cell in cells]  # type: ignore[arg-type]
        assert shown == pytest.approx([255 * float(mask[cell]) for cell in cells], abs=2)
        covered = re.search(r"Its mask covers ([\d.]+) % of the image", opened.text("#status"))
        assert covered is not None
        sides = [torch.full((count,), 4.0) for count in (rows, columns)]
        for side, count, length in zip(sides, (rows, columns), masks.resized, strict=True):
            side[-1] = length - 4 * (count - 1)
        area = (mask >= 0.5) * sides[0][:, None] * sides[1]
        assert float(covered[1]) == pytest.approx(100 * float(area.sum()) / np.prod(masks.resized), abs=1)
    assert opened.page.is_disabled("#layer")
    opened.page.check('input[value="query"]')
    assert not opened.page.is_disabled("#layer")


def test_arrow_keys_and_clicks_choose_a_mask(opened: OpenedPage, explained: Explanation) -> None:
    masks, _ = _masks_and_segments(explained)
    ranked = explained.scores.argsort(descending=True).tolist()
    opened.page.check('input[value="mask"]')
    canvas = opened.page.locator("#boxes")
    for key, rank in (("ArrowRight", 1), ("ArrowDown", 2), ("ArrowLeft", 1), ("ArrowUp", 0), ("ArrowUp", -1)):
        canvas.press(key)
        assert f"Query {ranked[rank]} predicts" in opened.text("#status")
    best = masks.probabilities(ranked)[:, :-1, :-1].topk(2, dim=0)
    margin, columns = best.values[0] - best.values[1], best.values.shape[-1]
    chosen = set()
    for first in set(best.indices[0][best.values[0] > 0.55].tolist()):
        # the cell where this query has the largest margin
        row, column = divmod(int((margin * (best.indices[0] == first) * (best.values[0] > 0.55)).argmax()), columns)
        if margin[row, column] > 2 / 255:
            opened.click_image((column + 0.5) * 4 / masks.resized[1], (row + 0.5) * 4 / masks.resized[0])
            assert f"Query {ranked[first]} predicts" in opened.text("#status")
            chosen.add(first)
    assert len(chosen) > 1


def test_segment_view_lists_and_shows_the_segments(opened: OpenedPage, explained: Explanation) -> None:
    _, segments = _masks_and_segments(explained)
    assert not opened.page.is_visible("#segments")
    opened.page.check('input[value="segments"]')
    names = opened.page.locator("#segments button")
    assert [text.split(" 0.")[0] for text in names.all_text_contents()] == [one.class_name for one in segments.segments]
    assert f"{len(segments)} segments" in opened.text("#status")
    rows, columns = segments.ids.shape
    colors = {}
    for row, column in ((10, 10), (40, 30), (80, 60), (90, 5), (5, 65)):
        number = int(segments.ids[row, column])
        opened.click_image((column + 0.5) / columns, (row + 0.5) / rows)
        assert names.nth(number - 1).get_attribute("aria-pressed") == "true"
        assert segments.segments[number - 1].class_name in opened.text("#status")
        colors.setdefault(number, set()).add(tuple(opened.heat_at(row, column, (rows, columns))))
    assert all(len(of_segment) == 1 for of_segment in colors.values())
    wide = opened.page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert wide[0] <= wide[1]


def test_categories_without_things_and_stuff_give_masks_but_no_segments(
    browser: Any, mask_detector: Detector, image: Sample, tmp_path: Path
) -> None:
    detector = Detector.from_model(mask_detector.model, Categories((1, 2, 5), NAMES), image_size=64)
    explanation = explain_sample(detector, image)
    assert explanation.segments is None
    path = tmp_path / "masks.html"
    explanation.to_html(path)
    page = OpenedPage(browser, path, 800)
    page.page.check('input[value="mask"]')
    assert page.page.locator('input[value="segments"]').count() == 0
    assert page.messages == []
    page.context.close()
