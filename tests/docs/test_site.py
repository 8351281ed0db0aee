"""The documentation site is built without warnings, all of its links lead somewhere, and it is complete."""

import inspect
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import detrkit
from tests.docs.public_api import NAMES, complaints, functions, public_object
from tests.explain.test_page import BROWSERS

ROOT = Path(__file__).parents[2]


@dataclass
class Page(HTMLParser):
    """Anchors and links of a page.

    Attributes:
        anchors: that links may lead to.
        links: to pages, with their anchors.
        loaded: files that a browser loads to show the page.
    """

    anchors: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)
    loaded: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in attrs}
        self.anchors.update(attributes[name] for name in ("id", "name") if name in attributes)
        if tag == "a" and "href" in attributes:
            self.links.append(attributes["href"])
        elif tag == "link" and attributes.get("rel") not in ("canonical", "prev", "next"):
            self.loaded.append(attributes.get("href", ""))
        elif tag in ("script", "img", "iframe", "source") and "src" in attributes:
            self.loaded.append(attributes["src"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for package in ("mkdocs", "material", "mkdocstrings_handlers.python"):
        pytest.importorskip(package)
    output = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(output)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert (built.returncode, built.stderr) == (0, "")
    return output


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    found = {}
    for path in site.rglob("*.html"):
        page = found[path] = Page()
        page.feed(path.read_text(encoding="utf-8"))
    assert len(found) > 70
    return found


def targets(path: Path, links: list[str]) -> Iterator[tuple[str, Path, str]]:
    """Iterate over links within the site, with the file and the anchor that they lead to."""
    for link in links:
        parts = urlsplit(link)
        if parts.scheme or link.startswith(("//", "javascript:")):
            continue
        yield link, (path.parent / unquote(parts.path)).resolve() if parts.path else path, unquote(parts.fragment)


@pytest.mark.slow
def test_every_link_and_anchor_of_the_site_exists(site: Path, pages: dict[Path, Page]) -> None:
    broken = [
        (path.relative_to(site).as_posix(), link)
        for path, page in pages.items()
        if path.name != "404.html"  # whose links start at the address of a server
        for link, target, anchor in targets(path, page.links)
        if not target.exists() or (anchor and target in pages and anchor not in pages[target].anchors)
    ]
    assert not broken


@pytest.mark.slow
def test_pages_of_the_site_load_nothing_from_elsewhere(site: Path, pages: dict[Path, Page]) -> None:
    for path, page in pages.items():
        if path.name == "404.html":
            continue
        assert not [one for one in page.loaded if urlsplit(one).scheme not in ("", "data") or one.startswith("//")], (
            path
        )
        assert not [link for link, target, _ in targets(path, page.loaded) if not target.is_file()], path
    styles = [path.read_text(encoding="utf-8") for path in site.rglob("*.css")]
    assert not [
        found for style in styles for found in re.findall(r"(?:url\(|@import )[\"']?(?:https?:)?//[^)\"']+", style)
    ]


@pytest.mark.slow
def test_every_public_name_is_in_the_reference(pages: dict[Path, Page]) -> None:
    anchors = set().union(*(page.anchors for path, page in pages.items() if "api" in path.parts))
    expected = {name: {f"detrkit.{name}", f"detrkit.{name}.{name}.{name}"} for name in NAMES}
    assert not [name for name, places in expected.items() if not places & anchors]


@pytest.mark.slow
def test_pages_of_the_reference_have_an_example(site: Path) -> None:
    references = list((site / "reference" / "api").glob("*.html"))
    assert references
    assert not [path.name for path in references if '<span class="kn">import</span>' not in path.read_text("utf-8")]


@pytest.mark.slow
def test_search_works_when_the_site_is_opened_from_disk(site: Path) -> None:
    api = pytest.importorskip("playwright.sync_api")
    executable = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if executable is None:
        pytest.skip("needs Chromium")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        page = browser.new_page()
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto((site / "reference" / "models.html").as_uri())
        page.click(".md-search__input")
        page.keyboard.type("duplicate detections", delay=20)
        page.wait_for_selector(".md-search-result__item", timeout=60_000)
        found = [one.get_attribute("href") for one in page.query_selector_all(".md-search-result__link")]
        browser.close()
    assert not errors
    assert any("guides/troubleshooting.html" in str(link) for link in found)


def test_public_api_is_documented() -> None:
    assert not [name for name in NAMES if not inspect.getdoc(public_object(name))]
    assert not [complaint for name, function in functions() for complaint in complaints(name, function)]
    assert detrkit.__version__


def test_figures_of_the_concepts_are_drawn_by_their_script(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "figures"))
    import draw  # type: ignore[import-not-found]

    folder = ROOT / "docs" / "concepts" / "pictures"
    figures = draw.figures()
    assert sorted(figures) == sorted(path.name for path in folder.glob("*.svg"))
    assert not [name for name, drawn in figures.items() if (folder / name).read_text(encoding="utf-8") != drawn]
