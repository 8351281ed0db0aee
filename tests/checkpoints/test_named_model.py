"""Weights under detrkit's names without a description: loaded for a model that is named, never guessed."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import detrkit
from detrkit import Detector
from detrkit.checkpoints.load import load_checkpoint
from detrkit.cli import main
from detrkit.config.run import run_config
from detrkit.data.categories import Categories
from detrkit.errors import CheckpointError, ConfigError
from detrkit.models.detr import DETR
from detrkit.training.build import build_model_for, with_architecture_of_weights
from tests.checkpoints.models import save_model


@pytest.fixture(scope="module")
def model() -> DETR:
    torch.manual_seed(0)
    return detrkit.build_model("detr-tiny", num_classes=2, num_queries=7)


def write(folder: Path, kind: str, model: DETR) -> Path:
    path = folder / ("a.safetensors" if kind == "safetensors" else "a.pth")
    state = model.state_dict()
    if kind == "safetensors":
        save_file(state, path)
    elif kind == "wrapped":
        torch.save({"state_dict": {f"model.module.{name}": tensor for name, tensor in state.items()}, "epoch": 3}, path)
    else:
        torch.save(state if kind == "bare" else {"model": state, "epoch": 3}, path)
    return path


@pytest.mark.parametrize("kind", ["bare", "in a dict", "safetensors", "wrapped"])
def test_state_dict_is_loaded_for_a_named_preset(kind: str, model: DETR, tmp_path: Path) -> None:
    path = write(tmp_path, kind, model)
    detector = Detector.load(path, model="detr-tiny")
    assert detector.model.config == model.config
    assert torch.equal(detector.model.state_dict()["query_source.weight"], model.state_dict()["query_source.weight"])
    assert detector.categories.names == ("class 0", "class 1")


@pytest.mark.parametrize("kind", ["bare", "in a dict", "safetensors", "wrapped"])
def test_state_dict_alone_asks_for_its_model(kind: str, model: DETR, tmp_path: Path) -> None:
    path = write(tmp_path, kind, model)
    with pytest.raises(
        CheckpointError, match=r"holds weights under detrkit's names .*name their model with model='detr-tiny'"
    ):
        Detector.load(path)


def test_config_and_yaml_and_run_folder_name_a_model(tmp_path: Path) -> None:
    model = detrkit.build_model("detr-tiny", num_classes=2, decoder_layers=2, num_heads=4)
    path = write(tmp_path, "bare", model)
    assert load_checkpoint(path, model=model.config).config == model.config
    (tmp_path / "config.yaml").write_text(
        "data: x\nmodel:\n  name: detr-tiny\n  decoder_layers: 2\n  num_heads: 4\nlr: 1.0\n"
    )
    for name in (tmp_path, tmp_path / "config.yaml", str(tmp_path / "config.yaml")):
        assert load_checkpoint(path, model=name).config == model.config
    with pytest.raises(CheckpointError, match="no preset fits as it is"):
        load_checkpoint(path)


def test_grayscale_and_sigmoid_models_are_loaded(tmp_path: Path) -> None:
    model = detrkit.build_model("detrkit-s", num_classes=4, num_queries=9, in_channels=1)
    path = write(tmp_path, "bare", model)
    assert load_checkpoint(path, model="detrkit-s").config == model.config


def test_wrong_model_is_rejected_with_those_that_fit(model: DETR, tmp_path: Path) -> None:
    path = write(tmp_path, "bare", model)
    with pytest.raises(
        CheckpointError, match=r"does not fit the model.*\(model='detr-r18'\).*with model='detr-tiny'"
    ) as error:
        load_checkpoint(path, model="detr-r18")
    assert "\n" not in str(error.value)
    with pytest.raises(ConfigError, match="model='detr-tny' is not a preset; did you mean 'detr-tiny'"):
        load_checkpoint(path, model="detr-tny")


def test_named_model_completes_what_official_weights_do_not_show(tmp_path: Path) -> None:
    model = detrkit.build_model("detr-r18", num_classes=3, num_queries=5, num_heads=4)
    torch.save(detrkit.state_dict_as_official(model), tmp_path / "a.pth")
    assert load_checkpoint(tmp_path / "a.pth").config.num_heads == 8
    assert load_checkpoint(tmp_path / "a.pth", model=model.config).config.num_heads == 4


def test_file_that_describes_its_model_is_compared_with_the_name(model: DETR, tmp_path: Path) -> None:
    path = save_model(tmp_path, model)
    assert load_checkpoint(path, model="detr-tiny").config == model.config
    with pytest.raises(CheckpointError, match=r"does not fit the model.*model='detr-r18'"):
        load_checkpoint(path, model="detr-r18")


@pytest.mark.slow  # images are resized to 800 pixels, as the weights say nothing else
@pytest.mark.parametrize("command", ["predict", "explain"])
def test_commands_take_the_name_of_the_model(
    command: str, model: DETR, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "in a dict", model)
    Image.new("RGB", (96, 64)).save("photo.png")
    for arguments, code in (((), 2), (("--model", "detr-tiny", "--state-dict-key", "model"), 0)):
        with pytest.raises(SystemExit) as exit:
            main([command, "a.pth", "photo.png", *arguments])
        assert (exit.value.code or 0) == code, capsys.readouterr().err


@pytest.mark.slow
def test_evaluation_takes_the_name_of_the_model(model: DETR, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path, "bare", model)
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (96, 64)).save("photos/a.png")
    result = detrkit.evaluate(path, "photos", model="detr-tiny", workers=0, output="detections.json")
    assert len(result.split) == 1


def test_export_takes_the_name_of_the_model(model: DETR, tmp_path: Path) -> None:
    path = write(tmp_path, "in a dict", model)
    with pytest.raises(CheckpointError, match="name their model"):
        detrkit.export(path, "torch", output=tmp_path / "a.pt2")
    with pytest.raises(CheckpointError, match=r"\(model='detr-r18'\)"):  # an export itself takes minutes in tests
        detrkit.export(path, "torch", output=tmp_path / "a.pt2", model="detr-r18", state_dict_key="model")


def test_training_takes_weights_of_the_model_that_is_trained(model: DETR, tmp_path: Path) -> None:
    path = write(tmp_path, "bare", model)
    settings = {"data": "x", "weights": str(path)}
    categories = Categories((1, 2, 3), ("a", "b", "c"))
    trained, adaptation = build_model_for(run_config({**settings, "model": "detr-tiny", "num_queries": 7}), categories)
    assert adaptation is not None
    assert not adaptation.new
    assert torch.equal(trained.query_source.weight, model.query_source.weight)
    with pytest.raises(CheckpointError, match="name their model with model='detr-tiny'"):
        with_architecture_of_weights(run_config(settings))


def test_command_line_converts_a_state_dict(model: DETR, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, "bare", model)
    for arguments, code in (((), 2), (("--model", "detr-tiny"), 0)):
        with pytest.raises(SystemExit) as exit:
            main(["convert", str(path), str(tmp_path / "out.safetensors"), "--to", "detrkit", *arguments])
        assert (exit.value.code or 0) == code
    assert "name their model with --model detr-tiny" in capsys.readouterr().err
    assert load_checkpoint(tmp_path / "out.safetensors").config == model.config
