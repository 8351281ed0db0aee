"""Version, citation, changelog and workflows of a release."""

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

import detrkit

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
# of Keep a Changelog
KINDS = ("Added", "Changed", "Deprecated", "Removed", "Fixed", "Security")


def workflow(name: str) -> dict[Any, Any]:
    content: dict[Any, Any] = yaml.safe_load((ROOT / ".github" / "workflows" / name).read_text())
    return content


def test_citation_names_the_version_and_has_the_required_fields() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == detrkit.__version__
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert all({"type", "title", "authors"} <= reference.keys() for reference in citation["references"])


def test_changelog_has_the_form_of_keep_a_changelog() -> None:
    lines = (ROOT / "CHANGELOG.md").read_text().splitlines()
    assert lines[0] == "# Changelog"
    releases = [line for line in lines if line.startswith("## ")]
    assert releases[0] == "## [Unreleased]" or releases[0].startswith(f"## [{detrkit.__version__}] - ")
    assert all(
        re.fullmatch(r"## \[(Unreleased|\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d|Unreleased\])\]?", one) for one in releases
    )
    assert {line[4:] for line in lines if line.startswith("### ")} <= set(KINDS)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_actions_are_pinned_by_major_version_and_jobs_have_no_more_permissions_than_they_need(path: Path) -> None:
    content = workflow(path.name)
    for use in re.findall(r"uses: (.+)", path.read_text()):
        assert use.startswith("./") or re.fullmatch(r"[\w.-]+/[\w.-]+@(release/)?v\d+", use), use
    assert content["permissions"] in ({}, {"contents": "read"})
    for name, job in content["jobs"].items():
        permissions = {"id-token": "write"} if name == "publish" else {"contents": "read"}
        assert job.get("permissions", {"contents": "read"}) == permissions
    assert "secrets." not in path.read_text()


def test_tag_is_published_after_tests_and_docs_have_passed() -> None:
    content = workflow("release.yml")
    assert content[True] == {"push": {"tags": ["v*"]}}  # YAML reads the key `on` as a boolean
    jobs = content["jobs"]
    assert jobs["publish"]["needs"] == ["ci", "build"]
    assert jobs["publish"]["environment"]["name"] == "pypi"
    (upload,) = (step for step in jobs["publish"]["steps"] if "pypi-publish" in step["uses"])
    assert "with" not in upload, "a token"
    assert jobs["ci"]["uses"] == "./.github/workflows/ci.yml"
    assert "workflow_call" in workflow("ci.yml")[True]
    ci = workflow("ci.yml")["jobs"]
    assert "bash .ci/run" in [step.get("run") for step in ci["tests"]["steps"]]
    assert "mkdocs build --strict" in ci["docs"]["steps"][-1]["run"]


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    ("tag", "heading", "passes"),
    [
        ("v1.2.3", "1.2.3] - 2027-01-02", True),
        ("v1.2.4", "1.2.3] - 2027-01-02", False),
        ("v1.2.3", "Unreleased]", False),
    ],
)
def test_tag_of_another_version_is_refused(tag: str, heading: str, passes: bool, tmp_path: Path) -> None:
    (step,) = (step for step in workflow("release.yml")["jobs"]["build"]["steps"] if "GITHUB_REF_NAME" in str(step))
    (tmp_path / "src" / "detrkit").mkdir(parents=True)
    for name in ("src/detrkit/_version.py", "CITATION.cff"):
        (tmp_path / name).write_text((ROOT / name).read_text().replace(detrkit.__version__, "1.2.3"))
    (tmp_path / "CHANGELOG.md").write_text(f"# Changelog\n\n## [{heading}\n")
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]
    code = subprocess.run(command, cwd=tmp_path, env={**os.environ, "GITHUB_REF_NAME": tag}, check=False).returncode
    assert (code == 0) is passes
