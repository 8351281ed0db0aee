"""Files and names that the documentation mentions exist."""

import os
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "benchmarks/RESULTS.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
PATH = re.compile(r"`((?:[\w-]+/)+[\w-]+\.(?:py|md|js|html))(?:: ([^`]+))?`")
LINK = re.compile(r"\]\(((?!https?:|#)[^)#\s]+)")


GENERATED = ("docs/reference/commands/", "docs/reference/settings/", "docs/reference/models.md")  # with the site


def places(name: str) -> list[Path]:
    return [root / name for root in (ROOT, ROOT / "src" / "detrkit", ROOT / "docs") if (root / name).is_file()]


def defines(source: str, name: str) -> bool:
    return re.search(rf"(?:def|class) {name}\b|^{name}\b", source, re.MULTILINE) is not None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_mentioned_source_files_and_names_exist(page: Path) -> None:
    missing = []
    for path, names in PATH.findall(page.read_text()):
        found = places(path)
        if not found:
            missing.append(path)
            continue
        source = found[0].read_text()
        mentioned = [name.split(".")[-1] for name in re.findall(r"[A-Za-z_][\w.]*", names)]
        missing += [f"{path}: {name}" for name in mentioned if not defines(source, name)]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_to_files_resolve(page: Path) -> None:
    broken = [link for link in LINK.findall(page.read_text()) if not (page.parent / link).exists()]
    targets = {link: os.path.relpath((page.parent / link).resolve(), ROOT).replace(os.sep, "/") for link in broken}
    assert not [link for link, target in targets.items() if not target.startswith(GENERATED)]
