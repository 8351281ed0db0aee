"""Model descriptions: parameters, FLOPs and shapes of every part."""

from pathlib import Path

import pytest

import detrkit
from detrkit import ConfigError, build_model
from detrkit.models.presets import preset_config


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


def test_description_of_a_config_is_saved_as_a_figure(tmp_path: Path) -> None:
    description = detrkit.describe_model(preset_config("detr-tiny"), size=(64, 64))
    description.save_figure(tmp_path / "shapes.svg")
    assert str(description.stages[0].io.outputs[-1]) in (tmp_path / "shapes.svg").read_text()


def test_empty_size_is_rejected() -> None:
    with pytest.raises(ConfigError, match="size="):
        detrkit.describe_model("detr-tiny", size=(0, 64))
