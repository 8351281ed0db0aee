"""`train` from a model object, on torch datasets in several processes, and `resume` with data passed again."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import detrkit
from tests.api.shapes import CLASSES, SMALL_RUN, ShapesInTorchvisionForm, StopAfter


def small_run(output: Path, **more: Any) -> detrkit.TrainResult:
    arguments: dict[str, Any] = {"model": "detrkit-s", "val": ShapesInTorchvisionForm(4, seed=2), "classes": CLASSES}
    return detrkit.train(ShapesInTorchvisionForm(16, seed=1), output=output, **arguments | SMALL_RUN | more)


def logged_losses(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


@pytest.mark.slow
def test_training_starts_from_the_weights_of_the_given_model(tmp_path: Path) -> None:
    torch.manual_seed(3)
    model = detrkit.build_model("detrkit-s", num_classes=3, num_queries=10, hidden_dim=64, decoder_layers=1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    architecture = {"num_queries", "hidden_dim", "decoder_layers"}
    settings = {name: value for name, value in SMALL_RUN.items() if name not in architecture}
    result = detrkit.train(
        ShapesInTorchvisionForm(8, seed=1),
        model,
        val=ShapesInTorchvisionForm(4, seed=2),
        classes=CLASSES,
        output=tmp_path / "run",
        steps=1,
        lr=1e-9,
        **settings,
    )
    weights = dict(model.named_parameters())
    for name, parameter in result.detector.model.named_parameters():
        torch.testing.assert_close(parameter, before[name], atol=1e-6, rtol=0)
        assert torch.equal(weights[name], before[name])  # a copy was trained


def test_model_with_other_classes_than_the_data_is_refused(tmp_path: Path) -> None:
    model = detrkit.build_model("detr-tiny", num_classes=5)
    with pytest.raises(detrkit.DetrkitError, match="classes"):
        detrkit.train(ShapesInTorchvisionForm(8, seed=1), model, classes=CLASSES, output=tmp_path / "run", steps=1)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_run_on_a_torch_dataset_resumes_bit_for_bit_when_it_is_passed_again(tmp_path: Path) -> None:
    whole = small_run(tmp_path / "whole", steps=8)
    small_run(tmp_path / "stopped", steps=8, callbacks=[StopAfter(3)])
    with pytest.raises(detrkit.ConfigError, match="pass it again as data"):
        detrkit.resume(tmp_path / "stopped")
    resumed = detrkit.resume(
        tmp_path / "stopped",
        data=ShapesInTorchvisionForm(16, seed=1),
        val=ShapesInTorchvisionForm(4, seed=2),
        classes=CLASSES,
        loggers=["jsonl"],
    )
    expected = whole.detector.model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in resumed.detector.model.state_dict().items())


@pytest.mark.slow
def test_torch_dataset_and_callback_train_in_two_processes(tmp_path: Path) -> None:
    result = small_run(tmp_path / "run", steps=6, devices=2, callbacks=[StopAfter(4)])
    assert result.config.training.hardware.devices == 2
    state = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert state["step"] == 4


def test_what_processes_cannot_import_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    class Local(detrkit.Callback):
        pass

    with pytest.raises(detrkit.ConfigError, match="Define them in a module"):
        small_run(tmp_path / "run", steps=2, devices=2, callbacks=[Local()])
    assert not (tmp_path / "run").exists()
