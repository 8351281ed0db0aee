"""The page in a real browser, from disk, with the network cut off."""

import json
import math
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from detrkit import Detector, Sample
from detrkit.explain.document import PageDocument, page_document
from detrkit.explain.explanation import Explanation, explain
from detrkit.explain.page import build_page
from detrkit.models.attention.recording_deformable import DeformableAttentionInputs
from tests.detectors import NAMES, small_detector

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    path = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip("needs Chromium on the PATH")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield opened
        opened.close()


def document_of(explanation: Explanation, detector: Detector, **changes: Any) -> PageDocument:
    given: dict[str, Any] = {"photo_name": "<photo>.png", "model_name": "tiny", "threshold": 0.0, **changes}
    return page_document(explanation, detector.model.config, **given)


@pytest.fixture(scope="module")
def file(explanation: Explanation, detector: Detector, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "page.html"
    path.write_text(build_page(document_of(explanation, detector)), encoding="utf-8")
    return path


class Opened:
    """A page in the browser, and all that it complained about or fetched."""

    def __init__(self, browser: Any, file: Path, width: int, scheme: str = "light") -> None:
        self.context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True, has_touch=width < 500
        )
        self.page = self.context.new_page()
        self.complaints: list[str] = []
        self.fetched: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.fetched.append(request.url))
        self.page.goto(file.as_uri())
        self.page.wait_for_selector("body[data-ready]", timeout=20_000)

    def hottest(self) -> list[int]:
        return [int(number) for number in self.page.get_attribute("#heat", "data-hottest").split(",")]

    def heat_at(self, row: int, column: int, grid: tuple[int, int]) -> list[int]:
        """The heat's pixel in the middle of a cell, RGBA."""
        code = """([y, x]) => {
            const heat = document.getElementById("heat"), copy = document.createElement("canvas");
            copy.width = copy.height = 1;
            const pen = copy.getContext("2d", { willReadFrequently: true });
            pen.drawImage(heat, Math.floor(x * heat.width), Math.floor(y * heat.height), 1, 1, 0, 0, 1, 1);
            return Array.from(pen.getImageData(0, 0, 1, 1).data);
        }"""
        return list(self.page.evaluate(code, [(row + 0.5) / grid[0], (column + 0.5) / grid[1]]))

    def click_photo(self, x: float, y: float) -> None:
        place = self.page.locator("#boxes").bounding_box()
        self.page.locator("#boxes").click(position={"x": x * place["width"], "y": y * place["height"]})

    def slide(self, name: str, value: float) -> None:
        self.page.locator(f"#{name}").fill(str(value))

    def text(self, selector: str) -> str:
        return str(self.page.inner_text(selector)).replace("\u00a0", " ")


@pytest.fixture(params=[400, 1280])
def opened(request: pytest.FixtureRequest, browser: Any, file: Path) -> Iterator[Opened]:
    page = Opened(browser, file, request.param)
    yield page
    assert page.complaints == []
    assert [url for url in page.fetched if not url.startswith(("file:", "data:"))] == []
    page.context.close()


def place_of(weights: torch.Tensor, columns: int) -> list[int]:
    return list(divmod(int(weights.argmax()), columns))


def test_a_detection_chosen_shows_where_its_query_looks(opened: Opened, explanation: Explanation) -> None:
    attention = explanation.attention
    scores, _ = explanation.scores_and_labels
    chips = opened.page.locator("#detections button")
    assert chips.count() == len(scores)
    seen = set()
    for number, query in enumerate(scores.argsort(descending=True).tolist()[:4]):
        chips.nth(number).click()
        weights = attention.mean_weights("decoder_cross", queries=[query])[0]
        assert opened.hottest() == place_of(weights, 8)
        seen.add(tuple(opened.hottest()))
        hot, cold = (opened.heat_at(*place_of(each, 8), (8, 8)) for each in (weights, -weights))
        assert hot[3] > cold[3]
        assert hot[1] > cold[1]
        assert f"Query {query} says" in opened.text("#status")
        box = explanation.layer_boxes[-1, query].clamp(0, 96)
        mass = 100 * float(attention.grid.mass_inside(weights, box))
        told = float(re.search(r"([\d.]+) % of its attention", opened.text("#status"))[1])  # type: ignore[index]
        assert told == pytest.approx(mass, abs=1)
    assert len(seen) > 1, "all queries look at the same cell, so this test could not fail"


def test_a_pixel_clicked_shows_where_its_cell_looks(opened: Opened, explanation: Explanation) -> None:
    attention = explanation.attention
    seen = set()
    for x, y in ((0.1, 0.1), (0.6, 0.3), (0.95, 0.8)):
        opened.click_photo(x, y)
        token = attention.grid.token_at(x * 96, y * 96)
        assert opened.hottest() == place_of(attention.mean_weights("encoder", queries=[token])[0], 8)
        assert f"row {token // 8 + 1}, column {token % 8 + 1} of 8 \u00d7 8" in opened.text("#status")
        seen.add(tuple(opened.hottest()))
    assert len(seen) > 1
    opened.page.locator("#boxes").press("ArrowUp")
    expected = attention.mean_weights("encoder", queries=[token - 8])[0]
    assert opened.hottest() == place_of(expected, 8)


def test_sliders_choose_layer_head_and_threshold(opened: Opened, explanation: Explanation) -> None:
    attention, (scores, _) = explanation.attention, explanation.scores_and_labels
    best = int(scores.argmax())
    for layer in range(3):
        for head in (2, 7):
            opened.slide("layer", layer + 1)
            opened.slide("head", head + 1)
            weights = attention.weights("decoder_cross", layer, heads=[head], queries=[best])
            assert opened.hottest() == place_of(weights, 8), (layer, head)
    opened.page.check('input[value="cell"]')
    for layer, x in ((0, 0.3), (1, 0.3), (1, 0.8), (0, 0.8)):
        opened.slide("layer", layer + 1)
        opened.click_photo(x, 0.7)
        token = attention.grid.token_at(x * 96, 0.7 * 96)
        assert opened.hottest() == place_of(attention.weights("encoder", layer, heads=[7], queries=[token]), 8)
    opened.slide("threshold", 0.5)
    assert opened.page.locator("#detections button").count() == int((scores >= 0.5).sum()) < len(scores)
    opened.slide("threshold", 1)
    assert "Nothing above the threshold" in opened.text("#detections")
    opened.slide("strength", 0)
    assert opened.heat_at(*opened.hottest(), (8, 8))[3] == 0


def test_the_layers_show_how_box_and_class_move(opened: Opened, explanation: Explanation) -> None:
    best = int(explanation.scores_and_labels[0].argmax())
    cards = opened.page.locator(".layer")
    assert cards.count() == 3
    for layer in range(3):
        label = int(explanation.layer_probabilities[layer, best, :-1].argmax())
        assert NAMES[label] in cards.nth(layer).text_content()
    cards.nth(0).click()
    expected = explanation.attention.mean_weights("decoder_cross", 0, queries=[best])
    assert opened.hottest() == place_of(expected, 8)
    assert opened.text("#layerValue") == "1 of 3"


def test_objects_costs_and_losses_are_told(opened: Opened, explanation: Explanation) -> None:
    matching = explanation.matching
    assert matching is not None
    objects = opened.page.locator("#objects tbody tr")
    assert objects.count() == len(matching.outcomes)
    opened.slide("threshold", 1)
    for number, outcome in enumerate(matching.outcomes):
        assert outcome.if_missed in objects.nth(number).text_content()
    query, number = matching.layer_pairs[-1][0]
    row = opened.page.locator("#costs tbody tr").filter(has=opened.page.get_by_text(f"query {query}", exact=True))
    cell = row.locator("td").nth(number)
    assert cell.get_attribute("class") == "matched"
    cell.locator("button").click()
    assert f"= {float(matching.cost[query, number]):.3f}" in opened.text("#terms")
    opened.page.locator('input[name="term"]').nth(2).check()
    assert cell.text_content() == f"{float(matching.box_cost[query, number]):.2f}"
    total = sum(one.total for one in matching.losses)
    shown = opened.page.locator("#losses tbody tr").last.locator("td").all_text_contents()
    assert sum(float(text) for text in shown[3:6]) == pytest.approx(total, abs=3e-3)


def test_the_page_fits_its_window_and_every_stage_is_there(opened: Opened, explanation: Explanation) -> None:
    wide = opened.page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert wide[0] <= wide[1]
    shown = opened.page.locator("#stages").text_content()
    for passage in explanation.passages:
        assert passage.part in shown
        assert all(str(shape) in shown for shape in passage.gives)


def test_names_are_text_and_never_run(browser: Any, file: Path) -> None:
    for scheme in ("light", "dark"):
        page = Opened(browser, file, 800, scheme)
        alerts: list[str] = []
        page.page.on("dialog", lambda dialog, seen=alerts: seen.append(dialog.message))
        assert page.text("#title") == "<photo>.png"
        assert page.page.title() == "<photo>.png: how DETR saw it"
        assert NAMES[1] in page.page.locator("#layers").text_content()
        assert page.page.locator("img").count() == 0
        assert alerts == page.complaints == []
        page.context.close()


def test_a_photo_without_annotations_and_a_model_without_encoder(browser: Any, sample: Sample, tmp_path: Path) -> None:
    detector = small_detector(encoder_layers=0)
    plain = explain(detector.model, detector.preprocessing, detector.categories, sample)
    path = tmp_path / "plain.html"
    path.write_text(build_page(document_of(plain, detector)), encoding="utf-8")
    page = Opened(browser, path, 800)
    assert not page.page.is_visible("#matchingSection")
    assert not page.page.is_visible("#objects")
    assert not page.page.is_visible("#truth")
    before = page.hottest()
    page.click_photo(0.2, 0.2)
    assert page.hottest() == before
    assert page.page.is_disabled('input[value="cell"]')
    assert page.complaints == []
    page.context.close()


def test_sampled_points_are_in_the_page_and_drawn(
    browser: Any, deformable_detector: Detector, sample: Sample, tmp_path: Path
) -> None:
    detector = deformable_detector
    found = explain(detector.model, detector.preprocessing, detector.categories, sample)
    document = document_of(found, detector, queries=[4])
    packed = document.document["maps"]["points"]
    kept, layer, head = document.document["keptQueries"].index(4), 1, 3

    def array(name: str, kind: str) -> torch.Tensor:
        place = packed[name]
        count = math.prod(place["shape"])
        values = np.frombuffer(document.block, kind, count, place["offset"]).reshape(place["shape"])
        return torch.from_numpy(values.astype(np.float32))

    inputs = found.attention.inputs("decoder_cross", layer)
    assert isinstance(inputs, DeformableAttentionInputs)
    sampled = inputs.sampling_points([head], [4])
    places = array("places", "<i2")[kept, layer, head] / packed["units"] * 96
    torch.testing.assert_close(places, sampled.points[0, 0].flatten(0, 1), rtol=0, atol=96 / 8192)
    weights = array("weights", "u1")[kept, layer, head] / 255
    torch.testing.assert_close(weights, sampled.weights[0, 0].flatten(), rtol=0, atol=1 / 255)
    reference = array("references", "<i2")[kept, layer] / packed["units"] * 96
    torch.testing.assert_close(reference, sampled.reference_points[0, 0], rtol=0, atol=96 / 8192)

    path = tmp_path / "points.html"
    path.write_text(build_page(document), encoding="utf-8")
    page = Opened(browser, path, 800)
    picture = 'document.getElementById("boxes").toDataURL()'
    with_points = page.page.evaluate(picture)
    page.page.uncheck("#points")
    assert page.page.evaluate(picture) != with_points
    assert page.complaints == []
    page.context.close()


def test_a_model_that_looks_at_all_cells_has_no_points(opened: Opened) -> None:
    assert not opened.page.is_visible("#points")


def test_the_document_is_json_and_holds_the_queries_asked_for(explanation: Explanation, detector: Detector) -> None:
    page = document_of(explanation, detector, queries=[8, 3])
    document = json.loads(json.dumps(page.document, allow_nan=False))
    assert document["keptQueries"][:2] == [8, 3]
    assert sorted(document["keptQueries"]) == list(range(9))
    assert len(document["queries"][0]["layers"]) == 3
    ends = [place["offset"] for place in (document["maps"]["cross"]["bytes"], document["matching"]["costs"])]
    assert max(ends) < len(page.block)
    html = build_page(page)
    assert "</script><img" not in html
    assert "http" not in re.sub(r"Content-Security-Policy|http-equiv", "", html.split("<script")[0])
