"""Conversion between formats keeps the predictions; formats that cannot express a model reject it."""

from pathlib import Path

import pytest
import torch

import detrkit
from detrkit.checkpoints.conversion.architectures import architecture_of_config
from detrkit.checkpoints.conversion.formats import check_output
from detrkit.checkpoints.conversion.registry import HUGGINGFACE, OFFICIAL
from detrkit.checkpoints.load import load_checkpoint
from detrkit.checkpoints.native import Preprocessing, save_checkpoint
from detrkit.config.model import ModelConfig
from detrkit.data.categories import Categories
from detrkit.errors import CheckpointError, ConfigError
from detrkit.models.presets import PRESETS
from tests.checkpoints.models import CATEGORIES, checkpoint_of, save_model, small_model
from tests.parameters import slow_except

SUCCESSORS = ["conditional-detr-r50", "dab-detr-r50", "deformable-detr-r50-two-stage"]


def test_every_preset_has_its_published_architecture() -> None:
    architectures = {name: architecture_of_config(config) for name, config in PRESETS.items()}
    assert {name for name, one in architectures.items() if one is None} == {"detrkit-s", "detrkit-m"}
    assert set(architectures.values()) == {*OFFICIAL, None}
    assert set(HUGGINGFACE) == {*OFFICIAL, "table-transformer"}
    others = ("table-transformer", "deim", "rtdetrv4")  # which have the parts of a DETR, of D-FINE and of RT-DETRv2
    assert all(one is None or name.startswith((one, *others)) for name, one in architectures.items())
    assert (architectures["deim-dfine-s"], architectures["deim-rtdetrv2-s"]) == ("dfine", "rtdetrv2")
    assert (architectures["rtdetrv4-s"], architectures["rtdetr-r18"], architectures["rtdetrv2-s"]) == (
        "dfine",
        "rtdetr",
        "rtdetrv2",
    )


@pytest.mark.parametrize(
    "config",
    [
        ModelConfig(class_scores="sigmoid"),
        PRESETS["dab-detr-r50"].model_copy(update={"with_box_refine": False}),
        PRESETS["deformable-detr-r50"].model_copy(update={"align_cells": True}),
    ],
)
def test_config_that_differs_in_a_fixed_field_has_no_published_architecture(config: ModelConfig) -> None:
    assert architecture_of_config(config) is None


@pytest.mark.parametrize("preset", slow_except(("deformable-detr-r50-two-stage",), SUCCESSORS))
@pytest.mark.parametrize(("format", "output"), [("official", "out.pth"), ("huggingface", "out")])
def test_converted_checkpoint_predicts_the_same(preset: str, format: str, output: str, tmp_path: Path) -> None:
    source = save_model(tmp_path, small_model(preset), CATEGORIES)
    result = detrkit.convert(source, tmp_path / output, format)
    assert result.max_difference < 1e-6
    assert (result.path, result.format) == (tmp_path / output, format)


def test_grayscale_model_is_converted(tmp_path: Path) -> None:
    source = save_model(tmp_path, detrkit.build_model("detr-tiny", num_classes=3, num_queries=4, in_channels=1))
    result = detrkit.convert(source, tmp_path / "b.safetensors")
    assert (result.max_difference, result.not_stored, result.url) == (0, (), None)


def test_official_file_keeps_heads_and_dilation_and_reports_what_it_does_not_store(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = small_model("detr-r50", backbone="resnet50", num_heads=4, dilation=True)
    categories = Categories((5, 6, 9), ("a", "b", "c"))
    save_checkpoint(tmp_path / "a.safetensors", checkpoint_of(model, categories, Preprocessing(image_size=300)))
    result = detrkit.convert(tmp_path / "a.safetensors", tmp_path / "plain.pth", "official")
    assert (result.max_difference, result.not_stored) == (0, ("categories", "preprocessing"))
    assert capsys.readouterr().out == ""
    config = load_checkpoint(tmp_path / "plain.pth").config
    assert (config.num_heads, config.dilation) == (4, True)
    torch.load(tmp_path / "plain.pth", weights_only=True)  # as the official code reads it


@pytest.mark.parametrize(("format", "output"), [("official", "out.pth"), ("huggingface", "out")])
def test_unpublished_combination_is_rejected_by_other_formats(format: str, output: str, tmp_path: Path) -> None:
    model = detrkit.build_model(
        "detr-tiny", num_classes=3, queries="points", class_scores="sigmoid", with_box_refine=True
    )
    with pytest.raises(CheckpointError, match="use to='detrkit'"):
        detrkit.convert(save_model(tmp_path, model), tmp_path / output, format)


def test_wrong_arguments_are_rejected_before_the_source_is_read(tmp_path: Path) -> None:
    (tmp_path / "there.pth").touch()
    for output, arguments, message in (
        ("a.pth", {"to": "detrkit"}, r"expected a file ending in \.safetensors"),
        ("there.pth", {"to": "official"}, "exists already"),
        ("a.pth", {"to": "official", "push": "me/it"}, "push='me/it' does not go with to='official'"),
    ):
        with pytest.raises(ConfigError, match=message):
            detrkit.convert("nowhere", tmp_path / output, **arguments)
    with pytest.raises(ConfigError, match="to='onnx' is not a checkpoint format"):
        check_output(tmp_path / "a", "onnx")


def test_load_official_state_dict_is_the_inverse_of_state_dict_as_official() -> None:
    source, model = small_model("dab-detr-r50"), small_model("dab-detr-r50")
    with torch.no_grad():
        source.query_source.weight.add_(1)
    report = detrkit.load_official_state_dict(model, {"model": detrkit.state_dict_as_official(source)})
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in source.state_dict().items())
    assert "query_source.weight" in report.loaded


def test_load_official_state_dict_rejects_other_entries_and_shapes() -> None:
    model = small_model()
    with pytest.raises(CheckpointError, match=r"entries such as 'a\.weight', expected those of a DETR"):
        detrkit.load_official_state_dict(model, {"a.weight": torch.zeros(1)})
    more_layers = detrkit.state_dict_as_official(small_model(decoder_layers=3))
    with pytest.raises(CheckpointError, match=r"0 entries missing, \d+ unknown"):
        detrkit.load_official_state_dict(model, more_layers)
