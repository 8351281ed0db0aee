"""Official checkpoints of LW-DETR and RF-DETR: names, configurations, what files do not show."""

from pathlib import Path
from typing import cast

import pytest
import torch

from detrkit import build_model, load_official_state_dict, state_dict_as_official
from detrkit.checkpoints.conversion import convert as convert_module
from detrkit.checkpoints.conversion.convert import convert
from detrkit.checkpoints.conversion.formats import CheckpointFormat
from detrkit.checkpoints.conversion.official import official_from_detrkit, read_official, write_official_file
from detrkit.checkpoints.infer_config import infer_config
from detrkit.checkpoints.load import load_checkpoint
from detrkit.checkpoints.native import Checkpoint, default_preprocessing, save_checkpoint
from detrkit.checkpoints.state_dict import check_state_dict
from detrkit.config.model import ModelConfig
from detrkit.data.categories import default_categories
from detrkit.data.synthetic import SHAPES
from detrkit.errors import CheckpointError
from detrkit.models.build import model_without_memory
from detrkit.models.detr import DETR
from detrkit.models.presets import PRESETS
from tests.models.vit_models import small_vit
from tests.parameters import slow_except
from tests.parity.foundation_golden import published_files

SIZES = ("tiny", "small", "medium", "large", "xlarge")
PRESET_OF_FILE = {
    **{f"LWDETR_{size}_60e_coco.pth": f"lwdetr-{size}" for size in SIZES},
    **{f"LWDETR_{size}_30e_objects365.pth": f"lwdetr-{size}-obj365" for size in SIZES},
    **{f"rf-detr-{size}.pth": f"rfdetr-{size}" for size in ("nano", "small", "medium", "base")},
    "rf-detr-base-2.pth": "rfdetr-base",
    "rf-detr-large-2026.pth": "rfdetr-large",
    "rf-detr-large.pth": "rfdetr-large-deprecated",
    **{
        f"rf-detr-seg-{size}.pt": f"rfdetr-seg-{size}"
        for size in ("nano", "small", "medium", "large", "xlarge", "preview")
    },
    "rf-detr-seg-xxlarge.pt": "rfdetr-seg-2xlarge",
}
FAST = ("LWDETR_tiny_60e_coco.pth", "rf-detr-nano.pth", "rf-detr-seg-nano.pt")


@pytest.mark.parametrize("file", slow_except(FAST, PRESET_OF_FILE))
def test_every_published_entry_has_a_place_and_none_is_missing_in_both_directions(file: str, shared: Path) -> None:
    config, family = PRESETS[PRESET_OF_FILE[file]], "lwdetr" if file.startswith("LWDETR") else "rfdetr"
    published = published_files(shared, family)[file]
    state = {
        name: torch.empty(shape, dtype=getattr(torch, kind), device="meta") for name, shape, kind in published["state"]
    }
    model = model_without_memory(config)
    read = read_official(state, None)
    assert read is not None
    check_state_dict(model, read[0])
    assert infer_config(read[0], **read[1]) == config
    written = official_from_detrkit(model.state_dict(), config)
    assert {name: tensor.shape for name, tensor in written.items()} == {
        name: tensor.shape for name, tensor in state.items()
    }
    parameters = list(model.parameters())
    assert sum(one.numel() for one in parameters) == published["parameters"]
    assert sum(one.numel() for one in parameters if one.requires_grad) == published["parameters_trainable"]


def small(preset: str, **changes: object) -> DETR:
    return build_model(
        preset, **{"num_classes": 3, "dim_feedforward": 32, "num_queries": 5, "group_detr": 2, **changes}
    )


@pytest.mark.parametrize("preset", ["lwdetr-tiny", "rfdetr-seg-nano"])
def test_weights_survive_the_authors_names_to_the_bit(preset: str) -> None:
    model, other = small(preset), small(preset)
    official = state_dict_as_official(model)
    assert official["refpoint_embed.weight"].shape == (10, 4)
    for content in (official, {"model": official, "args": None}, {"ema_model": official}):
        load_official_state_dict(other, content)
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, other.state_dict()[name]), name


@pytest.mark.parametrize("preset", ["lwdetr-tiny", "rfdetr-nano"])
def test_official_files_are_read_with_their_configuration_and_preprocessing(preset: str, tmp_path: Path) -> None:
    model = small(preset, num_classes=91, max_detections=5, group_detr=3)
    checkpoint = Checkpoint(
        model.state_dict(), model.config, default_categories(91), default_preprocessing(model.config)
    )
    write_official_file(tmp_path / "best.pth", checkpoint)
    read = load_checkpoint(tmp_path / "best.pth")
    assert read.config == model.config
    assert read.categories == default_categories(91)
    side = 640 if preset == "lwdetr-tiny" else 384
    assert (read.preprocessing.resize, read.preprocessing.size) == ("stretch", (side, side))
    assert read.preprocessing.normalize


@pytest.mark.parametrize("preset", ["lwdetr-tiny", "rfdetr-nano"])
def test_official_files_hold_the_layers_of_models_that_are_not_published(preset: str, tmp_path: Path) -> None:
    model = small_vit(preset, num_windows=4, num_heads=2, cross_attention_heads=4, out_layers=(2,))
    checkpoint = Checkpoint(model.state_dict(), model.config, SHAPES, default_preprocessing(model.config))
    write_official_file(tmp_path / "best.pth", checkpoint)
    assert load_checkpoint(tmp_path / "best.pth").config == model.config
    # as published: with blocks by default, and unset
    state = state_dict_as_official(model)
    fields = read_official(state, {"out_feature_indexes": [3, 6, 9, 12], "num_windows": 2})[1]  # type: ignore[index]
    if preset == "rfdetr-nano":
        assert fields == {"out_layers": (3, 6, 9, 12), "global_layers": (3, 6, 9), "num_windows": 2}
    assert not read_official(state, {"out_feature_indexes": [-1]})[1]  # type: ignore[index]


def test_windows_that_the_code_of_lwdetr_lacks_are_refused(tmp_path: Path) -> None:
    model = small_vit("lwdetr-tiny")
    checkpoint = Checkpoint(model.state_dict(), model.config, SHAPES, default_preprocessing(model.config))
    with pytest.raises(CheckpointError, match=r"2 x 2 windows, the official code of LW-DETR 4 x 4; use to='detrkit'"):
        write_official_file(tmp_path / "best.pth", checkpoint)


@pytest.mark.parametrize(
    ("preset", "format"),
    [("lwdetr-tiny", "official"), ("lwdetr-tiny", "huggingface"), ("rfdetr-seg-nano", "huggingface")],
)
def test_converted_files_predict_the_same_after_the_way_back(
    preset: str, format: CheckpointFormat, tmp_path: Path
) -> None:
    model = small_vit(preset, num_windows=4, num_heads=2, cross_attention_heads=4)
    checkpoint = Checkpoint(model.state_dict(), model.config, SHAPES, default_preprocessing(model.config, 192))
    save_checkpoint(tmp_path / "a.safetensors", checkpoint)
    there = convert(tmp_path / "a.safetensors", tmp_path / ("b.pth" if format == "official" else "b"), format)
    back = convert(there.path, tmp_path / "c.safetensors")
    assert there.max_difference == back.max_difference == 0
    assert ("preprocessing" in there.not_stored) == (format == "official")
    assert load_checkpoint(back.path).config == model.config


def test_models_under_other_licences_are_refused_by_name_and_by_their_weights(tmp_path: Path) -> None:
    for name, reason in (("rfdetr-2xl", "Platform Model License"), ("deimv2-s", "DINOv3")):
        with pytest.raises(CheckpointError, match=rf"^{name} is not included: its .*{reason}"):
            load_checkpoint(name)
    file = tmp_path / "deimv2_dinov3_s_coco.pth"
    names = ("backbone.dinov3.cls_token", "decoder.decoder.layers.0.swish_ffn.w12.weight")
    torch.save({"model": {name: torch.zeros(2, 2) for name in names}}, file)
    with pytest.raises(CheckpointError, match="is a DEIMv2 that is not included: its backbone derives from DINOv3"):
        load_checkpoint(file)


def test_output_that_cannot_be_read_back_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_vit("rfdetr-nano", num_heads=2, cross_attention_heads=4)
    checkpoint = Checkpoint(model.state_dict(), model.config, SHAPES, default_preprocessing(model.config))
    save_checkpoint(tmp_path / "a.safetensors", checkpoint)

    def differs(first: DETR, second: DETR) -> float:
        raise CheckpointError("another model")

    monkeypatch.setattr(convert_module, "max_difference", differs)
    for name, format in (("b.pth", "official"), ("c.safetensors", "detrkit"), ("d", "huggingface")):
        with pytest.raises(CheckpointError, match="another model"):
            convert(tmp_path / "a.safetensors", tmp_path / name, cast(CheckpointFormat, format))
        assert not (tmp_path / name).exists()


def test_masks_that_others_do_not_have_are_refused(tmp_path: Path) -> None:
    model = small_vit("lwdetr-tiny", num_windows=4, mask_head=True)
    checkpoint = Checkpoint(model.state_dict(), model.config, SHAPES, default_preprocessing(model.config))
    with pytest.raises(CheckpointError, match="masks is not a published architecture; use to='detrkit'"):
        write_official_file(tmp_path / "best.pth", checkpoint)
    save_checkpoint(tmp_path / "a.safetensors", checkpoint)
    assert load_checkpoint(tmp_path / "a.safetensors").config == model.config
    state = state_dict_as_official(small_vit("rfdetr-seg-nano"))
    with pytest.raises(CheckpointError, match="its masks have a value per 8 x 8 pixels, expected 4 x 4"):
        read_official(state, {"segmentation_head": True, "mask_downsample_ratio": 8})


def test_published_sizes_are_those_of_the_position_table() -> None:
    expected = {"rfdetr-nano": 384, "rfdetr-small": 512, "rfdetr-medium": 576, "rfdetr-base": 560, "rfdetr-large": 704}
    expected |= {"rfdetr-seg-nano": 312, "rfdetr-seg-small": 384, "rfdetr-seg-medium": 432, "rfdetr-seg-large": 504}
    expected |= {"rfdetr-seg-xlarge": 624, "rfdetr-seg-2xlarge": 768, "rfdetr-seg-preview": 432}
    for preset, side in {**expected, "lwdetr-tiny": 640, "lwdetr-xlarge": 640}.items():
        config: ModelConfig = PRESETS[preset]
        assert default_preprocessing(config).size == (side, side)
        assert side % config.size_divisor == 0
