"""The page in a browser, opened from disk without a network."""

import itertools
import json
import math
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from detrkit import Detector, Sample
from detrkit.explain.document import page_document
from detrkit.explain.explain import explain_sample
from detrkit.explain.explanation import Explanation
from detrkit.explain.page import build_page
from detrkit.models.attention.recording_deformable import DeformableAttentionInputs
from tests.detectors import NAMES, small_detector
from tests.models.vit_models import small_vit
from tests.waiting import PATIENCE

pytestmark = pytest.mark.slow

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    executable = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if executable is None:
        pytest.skip("needs Chromium on the PATH")
    with sync_api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def file(explanation: Explanation, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "page.html"
    explanation.to_html(path)
    return path


class OpenedPage:
    """A page in the browser, its console messages and errors, and the addresses it requested."""

    def __init__(self, browser: Any, file: Path, width: int, scheme: str = "light") -> None:
        self.context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True, has_touch=width < 500
        )
        self.page = self.context.new_page()
        self.messages: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.messages.append(message.text))
        self.page.on("pageerror", lambda error: self.messages.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(file.as_uri())
        self.page.wait_for_selector("body[data-ready]", timeout=1000 * PATIENCE)

    def max_cell(self) -> list[int]:
        return [int(number) for number in self.page.get_attribute("#heat", "data-max-cell").split(",")]

    def heat_at(self, row: int, column: int, grid: tuple[int, int]) -> list[int]:
        """Return the RGBA value of the heatmap at the center of a cell."""
        code = """([y, x]) => {
            const heat = document.getElementById("heat"), copy = document.createElement("canvas");
            copy.width = copy.height = 1;
            const context = copy.getContext("2d", { willReadFrequently: true });
            context.drawImage(heat, Math.floor(x * heat.width), Math.floor(y * heat.height), 1, 1, 0, 0, 1, 1);
            return Array.from(context.getImageData(0, 0, 1, 1).data);
        }"""
        return list(self.page.evaluate(code, [(row + 0.5) / grid[0], (column + 0.5) / grid[1]]))

    def click_image(self, x: float, y: float) -> None:
        """Click at a position relative to the image."""
        bounds = self.page.locator("#boxes").bounding_box()
        self.page.locator("#boxes").click(position={"x": x * bounds["width"], "y": y * bounds["height"]})

    def slide(self, name: str, value: float) -> None:
        self.page.locator(f"#{name}").fill(str(value))

    def text(self, selector: str) -> str:
        return str(self.page.inner_text(selector)).replace("\u00a0", " ")


@pytest.fixture(params=[400, 1280])
def opened(request: pytest.FixtureRequest, browser: Any, file: Path) -> Iterator[OpenedPage]:
    page = OpenedPage(browser, file, request.param)
    yield page
    assert page.messages == []
    assert [url for url in page.requests if not url.startswith(("file:", "data:"))] == []
    page.context.close()


def cell_of(weights: torch.Tensor, columns: int) -> list[int]:
    return list(divmod(int(weights.argmax()), columns))


def test_choosing_a_detection_shows_the_attention_of_its_query(opened: OpenedPage, explanation: Explanation) -> None:
    attention = explanation.attention
    scores = explanation.scores
    chips = opened.page.locator("#detections button")
    assert chips.count() == len(scores)
    cells = set()
    for number, query in enumerate(scores.argsort(descending=True).tolist()[:4]):
        chips.nth(number).click()
        weights = attention.mean_weights("decoder_cross", queries=[query])[0]
        assert opened.max_cell() == cell_of(weights, 8)
        cells.add(tuple(opened.max_cell()))
        hot, cold = (opened.heat_at(*cell_of(each, 8), (8, 8)) for each in (weights, -weights))
        assert hot[3] > cold[3]
        assert hot[1] > cold[1]
        assert f"Query {query} predicts" in opened.text("#status")
        box = explanation.layer_boxes[-1, query].clamp(0, 96)
        mass = 100 * float(attention.grid.mass_inside(weights, box))
        shown = float(re.search(r"([\d.]+) % of its attention", opened.text("#status"))[1])  # type: ignore[index]
        assert shown == pytest.approx(mass, abs=1)
    assert len(cells) > 1, "the queries must attend to different cells"


def test_clicking_the_image_shows_the_attention_of_a_cell(opened: OpenedPage, explanation: Explanation) -> None:
    attention = explanation.attention
    cells = set()
    for x, y in ((0.1, 0.1), (0.6, 0.3), (0.95, 0.8)):
        opened.click_image(x, y)
        token = attention.grid.token_at(x * 96, y * 96)
        assert opened.max_cell() == cell_of(attention.mean_weights("encoder", queries=[token])[0], 8)
        assert f"row {token // 8 + 1}, column {token % 8 + 1} of 8 \u00d7 8" in opened.text("#status")
        cells.add(tuple(opened.max_cell()))
    assert len(cells) > 1
    opened.page.locator("#boxes").press("ArrowUp")
    expected = attention.mean_weights("encoder", queries=[token - 8])[0]
    assert opened.max_cell() == cell_of(expected, 8)


def test_sliders_choose_layer_head_threshold_and_opacity(opened: OpenedPage, explanation: Explanation) -> None:
    attention, scores = explanation.attention, explanation.scores
    best = int(scores.argmax())
    for layer in range(3):
        for head in (2, 7):
            opened.slide("layer", layer + 1)
            opened.slide("head", head + 1)
            weights = attention.weights("decoder_cross", layer, heads=[head], queries=[best])
            assert opened.max_cell() == cell_of(weights, 8), (layer, head)
    opened.page.check('input[value="cell"]')
    for layer, x in ((0, 0.3), (1, 0.3), (1, 0.8), (0, 0.8)):
        opened.slide("layer", layer + 1)
        opened.click_image(x, 0.7)
        token = attention.grid.token_at(x * 96, 0.7 * 96)
        assert opened.max_cell() == cell_of(attention.weights("encoder", layer, heads=[7], queries=[token]), 8)
    opened.slide("threshold", 0.5)
    assert opened.page.locator("#detections button").count() == int((scores >= 0.5).sum()) < len(scores)
    opened.slide("threshold", 1)
    assert "No detections above the threshold" in opened.text("#detections")
    opened.slide("opacity", 0)
    assert opened.heat_at(*opened.max_cell(), (8, 8))[3] == 0


def test_layer_cards_show_box_and_class_after_every_layer(opened: OpenedPage, explanation: Explanation) -> None:
    best = int(explanation.scores.argmax())
    cards = opened.page.locator(".layer")
    assert cards.count() == 3
    for layer in range(3):
        label = int(explanation.layer_probabilities[layer, best, :-1].argmax())
        assert NAMES[label] in cards.nth(layer).text_content()
    cards.nth(0).click()
    expected = explanation.attention.mean_weights("decoder_cross", 0, queries=[best])
    assert opened.max_cell() == cell_of(expected, 8)
    assert opened.text("#layerValue") == "1 of 3"


def test_objects_costs_and_losses_are_shown(opened: OpenedPage, explanation: Explanation) -> None:
    matching = explanation.matching
    assert matching is not None
    objects = opened.page.locator("#objects tbody tr")
    assert objects.count() == len(matching.outcomes)
    opened.slide("threshold", 1)
    for number, outcome in enumerate(matching.outcomes):
        assert outcome.reason_at(1.0) in objects.nth(number).text_content()
    query, number = matching.layer_pairs[-1][0]
    row = opened.page.locator("#costs tbody tr").filter(has=opened.page.get_by_text(f"query {query}", exact=True))
    cell = row.locator("td").nth(number)
    assert cell.get_attribute("class") == "matched"
    cell.locator("button").click()
    assert f"= {float(matching.cost[query, number]):.3f}" in opened.text("#terms")
    opened.page.locator('input[name="term"]').nth(2).check()
    assert cell.text_content() == f"{float(matching.cost_bbox[query, number]):.2f}"
    total = sum(loss.total for loss in matching.losses)
    shown = opened.page.locator("#losses tbody tr").last.locator("td").all_text_contents()
    assert sum(float(text) for text in shown[3:6]) == pytest.approx(total, abs=3e-3)


def test_page_fits_its_window_and_shows_every_stage(opened: OpenedPage, explanation: Explanation) -> None:
    wide = opened.page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert wide[0] <= wide[1]
    shown = opened.page.locator("#stages").text_content()
    for stage in explanation.stages:
        assert stage.part in shown
        assert all(str(shape) in shown for shape in stage.outputs)


def test_names_are_escaped(browser: Any, file: Path) -> None:
    for scheme in ("light", "dark"):
        page = OpenedPage(browser, file, 800, scheme)
        alerts: list[str] = []
        page.page.on("dialog", lambda dialog, alerts=alerts: alerts.append(dialog.message))
        assert page.text("#title") == "<image>.png"
        assert page.page.title() == "<image>.png: DETR explained"
        assert NAMES[1] in page.page.locator("#layers").text_content()
        assert page.page.locator("img").count() == 0
        assert alerts == page.messages == []
        page.context.close()


def test_page_without_annotations_of_a_model_without_encoder(browser: Any, sample: Sample, tmp_path: Path) -> None:
    detector = small_detector(encoder_layers=0)
    path = tmp_path / "plain.html"
    explain_sample(detector, sample, threshold=0).to_html(path)
    page = OpenedPage(browser, path, 800)
    assert not page.page.is_visible("#matchingSection")
    assert not page.page.is_visible("#objects")
    assert not page.page.is_visible("#groundTruth")
    before = page.max_cell()
    page.click_image(0.2, 0.2)
    assert page.max_cell() == before
    assert page.page.is_disabled('input[value="cell"]')
    assert page.messages == []
    page.context.close()


def test_sampling_points_are_included_and_drawn(
    browser: Any, deformable_detector: Detector, sample: Sample, tmp_path: Path
) -> None:
    explanation = explain_sample(deformable_detector, sample, threshold=0)
    document = page_document(explanation, queries=[4])
    packed = document.document["maps"]["points"]
    row, layer, head = document.document["includedQueries"].index(4), 1, 3

    def array(name: str, kind: str) -> torch.Tensor:
        location = packed[name]
        count = math.prod(location["shape"])
        values = np.frombuffer(document.block, kind, count, location["offset"]).reshape(location["shape"])
        return torch.from_numpy(values.astype(np.float32))

    inputs = explanation.attention.inputs("decoder_cross", layer)
    assert isinstance(inputs, DeformableAttentionInputs)
    sampled = inputs.sampling_points([head], [4])
    points = array("points", "<i2")[row, layer, head] / packed["units"] * 96
    torch.testing.assert_close(points, sampled.points[0, 0], rtol=0, atol=96 / 8192)
    weights = array("weights", "u1")[row, layer, head] / 255
    torch.testing.assert_close(weights, sampled.weights[0, 0].flatten(), rtol=0, atol=1 / 255)
    reference = array("references", "<i2")[row, layer] / packed["units"] * 96
    torch.testing.assert_close(reference, sampled.reference_points[0, 0], rtol=0, atol=96 / 8192)

    path = tmp_path / "points.html"
    path.write_text(build_page(document), encoding="utf-8")
    page = OpenedPage(browser, path, 800)
    drawn = 'document.getElementById("boxes").toDataURL()'
    with_points = page.page.evaluate(drawn)
    page.page.uncheck("#points")
    assert page.page.evaluate(drawn) != with_points
    assert page.messages == []
    page.context.close()


def test_dense_attention_has_no_sampling_points(opened: OpenedPage) -> None:
    assert not opened.page.is_visible("#points")


def test_document_is_json_and_includes_the_requested_queries(explanation: Explanation) -> None:
    page = page_document(explanation, queries=[8, 3])
    document = json.loads(json.dumps(page.document, allow_nan=False))
    assert document["includedQueries"][:2] == [8, 3]
    assert sorted(document["includedQueries"]) == list(range(9))
    assert len(document["queries"][0]["layers"]) == 3
    offsets = [location["offset"] for location in (document["maps"]["cross"]["bytes"], document["matching"]["costs"])]
    assert max(offsets) < len(page.block)
    html = build_page(page)
    assert "</script><img" not in html
    assert "http" not in re.sub(r"Content-Security-Policy|http-equiv", "", html.split("<script")[0])


def test_the_page_opens_with_the_thresholds_of_the_classes_and_its_slider_replaces_them(
    tmp_path: Path, browser: Any, explanation: Explanation
) -> None:
    scores, labels = explanation.scores.tolist(), explanation.labels.tolist()
    highest = {label: max(s for s, own in zip(scores, labels, strict=True) if own == label) for label in set(labels)}
    # each a little lower: the page has six digits
    by_class = replace(explanation, threshold=tuple(highest.get(label, 1.0) - 1e-5 for label in range(3)))
    by_class.to_html(tmp_path / "auto.html")
    page = browser.new_page()
    page.goto((tmp_path / "auto.html").as_uri())
    shown = page.locator("#detections button")
    assert shown.count() == len(by_class.detected_queries())
    assert shown.count() < len(scores)
    assert page.locator("#thresholdValue").text_content() == "auto"
    page.locator("#threshold").fill("0")
    assert shown.count() == len(scores)
    assert page.locator("#thresholdValue").text_content() == "0.00"
    page.close()


@pytest.fixture(scope="module")
def fine_grained_file(fine_grained: Explanation, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "fine_grained.html"
    fine_grained.to_html(path)
    return path


@pytest.fixture(params=[400, 1280])
def opened_fine_grained(request: pytest.FixtureRequest, browser: Any, fine_grained_file: Path) -> Iterator[OpenedPage]:
    page = OpenedPage(browser, fine_grained_file, request.param)
    yield page
    assert page.messages == []
    page.context.close()


def test_the_cell_of_the_chosen_query_is_shown_and_can_be_clicked(
    opened_fine_grained: OpenedPage, fine_grained: Explanation
) -> None:
    page, selection = opened_fine_grained, fine_grained.selected_cells()
    page.page.check('input[value="selection"]')
    assert page.page.is_disabled("#layer")
    assert page.page.is_disabled("#head")
    for query in (0, 5):
        page.page.select_option("#query", str(query))
        row, column = selection.positions[query].tolist()
        status = page.text("#status")
        assert f"Query {query} is from the cell in row {row + 1}, column {column + 1}" in status
        assert f"of level {int(selection.levels[query]) + 1} (" in status
        assert f"score {selection.scores[query]:.2f}" in status
        assert f"number {query + 1} of 12" in status
    # a click chooses the finest cell there
    finest = int(selection.levels.argmin())
    left, top, right, bottom = (selection.areas[finest] / 96).tolist()
    page.click_image((left + right) / 2, (top + bottom) / 2)
    assert f"Query {finest} is from" in page.text("#status")
    page.page.locator("#boxes").press("ArrowRight")
    assert f"Query {(finest + 1) % 12} is from" in page.text("#status")
    assert page.page.is_checked('input[value="selection"]')


def test_levels_can_be_hidden(opened_fine_grained: OpenedPage, fine_grained: Explanation) -> None:
    page, levels = opened_fine_grained, fine_grained.selected_cells().levels
    labels = page.page.locator("#levels label")
    assert labels.count() == 2
    for level in range(2):
        assert f", {int((levels == level).sum())} quer" in labels.nth(level).inner_text()
    drawn = 'document.getElementById("boxes").toDataURL()'
    for view in ("query", "selection"):
        page.page.check(f'input[value="{view}"]')
        before = page.page.evaluate(drawn)
        page.page.locator("#levels input").first.uncheck()
        assert page.page.evaluate(drawn) != before
        page.page.locator("#levels input").first.check()
        assert page.page.evaluate(drawn) == before


def test_selection_table_has_level_score_and_box_of_every_detection(
    opened_fine_grained: OpenedPage, fine_grained: Explanation
) -> None:
    page, selection = opened_fine_grained, fine_grained.selected_cells()
    rows = page.page.locator("#selection tbody tr")
    assert rows.count() == 12
    for number, query in enumerate(fine_grained.ranked_queries()[:4]):
        cells = [text.replace("\u00a0", " ").strip() for text in rows.nth(number).locator("td").all_text_contents()]
        assert cells[0] == f"query {query}"
        assert cells[1] == str(int(selection.levels[query]) + 1)
        assert cells[2] == ", ".join(str(index + 1) for index in selection.positions[query].tolist())
        assert cells[3].endswith(f" {selection.scores[query]:.2f}")
        if selection.is_valid[query]:
            shown = [float(side) for side in cells[4].split(", ")]
            assert shown == pytest.approx(selection.boxes[query].tolist(), abs=0.51)
    rows.nth(3).locator("button").click()
    assert page.page.is_checked('input[value="selection"]')
    assert rows.nth(3).get_attribute("class") == "chosen"


def test_distributions_of_every_layer_are_shown_with_distance_and_quality(
    opened_fine_grained: OpenedPage, fine_grained: Explanation
) -> None:
    page = opened_fine_grained
    page.page.select_option("#query", "7")
    edges, cards = fine_grained.edge_distributions(7), page.page.locator("#edgeCards .layer")
    assert cards.count() == 3
    for layer in range(3):
        quality = cards.nth(layer).locator(".quality").inner_text().replace("\u2212", "-")
        assert float(quality.removeprefix("quality ")) == pytest.approx(float(edges.quality[layer]), abs=0.0051)
        moved = [text.replace("\u2212", "-") for text in cards.nth(layer).locator("em").all_text_contents()]
        distances = edges.moved[layer].tolist()
        # rounded to 0.1, from boxes that are rounded to 0.01
        assert [float(text.removesuffix(" px")) for text in moved] == pytest.approx(distances, abs=0.057)
        bars = cards.nth(layer).locator("canvas")
        assert bars.count() == 4
    cards.nth(0).click()
    assert page.text("#layerValue") == "1 of 3"
    drawn = 'document.getElementById("boxes").toDataURL()'
    before = page.page.evaluate(drawn)
    page.page.check("#edges")
    assert page.page.evaluate(drawn) != before


def test_page_of_a_realtime_detector_fits_its_window(opened_fine_grained: OpenedPage) -> None:
    page = opened_fine_grained.page
    page.check('input[value="selection"]')
    wide = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert wide[0] <= wide[1]
    # no control or text is cut off or covers another
    for selector in ("#levels label", ".checks label:not([hidden])", "#edgeCards .layer", ".views label:not([hidden])"):
        boxes = [page.locator(selector).nth(number).bounding_box() for number in range(page.locator(selector).count())]
        for one, other in itertools.pairwise(boxes):
            is_below = other["y"] >= one["y"] + one["height"] - 1
            assert is_below or other["x"] >= one["x"] + one["width"] - 1


def test_views_of_other_models_are_hidden(opened: OpenedPage) -> None:
    for selector in ('input[value="selection"]', "#levels", "#edges", "#edgesSection", "#selectionSection"):
        assert not opened.page.is_visible(selector)


def test_cells_of_a_vit_show_the_windows_that_they_attend_to(browser: Any, sample: Sample, tmp_path: Path) -> None:
    model = small_vit("rfdetr-nano").eval()
    explanation = explain_sample(Detector.from_model(model, image_size=96), sample, threshold=0)
    explanation.to_html(tmp_path / "page.html")
    opened = OpenedPage(browser, tmp_path / "page.html", 1280)
    opened.slide("head", 8)  # of cross-attention; the ViT has fewer heads
    assert opened.text("#headValue") == "8 of 8"
    opened.click_image(0.9, 0.2)
    assert opened.text("#headValue") == "6 of 6"
    for layer, reach in ((1, "the cells of its window, row 1, column 2 of 2 \u00d7 2"), (2, "all cells")):
        opened.slide("layer", layer)
        weights = explanation.attention.weights("encoder", layer - 1, heads=[5], queries=[11])
        assert opened.max_cell() == cell_of(weights, 6)
        assert f"ViT block {layer} of 2 (attends to {reach}; not shown: class token)" in opened.text("#status")
    assert opened.messages == []
    opened.context.close()
