"""Bounds of the dependencies, what is packaged, and what CI runs."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS: dict[str, list[str]] = PROJECT["project"]["optional-dependencies"]
GROUPS: dict[str, list[Any]] = PROJECT["dependency-groups"]
REQUIREMENTS = {
    "dependencies": PROJECT["project"]["dependencies"],
    **EXTRAS,
    **{name: [one for one in group if isinstance(one, str)] for name, group in GROUPS.items()},
}


@pytest.mark.parametrize("name", sorted(REQUIREMENTS))
def test_every_dependency_has_a_lower_bound_and_no_upper_bound(name: str) -> None:
    assert not [one for one in REQUIREMENTS[name] if not re.fullmatch(r"[a-z0-9-]+>=[0-9.]+(; .+)?", one)]


def test_the_group_all_is_the_union_of_the_extras() -> None:
    assert GROUPS["all"] == [one for extra in EXTRAS.values() for one in extra]


def test_the_source_distribution_says_how_to_report_a_vulnerability() -> None:
    assert "/SECURITY.md" in PROJECT["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]
    assert "(SECURITY.md)" in (ROOT / "README.md").read_text()


def recipe(name: str) -> list[str]:
    """Commands of a recipe of the justfile, without arguments and without the environment that CI sets for the job."""
    body = re.search(rf"^{name}\b.*:.*\n((?: +.*\n)+)", (ROOT / "justfile").read_text(), re.MULTILINE)
    assert body is not None
    return [re.sub(r"^[A-Z_]+=\S+ | \{\{args\}\}$", "", line.strip()) for line in body[1].splitlines()]


@pytest.mark.parametrize(("name", "job"), [("test-lowest", "lowest-versions"), ("audit", "audit")])
def test_ci_runs_the_commands_of_the_justfile_weekly_and_for_pull_requests(name: str, job: str) -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    events = workflow[True]  # YAML reads the key `on` as a boolean
    commands = [step["run"] for step in workflow["jobs"][job]["steps"] if "run" in step]
    assert commands[-2:] == [re.sub(r"^[A-Z_]+=\S+ ", "", line) for line in recipe(name)]
    assert events["schedule"]
    assert "pull_request" in events
