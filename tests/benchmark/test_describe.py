"""Model descriptions: parameters, FLOPs and shapes of every part."""

import pickle
from pathlib import Path

import pytest
import torch

import detrkit
from detrkit import ConfigError, build_model
from detrkit.benchmark.cases import BenchmarkCase
from detrkit.benchmark.describe import describe_model
from detrkit.benchmark.image_size import usual_size, usual_size_of
from detrkit.benchmark.worker import _load_detector
from detrkit.checkpoints.native import Checkpoint, default_preprocessing, save_checkpoint
from detrkit.data.synthetic import SHAPES
from detrkit.models.presets import preset_config
from tests.models.vit_models import small_vit


def test_description_counts_all_parameters_of_the_model(capsys: pytest.CaptureFixture[str]) -> None:
    description = detrkit.describe_model("detr-tiny", size=(64, 96))
    model = build_model("detr-tiny")
    assert description.num_parameters == sum(p.numel() for p in model.parameters())
    assert description.num_trainable == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert description.gflops > 0.01
    assert repr(description).startswith("ModelDescription('detr-tiny', 64 x 96 px: ")
    assert "\n" not in repr(description)
    assert capsys.readouterr() == ("", "")
    backbone = next(stage for stage in description.stages if stage.part == "backbone")
    assert backbone.io.outputs[-1][-2:] == (8, 12)
    assert list(description.to_pandas()["part"]) == [stage.part for stage in description.stages]
    assert "<table" in description._repr_html_()


def test_size_is_that_of_the_squares_to_which_a_model_stretches_images(tmp_path: Path) -> None:
    model = small_vit()
    assert describe_model(model.config).size == (96, 96)  # 5 patches of 16 pixels, in whole windows
    assert usual_size(build_model("detr-tiny").config) == (800, 1066)
    preprocessing = default_preprocessing(model.config, 64)
    save_checkpoint(tmp_path / "a.safetensors", Checkpoint(model.state_dict(), model.config, SHAPES, preprocessing))
    described = describe_model(tmp_path / "a.safetensors")
    assert described.size == usual_size_of(str(tmp_path / "a.safetensors"), None, None) == (64, 64)
    assert described.num_parameters == sum(p.numel() for p in model.parameters())


def test_small_parts_that_are_no_stage_are_counted() -> None:
    description = describe_model("dfine-n", size=(64, 64))
    assert description.num_parameters > sum(stage.num_parameters for stage in description.stages)
    assert description.num_parameters >= description.num_trainable


def test_description_of_a_config_is_saved_as_a_figure(tmp_path: Path) -> None:
    description = detrkit.describe_model(preset_config("detr-tiny"), size=(64, 64))
    description.save_figure(tmp_path / "shapes.svg")
    assert str(description.stages[0].io.outputs[-1]) in (tmp_path / "shapes.svg").read_text()


def test_empty_size_is_rejected() -> None:
    with pytest.raises(ConfigError, match="size"):
        detrkit.describe_model("detr-tiny", size=(0, 64))


def test_bare_weights_take_their_architecture_from_model(tmp_path: Path) -> None:
    weights = tmp_path / "bare.pth"
    torch.save(build_model("detr-tiny", num_classes=3).state_dict(), weights)
    described = describe_model(weights, size=(64, 64), model="detr-tiny")
    assert described.config.num_classes == 3
    case = BenchmarkCase("detrkit", str(weights), model="detr-tiny")
    assert pickle.loads(pickle.dumps(case)) == case  # it goes to a process
    assert _load_detector(case, "cpu").model.config == described.config
    with pytest.raises(ConfigError, match="is for weights"):
        describe_model("detr-tiny", model="detr-r50")
