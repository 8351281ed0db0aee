"""Masks in an explanation: the mask head's own, drawn for the queries that a page keeps, and the page that shows them."""

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
from detrkit.explain.document import PageDocument
from detrkit.explain.explanation import Explanation, explain
from detrkit.explain.maps import BinaryBlock
from detrkit.explain.masks import LONGEST_MASK, Masks, masks_of, pack_masks, pack_segments
from detrkit.explain.page import build_page, read_parts
from detrkit.models.attention.recording import record_attention
from detrkit.structures import Annotations, PanopticSegments
from tests.detectors import NAMES, small_detector
from tests.explain.test_page import Opened, browser, document_of

__all__ = ["browser"]  # a fixture
_STUFF = Categories((1, 2, 5), NAMES, (True, True, False))


@pytest.fixture(scope="module")
def mask_detector(photo: Sample) -> Detector:
    """Masks that differ from query to query and cell to cell, and are sure of little."""
    detector = small_detector(mask_head=True)
    head = detector.model.mask_head
    assert head is not None
    with torch.no_grad():
        detector.model.get_parameter("heads.class_head.bias")[-1] -= 2  # so that queries take part in the segments
        first = head.get_parameter("input_stages.0.convolution.weight")
        first[:, head.width :].mul_(400)  # what differs between queries, against what they share
        logits = _all_logits(detector, photo)
        head.exit.weight.div_(logits.std())
        head.exit.bias.sub_(logits.mean()).div_(logits.std())
    return Detector.from_model(detector.model, _STUFF, image_size=64)


@pytest.fixture(scope="module")
def photo() -> Sample:
    """96 x 73 pixels, of which a model of 64 pixels sees 84 x 64: neither is a whole number of cells."""
    pixels = torch.zeros(3, 96, 73, dtype=torch.uint8)
    pixels[0, 20:60, 10:40], pixels[1, 50:, 30:], pixels[2, :30] = 250, 200, 230
    return Sample(pixels, Annotations(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)), 0, (96, 73))


@pytest.fixture(scope="module")
def explained(mask_detector: Detector, photo: Sample) -> Explanation:
    return _explained(mask_detector, photo)


def _explained(detector: Detector, photo: Sample, threshold: float = 0.1) -> Explanation:
    settings = detector.model, detector.preprocessing, detector.categories, photo
    return explain(*settings, segment_threshold=threshold)


def _of(explanation: Explanation) -> tuple[Masks, PanopticSegments]:
    assert explanation.masks is not None
    assert explanation.segments is not None
    return explanation.masks, explanation.segments


def _array(page: PageDocument, place: dict[str, Any]) -> np.ndarray:
    count = int(np.prod(place["shape"]))
    return np.frombuffer(page.block, place["type"], count, place["offset"]).reshape(place["shape"])


def _all_logits(detector: Detector, photo: Sample) -> Tensor:
    """Every query's mask, as the model draws it by itself."""
    batch = collate([EvalTransform(64)(photo)])
    with torch.no_grad():
        masks = detector.model.eval()(batch.images, padding_invariant=True).masks
    assert masks is not None
    return masks[0]


def test_the_packed_masks_are_the_models_to_one_part_in_255(
    mask_detector: Detector, photo: Sample, explained: Explanation
) -> None:
    page = document_of(explained, mask_detector, queries=[7, 2])
    kept = page.document["keptQueries"]
    assert kept[:2] == [7, 2]
    expected = _all_logits(mask_detector, photo)[kept].sigmoid()
    assert expected.flatten(1).std(1).min() > 0.02, "flat masks would tell nothing"
    found = torch.from_numpy(_array(page, page.document["masks"]["bytes"]) / np.float32(255))
    torch.testing.assert_close(found, expected, rtol=0, atol=1 / 255)
    assert page.document["masks"]["cell"] == (4.0, 4.0)


@pytest.mark.parametrize("padding_invariant", [True, False])
def test_padding_is_cut_off(mask_detector: Detector, photo: Sample, padding_invariant: bool) -> None:
    tall = replace(photo, image=torch.full((3, 90, 200), 90, dtype=torch.uint8), original_size=(90, 200))
    batch = collate([EvalTransform(64)(one) for one in (photo, tall)])
    assert batch.is_padded
    attention = record_attention(mask_detector.model.eval(), batch, padding_invariant=padding_invariant)[0]
    masks = masks_of(mask_detector.model, attention, padding_invariant)
    assert masks is not None
    found = masks.probabilities([3, 8])
    height, width = batch.sizes[0]
    padded = batch.images.shape[-1]
    side = 4 if padding_invariant else padded / -(-padded // 4)
    assert found.shape == (2, -(-height // 4), int(-(-width // side)))
    with torch.no_grad():
        predictions = mask_detector.model(
            batch.images, batch.padding_mask, padding_invariant=padding_invariant, all_masks=False
        )
        head, inputs = mask_detector.model.mask_head, predictions.mask_inputs
        assert head is not None
        sizes = batch.sizes if padding_invariant else None
        whole = head(inputs, torch.tensor([3, 8, 0]), [2, 1], sizes).sigmoid()
    torch.testing.assert_close(found, whole[:2, : found.shape[1], : found.shape[2]], rtol=0, atol=1e-5)
    assert found.shape[2] < whole.shape[2]


def test_a_fine_mask_is_pooled_by_its_mean(explained: Explanation) -> None:
    masks, _ = _of(explained)
    inputs = replace(masks.inputs, padded=(1066, 800))

    class Fine(Masks):
        def logits(self, queries: Tensor, counts: object) -> Tensor:
            return torch.randn(len(queries), 267, 200, generator=torch.Generator().manual_seed(0))

    class Sized(type(inputs)):  # type: ignore[misc]
        mask_size = (267, 200)

    sized = Sized(**vars(inputs))
    fine, block = Fine(masks.head, sized, (1066, 800), padding_invariant=True), BinaryBlock()
    packed = pack_masks(block, fine, [0, 1])
    assert packed.bytes.shape == (2, 134, 100)
    assert max(packed.bytes.shape) <= LONGEST_MASK
    assert fine.num_values == 134 * 100
    assert packed.cell == (8.0, 8.0)
    found = np.frombuffer(bytes(block.content), np.uint8).reshape(2, 134, 100) / 255
    expected = fine.logits(torch.tensor([0, 1]), [2]).sigmoid()
    assert found[1, 3, 5] == pytest.approx(float(expected[1, 6:8, 10:12].mean()), abs=1 / 255)
    assert found[0, 133, 9] == pytest.approx(float(expected[0, 266, 18:20].mean()), abs=1 / 255), "the edge's own mean"


def test_the_segments_are_those_of_the_detector(mask_detector: Detector, photo: Sample, explained: Explanation) -> None:
    _, segments = _of(explained)
    expected = mask_detector.predict_segments(photo.image, threshold=0.1)
    assert isinstance(expected, PanopticSegments)
    assert len(segments) > 1, "one segment would fit anything"
    # its norms are folded, so that pixels on an edge may fall to the other side
    assert float((segments.ids == expected.ids).float().mean()) > 0.995
    assert [one.label for one in segments.segments] == [one.label for one in expected.segments]
    page = document_of(explained, mask_detector)
    packed = page.document["masks"]["segments"]
    np.testing.assert_array_equal(_array(page, packed["ids"]), segments.ids.numpy())
    assert [one["name"] for one in packed["named"]] == [one.class_name for one in segments.segments]
    assert sum(one["share"] for one in packed["named"]) == pytest.approx(1, abs=0.01)


def test_a_large_map_of_segments_is_thinned() -> None:
    ids = torch.arange(300, dtype=torch.int32).repeat_interleave(4).expand(900, -1).contiguous()
    block = BinaryBlock()
    place = pack_segments(block, PanopticSegments(ids, ()))
    assert place.shape == (200, 267)
    assert max(block.content) == 255, "what has no number of a byte is none"


def test_the_stages_tell_of_the_mask_head(explained: Explanation) -> None:
    passage = next(one for one in explained.passages if one.part == "mask_head")
    assert passage.gives[0][0] == 1


def test_a_damaged_mask_head_ends_in_a_sentence(photo: Sample) -> None:
    detector = small_detector(mask_head=True)
    with torch.no_grad():
        detector.model.get_parameter("mask_head.output.bias").fill_(torch.nan)
    with pytest.raises(CheckpointError, match="not finite"):
        _explained(detector, photo)


def test_a_page_without_a_mask_head_has_nothing_of_the_views(explanation: Explanation, detector: Detector) -> None:
    page = document_of(explanation, detector)
    assert "masks" not in page.document
    html = build_page(page)
    added = set(read_parts().script.splitlines()) - set(read_parts(with_masks=False).script.splitlines())
    assert len(added) > 100
    assert not added & set(html.splitlines())
    assert 'value="mask"' not in html


@pytest.fixture(params=[400, 1280])
def opened(
    request: pytest.FixtureRequest, browser: Any, explained: Explanation, mask_detector: Detector, tmp_path: Path
) -> Iterator[Opened]:
    path = tmp_path / "masks.html"
    path.write_text(build_page(document_of(explained, mask_detector)), encoding="utf-8")
    page = Opened(browser, path, request.param)
    yield page
    assert page.complaints == []
    assert [url for url in page.fetched if not url.startswith(("file:", "data:"))] == []
    page.context.close()


def test_the_mask_view_shows_the_chosen_querys_mask(opened: Opened, explained: Explanation) -> None:
    masks, _ = _of(explained)
    opened.page.check('input[value="mask"]')
    opened.slide("strength", 1)
    chips, scores = opened.page.locator("#detections button"), explained.scores_and_labels[0]
    for number, query in enumerate(scores.argsort(descending=True).tolist()[:3]):
        chips.nth(number).click()
        assert opened.page.is_checked('input[value="mask"]'), "choosing another query stays in the view"
        mask = masks.probabilities([query])[0]
        rows, columns = mask.shape
        # the last row and column lie at the edge, and their middles perhaps beyond it
        places = [divmod(int(one.argmax()), columns - 1) for one in (mask[:-1, :-1], -mask[:-1, :-1])]
        grid = (masks.resized[0] / 4, masks.resized[1] / 4)
        shown = [opened.heat_at(*place, grid)[3] for place in places]  # type: ignore[arg-type]
        assert shown == pytest.approx([255 * float(mask[place]) for place in places], abs=2)
        covered = re.search(r"Its mask covers ([\d.]+) % of the photo", opened.text("#status"))
        assert covered is not None
        sides = [torch.full((count,), 4.0) for count in (rows, columns)]
        for side, count, length in zip(sides, (rows, columns), masks.resized, strict=True):
            side[-1] = length - 4 * (count - 1)
        area = (mask >= 0.5) * sides[0][:, None] * sides[1]
        assert float(covered[1]) == pytest.approx(100 * float(area.sum()) / np.prod(masks.resized), abs=1)
    assert opened.page.is_disabled("#layer")
    opened.page.check('input[value="query"]')
    assert not opened.page.is_disabled("#layer")


def test_arrow_keys_and_clicks_choose_a_mask(opened: Opened, explained: Explanation) -> None:
    masks, _ = _of(explained)
    ranked = explained.scores_and_labels[0].argsort(descending=True).tolist()
    opened.page.check('input[value="mask"]')
    photo = opened.page.locator("#boxes")
    for key, rank in (("ArrowRight", 1), ("ArrowDown", 2), ("ArrowLeft", 1), ("ArrowUp", 0), ("ArrowUp", -1)):
        photo.press(key)
        assert f"Query {ranked[rank]} says" in opened.text("#status")
    best = masks.probabilities(ranked)[:, :-1, :-1].topk(2, dim=0)
    margin, columns = best.values[0] - best.values[1], best.values.shape[-1]
    seen = set()
    for first in set(best.indices[0][best.values[0] > 0.55].tolist()):
        # where this query leads the most
        row, column = divmod(int((margin * (best.indices[0] == first) * (best.values[0] > 0.55)).argmax()), columns)
        if margin[row, column] > 2 / 255:
            opened.click_photo((column + 0.5) * 4 / masks.resized[1], (row + 0.5) * 4 / masks.resized[0])
            assert f"Query {ranked[first]} says" in opened.text("#status")
            seen.add(first)
    assert len(seen) > 1


def test_the_segments_view_names_and_shows_them(opened: Opened, explained: Explanation) -> None:
    _, segments = _of(explained)
    assert not opened.page.is_visible("#segments")
    opened.page.check('input[value="segments"]')
    names = opened.page.locator("#segments button")
    assert [text.split(" 0.")[0] for text in names.all_text_contents()] == [one.class_name for one in segments.segments]
    assert f"{len(segments)} segments" in opened.text("#status")
    rows, columns = segments.ids.shape
    colours = {}
    for row, column in ((10, 10), (40, 30), (80, 60), (90, 5), (5, 65)):
        number = int(segments.ids[row, column])
        opened.click_photo((column + 0.5) / columns, (row + 0.5) / rows)
        assert names.nth(number - 1).get_attribute("aria-pressed") == "true"
        assert segments.segments[number - 1].class_name in opened.text("#status")
        colours.setdefault(number, set()).add(tuple(opened.heat_at(row, column, (rows, columns))))
    assert all(len(of_one) == 1 for of_one in colours.values())
    wide = opened.page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert wide[0] <= wide[1]


def test_without_things_and_stuff_there_are_masks_alone(
    browser: Any, mask_detector: Detector, photo: Sample, tmp_path: Path
) -> None:
    detector = Detector.from_model(mask_detector.model, Categories((1, 2, 5), NAMES), image_size=64)
    explanation = _explained(detector, photo)
    assert explanation.segments is None
    path = tmp_path / "masks.html"
    path.write_text(build_page(document_of(explanation, detector)), encoding="utf-8")
    page = Opened(browser, path, 800)
    page.page.check('input[value="mask"]')
    assert page.page.locator('input[value="segments"]').count() == 0
    assert page.complaints == []
    page.context.close()
