"""Files and names that the documentation mentions exist."""

import os
import re
from pathlib import Path

import pytest

from detrkit.checkpoints.zoo import ModelInfo, list_models

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
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


def readme_row(models: list[ModelInfo]) -> str:
    """Parameters and published AP of a family as the README shows them; in brackets, AP after training on Objects365."""
    objects365 = [100 * one.ap for one in models if one.ap and "obj2coco" in one.name]
    others = sorted(100 * one.ap for one in models if one.ap and "obj2coco" not in one.name)
    millions = [
        f"{value:.0f}" if value >= 1 else f"{value:.1f}" for value in sorted(one.parameters / 1e6 for one in models)
    ]
    ap = " to ".join(dict.fromkeys(f"{value:.1f}" for value in (others[0], others[-1]))) if others else ""
    ap += f" ({max(objects365):.1f})" if objects365 else ""
    return f"| {' to '.join(dict.fromkeys((millions[0], millions[-1])))} M | {ap} |"


def test_readme_has_parameters_and_published_ap_of_every_family() -> None:
    families: dict[str, list[ModelInfo]] = {}
    for model in list_models():
        families.setdefault(model.family, []).append(model)
    rows = [line.replace("|  |", "| |") for line in (ROOT / "README.md").read_text(encoding="utf-8").splitlines()]
    for family, models in families.items():
        expected = readme_row(models).replace("|  |", "| |")
        assert [row for row in rows if row.startswith(f"| {family} |") and expected in row], (family, expected)
