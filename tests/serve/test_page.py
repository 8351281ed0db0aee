"""The live page in a browser."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from detrkit import Detector
from detrkit.data.dataset import unannotated
from detrkit.data.images import read_image
from detrkit.explain.explain import explain_sample
from detrkit.explain.explanation import Explanation
from detrkit.serve.config import ServeConfig
from tests.explain.test_page import BROWSERS, browser, cell_of
from tests.serve.conftest import Served, serving
from tests.serve.test_server import Gate, gate
from tests.waiting import PATIENCE

pytestmark = pytest.mark.slow

__all__ = ["BROWSERS", "browser", "gate"]


class Visit:
    """The live page in the browser, with its console messages and requests."""

    def __init__(
        self, browser: Any, url: str, width: int = 1280, scheme: str = "light", ignore_https_errors: bool = False
    ) -> None:
        self.context = browser.new_context(
            viewport={"width": width, "height": 900},
            color_scheme=scheme,
            has_touch=width < 500,
            ignore_https_errors=ignore_https_errors,
        )
        self.page = self.context.new_page()
        self.messages: list[str] = []
        self.fetched: list[str] = []
        self.page.on("console", lambda message: self.messages.append(message.text))
        self.page.on("pageerror", lambda error: self.messages.append(str(error)))
        self.page.on("request", lambda request: self.fetched.append(request.url))
        self.page.goto(url)

    def send(self, path: Path) -> None:
        self.page.set_input_files("#file", str(path))

    def wait_for(self, state: str) -> str:
        self.page.wait_for_selector(f'body[data-state="{state}"]', timeout=1000 * PATIENCE)
        return str(self.page.inner_text("#sent"))

    def wait_for_image(self, path: Path) -> None:
        self.page.wait_for_selector(f'#title:text-is("{path.name}")', timeout=1000 * PATIENCE)

    def max_cell(self) -> list[int]:
        return [int(number) for number in self.page.get_attribute("#heat", "data-max-cell").split(",")]

    def fits(self) -> bool:
        wide, room = self.page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
        return bool(wide <= room)


@pytest.fixture(params=[(400, "dark"), (1280, "light")], ids=["400 dark", "1280 light"])
def visit(request: pytest.FixtureRequest, browser: Any, served: Served) -> Iterator[Visit]:
    one = Visit(browser, served.url, *request.param)
    yield one
    assert one.messages == []
    assert all(url.startswith((served.url, "data:")) for url in one.fetched), one.fetched
    one.context.close()


def explained(detector: Detector, path: Path) -> Explanation:
    return explain_sample(detector, unannotated(read_image(path)))


def test_uploaded_images_are_explained_one_after_the_other(visit: Visit, detector: Detector, drawn: list[Path]) -> None:
    assert visit.fits()
    assert "tiny" in visit.page.inner_text("h1")
    for path in (drawn[0], drawn[1], drawn[0]):
        visit.send(path)
        visit.wait_for_image(path)
        assert visit.wait_for("done") == f"{path.name}: 9 objects."
        expected = explained(detector, path)
        scores = expected.scores
        columns = expected.attention.grid.cells[1]
        chips = visit.page.locator("#detections button")
        assert chips.count() == visit.page.locator("#query option").count() == 9
        for number, query in enumerate(scores.argsort(descending=True).tolist()[:3]):
            chips.nth(number).click()
            weights = expected.attention.mean_weights("decoder_cross", queries=[query])[0]
            assert visit.max_cell() == cell_of(weights, columns)
        place = visit.page.locator("#boxes").bounding_box()
        visit.page.locator("#boxes").click(position={"x": 0.2 * place["width"], "y": 0.7 * place["height"]})
        height, width = expected.attention.grid.original
        token = expected.attention.grid.token_at(0.2 * width, 0.7 * height)
        assert visit.max_cell() == cell_of(expected.attention.mean_weights("encoder", queries=[token])[0], columns)
        assert visit.fits()


def test_window_can_be_resized_after_a_second_image(visit: Visit, drawn: list[Path]) -> None:
    for path in drawn[:2]:
        visit.send(path)
        visit.wait_for_image(path)
    visit.wait_for("done")
    height, width = 64, 96  # of the second image
    visit.page.set_viewport_size({"width": 700, "height": 800})
    # what follows from the new size is done before the second frame
    visit.page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    size = visit.page.evaluate("[document.getElementById('image').height, document.getElementById('image').width]")
    assert size[0] / size[1] == pytest.approx(height / width, abs=0.01)


def test_dropped_image_is_uploaded(visit: Visit, drawn: list[Path]) -> None:
    code = """(bytes) => {
        const carried = new DataTransfer();
        carried.items.add(new File([new Uint8Array(bytes)], "dropped.png", { type: "image/png" }));
        document.body.dispatchEvent(new DragEvent("drop", { dataTransfer: carried, bubbles: true, cancelable: true }));
    }"""
    visit.page.evaluate(code, list(drawn[2].read_bytes()))
    assert visit.wait_for("done").startswith("dropped.png:")


def test_page_is_usable_by_keyboard(visit: Visit, drawn: list[Path]) -> None:
    visit.page.keyboard.press("Tab")
    assert visit.page.evaluate("document.activeElement.id") == "file"
    visit.send(drawn[0])
    visit.wait_for("done")
    visit.page.focus("#boxes")
    before = visit.page.inner_text("#status")
    visit.page.keyboard.press("ArrowDown")
    assert "Cell in row" in visit.page.inner_text("#status") != before


def test_error_messages_of_the_server_are_shown(
    browser: Any, served: Served, drawn: list[Path], tmp_path: Path
) -> None:
    bad = tmp_path / "<b>bad.jpg"
    bad.write_bytes(b"not an image")
    visit = Visit(browser, served.url)
    visit.send(bad)
    assert visit.wait_for("bad").startswith("<b>bad.jpg: cannot be read as an image")
    assert not visit.page.is_visible("#again")
    visit.send(drawn[0])
    visit.wait_for("done")
    # Chromium logs every unsuccessful answer
    assert all("422" in message for message in visit.messages)
    visit.context.close()


def test_retry_after_a_full_queue_and_limit_on_the_file_size(
    gate: Gate, browser: Any, drawn: list[Path], tmp_path: Path
) -> None:
    served, engine = gate(ServeConfig(threshold=0, max_queue=1, max_upload_mb=0.2))
    visit = Visit(browser, served.url)
    with served.service.admit():
        visit.send(drawn[0])
        assert visit.wait_for("bad") == "server: 1 image is already in progress; try again in a moment"
    visit.page.click("#again")
    visit.page.wait_for_selector('#sent:has-text("Predicting 0.png")')
    assert visit.page.is_visible("#progress")
    engine.may_continue.set()
    # an exported engine: the image with boxes and a list
    assert "exported model" in visit.wait_for("done")
    assert visit.page.locator("#shown li").count() == 9
    assert visit.page.locator("canvas.annotated").count() == 1
    (tmp_path / "large.png").write_bytes(bytes(300_000))
    posts = len([url for url in visit.fetched if url.endswith("/predict")])
    visit.send(tmp_path / "large.png")
    assert re.fullmatch(r"large\.png: 0\.30.MB; the limit is 0\.20.MB\. Send a smaller one\.", visit.wait_for("bad"))
    assert len([url for url in visit.fetched if url.endswith("/predict")]) == posts
    visit.context.close()


def test_content_security_policy_allows_own_files_only(served: Served) -> None:
    answer = served.client.get("/")
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    assert "<script>" not in answer.text
    assert " style=" not in answer.text
    for address in re.findall(r'(?:src|href)="([^"]+)"', answer.text):
        assert "//" not in address
        assert served.client.get(f"/{address}").status_code == 200


def test_unreachable_server_is_reported(detector: Detector, browser: Any, drawn: list[Path]) -> None:
    with serving([detector]) as served:
        visit = Visit(browser, served.url)
    visit.send(drawn[0])
    assert "does not answer" in visit.wait_for("bad")
    assert visit.page.is_visible("#again")
    visit.context.close()
