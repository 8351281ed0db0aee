"""Weights of successors made to fit other classes and numbers of queries, converted, and told apart."""

from pathlib import Path

import pytest
import torch

from detrkit import build_model
from detrkit.checkpoints.adapt import load_adapted
from detrkit.checkpoints.conversion.architecture import family_of
from detrkit.checkpoints.conversion.convert import convert_weights
from detrkit.checkpoints.native import Checkpoint, Preprocessing, save_checkpoint
from detrkit.config.model import ModelConfig
from detrkit.data.categories import Categories
from detrkit.errors import CheckpointError
from detrkit.models.presets import PRESETS

SMALL = {"backbone": "resnet18", "encoder_layers": 1, "decoder_layers": 2, "dim_feedforward": 32}
KNOWN = Categories((1, 2, 3), ("dog", "cat", "horse"))
WANTED = Categories((7, 8), ("horse", "cow"))


@pytest.mark.parametrize("preset", ["dab-detr-r50", "deformable-detr-r50-refine"])
def test_classes_of_the_same_name_keep_their_rows(preset: str) -> None:
    torch.manual_seed(0)
    source = build_model(preset, num_classes=3, num_queries=8, **SMALL)
    model = build_model(preset, num_classes=2, num_queries=12, **SMALL)
    name = next(one for one in model.state_dict() if one.startswith("heads.class_head.") and one.endswith("weight"))
    before, queries = model.state_dict()[name].clone(), model.query_source.weight.detach().clone()
    adaptation = load_adapted(model, WANTED, source.state_dict(), KNOWN)
    # the last class is one like the others: sigmoid scores know no no-object
    assert torch.equal(model.state_dict()[name][0], source.state_dict()[name][2])
    assert torch.equal(model.state_dict()[name][1], before[1])
    assert torch.equal(model.query_source.weight[:8], source.query_source.weight)
    assert torch.equal(model.query_source.weight[8:], queries[8:])
    assert adaptation.known_classes == ("horse",)
    assert not adaptation.new


def test_a_detr_with_no_object_keeps_its_row() -> None:
    torch.manual_seed(0)
    source, model = (build_model("detr-r18", num_classes=count, **SMALL) for count in (3, 2))
    load_adapted(model, WANTED, source.state_dict(), KNOWN)
    assert torch.equal(model.heads.class_head.weight[-1], source.heads.class_head.weight[-1])


def test_whether_anything_is_there_is_kept_for_other_classes() -> None:
    torch.manual_seed(0)
    preset = "deformable-detr-r50-two-stage"
    source, model = (build_model(preset, num_classes=count, num_queries=5, **SMALL) for count in (3, 2))
    adaptation = load_adapted(model, WANTED, source.state_dict(), KNOWN)
    assert torch.equal(model.query_source.class_head.weight[0], source.query_source.class_head.weight[0])
    assert not adaptation.new


def test_presets_are_of_their_families() -> None:
    families = {name: family_of(config) for name, config in PRESETS.items()}
    assert {name for name, family in families.items() if family is None} == {"detrkit-s", "detrkit-m"}, "nobody else's"
    assert set(families.values()) == {"detr", "conditional", "dab", "deformable", None}
    for name, family in families.items():
        assert family in (None, name.partition("-")[0])
    assert family_of(ModelConfig(class_scores="sigmoid")) is None
    assert family_of(PRESETS["dab-detr-r50"].model_copy(update={"with_box_refine": False})) is None
    assert family_of(PRESETS["deformable-detr-r50"].model_copy(update={"align_cells": True})) is None


@pytest.mark.parametrize("preset", ["conditional-detr-r50", "dab-detr-r50", "deformable-detr-r50-two-stage"])
@pytest.mark.parametrize(("format", "place"), [("official", "out.pth"), ("huggingface", "out")])
def test_conversion_loses_nothing(preset: str, format: str, place: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build_model(preset, num_classes=3, num_queries=9, **SMALL)
    checkpoint = Checkpoint(model.state_dict(), model.config, KNOWN, Preprocessing())
    save_checkpoint(tmp_path / "model.safetensors", checkpoint)
    assert convert_weights(str(tmp_path / "model.safetensors"), tmp_path / place, format) < 1e-6  # type: ignore[arg-type]


@pytest.mark.parametrize("format", ["official", "huggingface"])
def test_a_mixture_is_converted_to_our_own_form_only(format: str, tmp_path: Path) -> None:
    model = build_model("detr-tiny", num_classes=3, queries="points", class_scores="sigmoid", with_box_refine=True)
    save_checkpoint(
        tmp_path / "model.safetensors", Checkpoint(model.state_dict(), model.config, KNOWN, Preprocessing())
    )
    place = tmp_path / ("out.pth" if format == "official" else "out")
    with pytest.raises(CheckpointError, match="--to detrkit"):
        convert_weights(str(tmp_path / "model.safetensors"), place, format)  # type: ignore[arg-type]
