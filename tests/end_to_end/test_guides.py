"""The commands and the Python code of the guides run as written; only trainings are shortened."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import detrkit
from tests.api.shapes import SMALL_RUN
from tests.datasets import write_coco

GUIDES = Path(__file__).parents[2] / "docs" / "guides"


def blocks(guide: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (GUIDES / guide).read_text(), re.DOTALL | re.MULTILINE)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the guides assume: photos, photo.jpg, and a run."""
    monkeypatch.chdir(tmp_path)
    write_coco(tmp_path / "photos")
    Image.new("RGB", (96, 64), "grey").save("photo.jpg")
    return tmp_path


def shortened(train: Callable[..., detrkit.TrainResult]) -> Callable[..., detrkit.TrainResult]:
    """Train for two steps with a small model, whatever the guide says."""

    def quick(*args: Any, **settings: Any) -> detrkit.TrainResult:
        kept = {name: value for name, value in settings.items() if name not in ("epochs", "minutes", "steps")}
        return train(*args, **{**SMALL_RUN, **kept}, steps=2, log_every=1)

    return quick


@pytest.mark.slow
@pytest.mark.usefixtures("place")
def test_python_api_runs_as_written(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(detrkit, "train", shortened(detrkit.train))
    namespace: dict[str, Any] = {}
    for block in blocks("python-api.md", "python"):
        exec(block, namespace)
    assert Path("report.html").is_file()
    assert Path("detections.png").is_file()
    assert "loss_giou" in namespace["output"].losses
    assert namespace["detector"].categories.names == ("circle", "square", "triangle")
    assert capsys.readouterr().out.count("photo.jpg") == 2


def test_every_public_function_is_in_the_table_of_the_python_api() -> None:
    text = (GUIDES / "python-api.md").read_text()
    functions = [name for name in detrkit.__all__ if name[0].islower()]
    hidden = {"load_official_state_dict", "state_dict_as_official"}
    assert not [name for name in functions if name not in hidden and f"{name}(" not in text]
