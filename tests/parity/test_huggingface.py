"""Parity with `transformers.DetrForObjectDetection` on random weights, converted in both directions."""

from pathlib import Path

import pytest
import torch

from detrkit import build_model
from detrkit.checkpoints.conversion import detr_huggingface
from detrkit.checkpoints.conversion.huggingface import huggingface_to_detrkit, write_huggingface_folder
from detrkit.checkpoints.load import load_checkpoint
from detrkit.checkpoints.native import Checkpoint, Preprocessing
from detrkit.checkpoints.state_dict import load_state_dict
from detrkit.data.categories import default_categories
from detrkit.models.detr import DETR
from detrkit.ops.padding import pad_to_batch
from tests.parameters import slow_except
from tests.parity.transformers_models import randomize

transformers = pytest.importorskip("transformers")

SMALL = {"num_classes": 5, "num_queries": 7, "encoder_layers": 2, "decoder_layers": 3, "dim_feedforward": 64}


def huggingface_config(backbone: str, **changes: object) -> object:
    native = transformers.ResNetConfig(out_features=["stage4"]) if backbone == "native" else None
    if backbone == "native" and changes.get("mask_head"):
        native = transformers.ResNetConfig(out_features=["stage1", "stage2", "stage3", "stage4"])
    changes.pop("mask_head", None)
    return transformers.DetrConfig(
        backbone_config=native,
        num_queries=7,
        encoder_layers=2,
        decoder_layers=3,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        num_labels=5,
        **changes,
    )


def photos() -> tuple[torch.Tensor, torch.Tensor]:
    return pad_to_batch([torch.randn(3, 96, 128), torch.randn(3, 64, 96)])


def compare(reference: torch.nn.Module, model: DETR) -> float:
    images, padding_mask = photos()
    with torch.inference_mode():
        expected = reference.eval()(pixel_values=images, pixel_mask=(~padding_mask).long())
        actual = model.eval()(images, padding_mask)
    differences = [(expected.logits - actual.class_logits), (expected.pred_boxes - actual.boxes)]
    if actual.masks is not None:
        differences.append(expected.pred_masks - actual.masks)
    return max(float(difference.abs().max()) for difference in differences)


@pytest.mark.parametrize("backbone", ["timm", "native"])
@pytest.mark.parametrize(
    "changes", slow_except(({},), [{}, {"dilation": True}, {"position_embedding_type": "learned"}]), ids=str
)
def test_converted_transformers_weights_give_the_same_outputs(backbone: str, changes: dict[str, object]) -> None:
    if backbone == "native" and "dilation" in changes:
        pytest.skip("their native ResNet knows no dilation")
    torch.manual_seed(0)
    reference = transformers.DetrForObjectDetection(huggingface_config(backbone, **changes))
    randomize(reference)
    model = build_model(
        "detr-r50",
        **SMALL,
        dilation=bool(changes.get("dilation")),
        position_embedding=changes.get("position_embedding_type", "sine"),
    )
    load_state_dict(model, huggingface_to_detrkit(reference.state_dict()))
    assert compare(reference, model) < 1e-4


@pytest.mark.parametrize("preset", slow_except(("detr-r50-panoptic",), ["detr-r50", "detr-r50-panoptic"]))
@pytest.mark.parametrize("native", [False, True], ids=["timm", "native"])
def test_written_folder_is_read_by_transformers(tmp_path: Path, preset: str, native: bool) -> None:
    torch.manual_seed(0)
    model = build_model(preset, **SMALL)
    randomize(model)
    checkpoint = Checkpoint(model.state_dict(), model.config, default_categories(5), Preprocessing())
    write_huggingface_folder(tmp_path, checkpoint, native_backbone=native)
    kind = transformers.DetrForSegmentation if model.config.mask_head else transformers.DetrForObjectDetection
    reference, info = kind.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert compare(reference, model) < 1e-4


@pytest.mark.parametrize("native_backbone", [False, True])
@pytest.mark.parametrize("preset", ["detr-r18", "detr-r50-panoptic"])
def test_weights_are_equal_after_conversion_to_transformers_and_back(preset: str, native_backbone: bool) -> None:
    state = build_model(preset, **SMALL).state_dict()
    renamed = detr_huggingface.from_detrkit(state, native_backbone)
    assert any("embedder.embedder" in name for name in renamed) == native_backbone
    back = huggingface_to_detrkit(renamed)
    assert list(back) == list(state)
    assert all(torch.equal(back[name], state[name]) for name in state)


def test_folder_saved_by_transformers_is_loaded_with_its_class_names(tmp_path: Path) -> None:
    names = {index: f"thing {index}" for index in range(5)}
    config = huggingface_config("timm")
    config.id2label, config.label2id = names, {name: index for index, name in names.items()}
    reference = transformers.DetrForObjectDetection(config)
    reference.save_pretrained(tmp_path)
    checkpoint = load_checkpoint(tmp_path)
    assert checkpoint.categories.names == tuple(names.values())
    model = checkpoint.build()
    assert compare(reference, model) < 1e-4
