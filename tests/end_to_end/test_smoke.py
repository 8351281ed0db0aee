"""The smoke test of an installation that CI runs on Windows and macOS, with processes started as they do."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_smoke_test_passes_with_spawned_processes(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "tests" / "smoke.py"), str(tmp_path), "--spawn"]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", env={**os.environ, "PYTHONUTF8": "1"})
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "works on linux" in done.stdout or sys.platform != "linux"
    assert "Traceback" not in done.stderr


def test_ci_runs_the_smoke_test_on_windows_and_macos() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    job = workflow["jobs"]["smoke"]
    assert job["strategy"]["matrix"]["os"] == ["windows-latest", "macos-latest"]
    assert job["steps"][-1]["run"] == "uv run --no-sync python tests/smoke.py"
