"""Users without a home folder, as services and containers have them; and home folders that cannot be written to."""

import os
import pwd
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest

from detrkit.checkpoints.download import cached_imagenet_weights, fetch
from detrkit.checkpoints.hub import hub_token
from detrkit.checkpoints.load import load_checkpoint
from detrkit.data.checks.decode_cache import cache_path
from detrkit.data.checks.examine import examine
from detrkit.errors import CheckpointError, ConfigError
from tests.datasets import write_coco

URL = "https://download.invalid/detr-00000000.pth"
VARIABLES = ("HOME", "USERPROFILE", "XDG_CACHE_HOME", "HF_HOME", "HF_HUB_CACHE", "TORCH_HOME")


@pytest.fixture
def no_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No HOME, an unknown user, and an empty working folder."""

    def unknown(number: int) -> NoReturn:
        raise KeyError(f"getpwuid(): uid not found: {number}")

    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    return work


def test_doctor_works_without_a_cache(no_home: Path, tmp_path: Path) -> None:
    assert cache_path(tmp_path) is None
    assert examine(write_coco(tmp_path / "photos", 2, 1), workers=0).num_errors == 0
    assert not list(no_home.iterdir())


def test_downloads_name_the_variable_to_set(no_home: Path) -> None:
    with pytest.raises(ConfigError, match=r"no home folder to keep weights in: HOME is unset.*set TORCH_HOME"):
        fetch(URL)
    with pytest.raises(ConfigError, match=r"no home folder to keep models of the hub in.*set HF_HOME"):
        load_checkpoint("facebook/detr-resnet-50")
    with pytest.raises(ConfigError, match="no token"):
        hub_token("owner/name")
    assert cached_imagenet_weights("resnet50") is None
    assert not list(no_home.iterdir())  # no folder named "~"


def test_downloads_go_to_the_folder_that_is_named(no_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(no_home / "weights"))
    with pytest.raises(CheckpointError, match="cannot be downloaded"):
        fetch(URL)
    assert (no_home / "weights" / "hub" / "checkpoints").is_dir()


def test_home_that_cannot_be_written_to(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "home").write_text("")  # a file: not even root can write below it
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with pytest.raises(CheckpointError, match=r"cannot keep weights.*set TORCH_HOME"):
        fetch(URL)
    assert examine(write_coco(tmp_path / "photos", 2, 1), workers=0).num_errors == 0


@pytest.mark.slow
def test_commands_run_as_an_unknown_user_without_an_environment(tmp_path: Path) -> None:
    unshare = ["unshare", "--user", "--map-user=12345", "--map-group=12345"]
    try:
        subprocess.run([*unshare, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs user namespaces")
    folder = write_coco(tmp_path / "photos", 2, 1)
    environment = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    for words, code, said in (
        (("doctor", folder, "--workers", "0"), 0, "ready for training"),
        (("describe", "data", folder, "--output", tmp_path / "samples.png"), 0, "picture:"),
        (("predict", "detr-r50", folder / "val2017"), 2, "set TORCH_HOME"),
    ):
        command = [*unshare, sys.executable, "-m", "detrkit", *map(str, words)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, encoding="utf-8", cwd=tmp_path)
        assert done.returncode == code, done.stderr
        assert said in done.stdout + done.stderr
        assert "Traceback" not in done.stderr
    assert not (tmp_path / "~").exists()
