"""The commands and the Python code of the guides run as written; only trainings are shortened."""

import re
import shlex
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import detrkit
from detrkit.checkpoints.native import Checkpoint, Preprocessing, save_checkpoint
from detrkit.cli import main
from detrkit.data.synthetic import SHAPES
from tests.api.shapes import SMALL_RUN
from tests.datasets import write_coco

GUIDES = Path(__file__).parents[2] / "docs" / "guides"


def blocks(guide: str, language: str) -> list[str]:
    fences = re.findall(r"^```(\w*)\n(.*?)^```", (GUIDES / guide).read_text(), re.DOTALL | re.MULTILINE)
    return [content for found, content in fences if found == language]


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


def commands(guide: str) -> list[list[str]]:
    """Command lines of detrkit in the blocks of a guide, without comments."""
    lines = [line for block in blocks(guide, "") for line in block.replace("\\\n", " ").splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("detrkit ")]


def test_commands_of_the_exporting_guide_use_what_earlier_ones_have_made() -> None:
    made = {"photo.jpg", "photos"}
    for command in commands("exporting.md"):
        verb, *arguments = command
        inputs = [one for one in arguments if re.fullmatch(r"[\w.]+(/[\w.]+)*", one)]
        output = arguments[arguments.index("-o") + 1] if "-o" in arguments else {"demo": "runs/demo"}.get(verb)
        pairs = list(pairwise(arguments))
        values = {value for option, value in pairs if option in ("-o", "--format", "--precision")}
        for name in inputs:
            assert name in values or any(name == one or name.startswith(f"{one}/") for one in made), (command, name)
        made |= {output} if output else set()


@pytest.mark.slow
def test_commands_of_the_exporting_guide_run_in_order(place: Path) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime", "openvino", "nncf"):
        pytest.importorskip(package)
    torch.manual_seed(0)
    model = detrkit.build_model("detr-tiny", num_classes=len(SHAPES))
    run = place / "runs" / "demo"
    preprocessing = Preprocessing(image_size=64)
    save_checkpoint(
        run / "best" / "model.safetensors", Checkpoint(model.state_dict(), model.config, SHAPES, preprocessing)
    )
    coco = write_coco(place / "coco", num_train=1, num_val=12)
    (coco / "val2017").rename(run / "drawings")
    (coco / "annotations" / "instances_val2017.json").rename(run / "drawings" / "annotations.json")
    for command in commands("exporting.md"):
        if command[0] != "demo":  # takes minutes; its run is above
            with pytest.raises(SystemExit) as exit_info:
                main(command)
            assert exit_info.value.code in (0, None), command
