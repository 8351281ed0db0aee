"""Official checkpoints of RT-DETR, D-FINE and their successors: names, configurations, what files do not show."""

import gzip
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from detrkit import build_model, load_official_state_dict, state_dict_as_official
from detrkit.checkpoints.conversion.official import official_from_detrkit, read_official, write_official_file
from detrkit.checkpoints.infer_config import infer_config
from detrkit.checkpoints.load import load_checkpoint
from detrkit.checkpoints.native import Checkpoint, default_preprocessing
from detrkit.checkpoints.state_dict import check_state_dict
from detrkit.config.model import ModelConfig
from detrkit.data.categories import contiguous_coco_categories
from detrkit.errors import CheckpointError, ConfigError
from detrkit.models.build import model_without_memory
from detrkit.models.detr import DETR
from detrkit.models.presets import PRESETS
from tests.parameters import slow_except

RTDETR = {"r18vd": "r18", "r34vd": "r34", "r50vd": "r50", "r50vd_m": "r50-m", "r101vd": "r101"}
V2 = {"s_r18vd": "s", "ms_r34vd": "ms", "m_r50vd_m": "m", "l_r50vd": "l", "x_r101vd": "x", "s_dsp": "s-dsp"}
PRESET_OF_LIST = {
    **{f"rtdetr_{name}": f"rtdetr-{preset}" for name, preset in RTDETR.items()},
    **{f"rtdetrv2_{name}": f"rtdetrv2-{preset}" for name, preset in V2.items()},
    "rtdetrv2_r18vd_sp1": "rtdetrv2-s-sp1",
    "dfine_s_obj365": "dfine-s-obj365",
    **{f"dfine_{size}": f"dfine-{size}" for size in "nsmlx"},
    **{f"deim_dfine_{size}": f"deim-dfine-{size}" for size in "nsmlx"},
    **{f"deim_rtdetrv2_{size}": f"deim-rtdetrv2-{size}" for size in ("s", "ms", "m", "l", "x")},
    **{f"rtdetrv4_{size}": f"rtdetrv4-{size}" for size in "sm"},
}
FAST = ("rtdetr_r18vd", "dfine_n")
NOT_SHOWN = {
    "activation",
    "sampling",
    "num_points",
}  # DEIM or D-FINE; discrete sampling; what points_per_level replaces


def published_entries(shared: Path, name: str, config: ModelConfig) -> dict[str, Tensor]:
    """Return the entries of a published file without memory; the constants have their values."""
    path = shared / f"golden/modern/state_dict_{name}.json.gz"
    with gzip.open(path, "rt", encoding="utf-8") as content:
        entries = json.load(content)["state_dict"]
    state = {entry: torch.empty(shape, dtype=getattr(torch, dtype), device="meta") for entry, shape, dtype in entries}
    for entry in state:
        if entry.endswith("num_points_scale"):
            state[entry] = torch.tensor([1 / count for count in config.sampling_points for _ in range(count)])
        elif entry.endswith("reg_scale"):
            state[entry] = torch.tensor([int(config.reg_scale)])
    return state


@pytest.mark.parametrize("name", slow_except(FAST, PRESET_OF_LIST))
def test_every_published_entry_has_a_place_and_none_is_missing_in_both_directions(name: str, shared: Path) -> None:
    config = PRESETS[PRESET_OF_LIST[name]]
    state, model = published_entries(shared, name, config), model_without_memory(config)
    read = read_official(state, None)
    assert read is not None
    check_state_dict(model, read[0])
    inferred = infer_config(read[0], **read[1]).model_dump()
    different = {field for field, value in config.model_dump().items() if inferred[field] != value}
    assert different <= NOT_SHOWN

    written = official_from_detrkit(model.state_dict(), config)
    assert {entry: tensor.shape for entry, tensor in written.items()} == {
        entry: tensor.shape for entry, tensor in state.items()
    }


def small(preset: str, **changes: object) -> DETR:
    return build_model(
        preset, **{"num_classes": 3, "hidden_dim": 64, "dim_feedforward": 32, "num_queries": 5, **changes}
    )


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["dfine-n", "deimv2-atto", "deimv2-n", "rtdetr-r18", "rtdetrv2-s"])
def test_weights_survive_the_authors_names_to_the_bit(preset: str) -> None:
    model, other = small(preset), small(preset)
    official = state_dict_as_official(model)
    for content in (official, {"ema": {"module": official}}, {"model": official}):
        load_official_state_dict(other, content)
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, other.state_dict()[name]), name


def test_the_moving_average_of_a_training_checkpoint_is_preferred() -> None:
    model = small("dfine-n")
    official = state_dict_as_official(model)
    noised = {name: tensor + 1 if tensor.is_floating_point() else tensor for name, tensor in official.items()}
    load_official_state_dict(model, {"model": noised, "ema": {"module": official, "updates": 7}, "last_epoch": 3})
    torch.testing.assert_close(state_dict_as_official(model), official, rtol=0, atol=0, equal_nan=True)


def test_stored_anchors_of_official_files_are_those_of_640_pixels() -> None:
    official = state_dict_as_official(small("dfine-s"))
    anchors, is_valid = official["decoder.anchors"], official["decoder.valid_mask"]
    assert anchors.shape == (1, 8400, 4)
    assert int((~is_valid).sum()) == 316  # the outermost ring of the finest map
    assert anchors[~is_valid.expand_as(anchors)].isinf().all()
    expected = torch.tensor([1.5 / 80, 1.5 / 80, 0.05, 0.05]).logit()
    torch.testing.assert_close(anchors[0, 81], expected)
    assert torch.equal(official["decoder.up"], official["decoder.decoder.up"])


def write(path: Path, preset: str, **changes: object) -> DETR:
    model = small(preset, **{"num_classes": 80, **changes}).eval()
    preprocessing = default_preprocessing(model.config)
    write_official_file(path, Checkpoint(model.state_dict(), model.config, contiguous_coco_categories(), preprocessing))
    return model


def test_official_files_are_read_with_labels_and_preprocessing_of_coco(tmp_path: Path) -> None:
    write(tmp_path / "best.pth", "rtdetrv2-s")
    read = load_checkpoint(tmp_path / "best.pth")
    assert read.categories.ids[-1] == 90
    assert read.categories.names[0] == "person"
    transform = read.preprocessing
    assert (transform.resize, transform.size, transform.normalize) == ("stretch", (640, 640), False)
    assert (read.config.points_per_level, read.config.num_queries) == ((4, 4, 4), 5)
    other = Path(tmp_path / "again.pth")
    write_official_file(other, read)
    assert (
        torch.load(other, weights_only=True)["model"].keys()
        == torch.load(tmp_path / "best.pth", weights_only=True)["model"].keys()
    )


@pytest.mark.parametrize(
    ("file", "model", "activation"),
    [
        ("dfine.pth", None, "relu"),
        ("deim_dfine_hgnetv2_n.pth", None, "silu"),
        ("best.pth", "deim-dfine-n", "silu"),
        ("deim_best.pth", "dfine-n", "relu"),
    ],
)
def test_what_tells_deim_from_dfine_is_said_or_named(
    tmp_path: Path, file: str, model: str | None, activation: str
) -> None:
    write(tmp_path / file, "dfine-n", hidden_dim=128, dim_feedforward=512, num_queries=300)
    read = load_checkpoint(tmp_path / file, model=model)
    assert read.config.activation == activation
    assert any("weights of D-FINE and DEIM have the same names" in note for note in read.notes) == (model is None)


def test_weights_of_rtdetrv4_need_no_name(tmp_path: Path) -> None:
    write(tmp_path / "best.pth", "rtdetrv4-s")
    read = load_checkpoint(tmp_path / "best.pth")
    assert (read.config.activation, read.config.distillation_dim, read.notes) == ("silu", 768, ())


def test_pages_that_need_a_browser_are_named() -> None:
    with pytest.raises(CheckpointError, match="can only be downloaded with a browser, from https://drive"):
        load_checkpoint("deim-dfine-s")


@pytest.mark.parametrize("preset", slow_except(("deimv2-atto",), ("deimv2-atto", "deimv2-n")))
def test_files_of_deimv2_that_hold_equal_tensors_once_are_read(preset: str, tmp_path: Path) -> None:
    """Files of the hub are written by `safetensors.torch.save_model`, which drops all but one name of a shared tensor."""
    model = build_model(preset)
    official = state_dict_as_official(model)
    for name in ("decoder.up", "decoder.reg_scale"):
        del official[name]
    if preset == "deimv2-atto":
        official = {name: tensor for name, tensor in official.items() if "dec_bbox_head.1" not in name}
        official = {name: tensor for name, tensor in official.items() if "dec_bbox_head.0" not in name}
    save_file({name: tensor.clone().contiguous() for name, tensor in official.items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"HGNetv2": {"name": "Atto"}}))
    read = load_checkpoint(tmp_path)
    assert read.config == model.config
    assert read.preprocessing == default_preprocessing(model.config)
    assert read.categories == contiguous_coco_categories()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, read.state[name]), name


def test_stored_anchors_of_deimv2_are_those_of_its_image_size() -> None:
    sizes = {"atto": 20**2 + 10**2, "femto": 26**2 + 13**2, "pico": 40**2 + 20**2, "n": 40**2 + 20**2}
    for size, cells in sizes.items():
        config = PRESETS[f"deimv2-{size}"]
        written = official_from_detrkit(model_without_memory(config).state_dict(), config)
        assert written["decoder.anchors"].shape == (1, cells, 4)


def test_variants_with_dinov3_are_refused_by_name_and_by_content() -> None:
    for size in ("s", "m", "l", "x"):
        with pytest.raises(
            ConfigError, match=f"model='deimv2-{size}' is not included: its backbone derives from DINOv3"
        ):
            build_model(f"deimv2-{size}")
        with pytest.raises(CheckpointError, match=f"deimv2-{size} is not included: its backbone derives from DINOv3"):
            load_checkpoint(f"deimv2-{size}")
    official = {**state_dict_as_official(build_model("deimv2-atto")), "backbone.dinov3.cls_token": torch.zeros(1)}
    with pytest.raises(CheckpointError, match="not included: its backbone derives from DINOv3"):
        read_official(official, None)
