"""Parity with `transformers.TableTransformerForObjectDetection` on random weights, converted in both directions."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import detrkit
from detrkit.checkpoints.adapt import load_adapted
from detrkit.checkpoints.conversion.huggingface import transformers_classes, write_huggingface_folder
from detrkit.checkpoints.load import load_checkpoint
from detrkit.checkpoints.native import Checkpoint, Preprocessing, save_checkpoint
from detrkit.data.categories import Categories, default_categories
from detrkit.errors import CheckpointError
from tests.parity.test_huggingface import compare
from tests.parity.transformers_models import randomize, small_resnet

transformers = pytest.importorskip("transformers")
SMALL: dict[str, Any] = {
    "num_classes": 2,
    "num_queries": 7,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "dim_feedforward": 64,
}


def reference(backbone: str, **changes: object) -> Any:
    config = transformers.TableTransformerConfig(
        **({"backbone_config": small_resnet()} if backbone == "native" else {"backbone": "resnet18"}),
        encoder_layers=2,
        decoder_layers=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        num_queries=7,
        id2label={0: "table", 1: "table rotated"},
        **changes,
    )
    torch.manual_seed(0)
    model = transformers.TableTransformerForObjectDetection(config)
    randomize(model)
    return model


@pytest.mark.parametrize("backbone", ["timm", "native"])
@pytest.mark.parametrize("changes", [{}, {"position_embedding_type": "learned", "encoder_attention_heads": 4}], ids=str)
def test_folder_of_transformers_gives_the_same_outputs(backbone: str, changes: dict[str, Any], tmp_path: Path) -> None:
    if "encoder_attention_heads" in changes:
        changes = {**changes, "decoder_attention_heads": 4}
    theirs = reference(backbone, **changes)
    theirs.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"feature_extractor_type": "DetrFeatureExtractor", "size": 800, "max_size": 800})
    )
    checkpoint = load_checkpoint(tmp_path)
    assert (checkpoint.categories.names, checkpoint.config.pre_norm) == (("table", "table rotated"), True)
    assert checkpoint.preprocessing.longest_side == 800
    assert compare(theirs, checkpoint.build()) < 1e-4


@pytest.mark.parametrize("native", [False, True], ids=["timm", "native"])
@pytest.mark.parametrize("position_embedding", ["sine", "learned"])
def test_written_folder_is_read_by_transformers(native: bool, position_embedding: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = detrkit.build_model("table-transformer-detection", **SMALL, position_embedding=position_embedding)
    randomize(model)
    checkpoint = Checkpoint(model.state_dict(), model.config, default_categories(2), Preprocessing())
    write_huggingface_folder(tmp_path, checkpoint, native_backbone=native)
    kind = transformers_classes(model.config)[0]
    assert kind == "TableTransformerForObjectDetection"
    theirs, info = getattr(transformers, kind).from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert compare(theirs, model) < 1e-4
    back = load_checkpoint(tmp_path)
    assert back.config == model.config
    assert all(torch.equal(back.state[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.slow
def test_every_format_keeps_the_predictions(tmp_path: Path) -> None:
    reference("timm").save_pretrained(tmp_path / "theirs")
    source: Path | str = tmp_path / "theirs"
    for format, name in (("detrkit", "a.safetensors"), ("official", "b.pth"), ("huggingface-no-timm", "c")):
        result = detrkit.convert(source, tmp_path / name, format)  # type: ignore[arg-type]
        assert result.max_difference < 1e-5
        source = result.path


def test_fine_tuning_starts_from_the_weights(tmp_path: Path) -> None:
    checkpoint = load_checkpoint(_saved(tmp_path))
    model = detrkit.build_model("table-transformer-detection", **{**SMALL, "num_classes": 3})
    adaptation = load_adapted(
        model, Categories((1, 2, 3), ("Table", "row", "cell")), checkpoint.state, checkpoint.categories
    )
    assert (adaptation.new, adaptation.unused, adaptation.known_classes) == ((), (), ("Table",))
    images = torch.randn(1, 3, 64, 96)
    target = detrkit.Target(torch.tensor([[0.5, 0.5, 0.2, 0.2]]), torch.tensor([0]))
    detrkit.SetCriterion(num_classes=3)(model(images, None), [target]).total.backward()
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)


def _saved(folder: Path) -> Path:
    reference("native").save_pretrained(folder / "theirs")
    return folder / "theirs"


@pytest.mark.parametrize(
    ("name", "value"), [("auxiliary_loss", True), ("activation_function", "gelu"), ("decoder_attention_heads", 4)]
)
def test_setting_that_changes_outputs_is_refused_by_its_name(name: str, value: object, tmp_path: Path) -> None:
    config = _saved(tmp_path) / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), name: value}))
    with pytest.raises(CheckpointError, match=rf"config\.json: {name} is {value!r}, which is not supported; expected"):
        load_checkpoint(config.parent)


def test_pre_norm_with_masks_is_refused(tmp_path: Path) -> None:
    model = detrkit.build_model("detr-r18", **SMALL, pre_norm=True, mask_head=True)
    save_checkpoint(tmp_path / "a.safetensors", Checkpoint(
        model.state_dict(), model.config, default_categories(2), Preprocessing()
    ))  # fmt: skip
    with pytest.raises(CheckpointError, match=r"pre_norm.*use to='official'"):
        detrkit.convert(tmp_path / "a.safetensors", tmp_path / "out", "huggingface")
