"""Official and Hugging Face checkpoints and downloads: recognised by content, read safely, rejected in one sentence."""

import argparse
import pickle
from pathlib import Path

import pytest
import torch

from detrkit import state_dict_as_official
from detrkit.checkpoints.conversion.huggingface import write_huggingface_folder
from detrkit.checkpoints.load import load_checkpoint
from detrkit.checkpoints.native import Preprocessing
from detrkit.checkpoints.zoo import HUB_MODELS
from detrkit.checkpoints.zoo_realtime import REALTIME_HUB_MODELS
from detrkit.data.categories import COCO_NAMES, Categories
from detrkit.errors import CheckpointError
from detrkit.models.detr import DETR
from detrkit.models.presets import PRESETS
from tests.checkpoints.models import checkpoint_of, small_model
from tests.parameters import slow_except


def outputs(model: DETR) -> torch.Tensor:
    torch.manual_seed(1)
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        predictions = model.eval()(images)
    return torch.cat([predictions.class_logits, predictions.boxes], -1)


@pytest.mark.parametrize(
    "changes", [{}, {"position_embedding": "learned"}, {"pre_norm": True}, {"mask_head": True}], ids=str
)
def test_official_file_is_read_back(tmp_path: Path, changes: dict[str, object]) -> None:
    model = small_model(**changes)
    torch.save({"model": state_dict_as_official(model)}, tmp_path / "a.pth")
    read = load_checkpoint(tmp_path / "a.pth")
    for field in ("num_classes", "num_queries", "encoder_layers", "position_embedding", "pre_norm", "mask_head"):
        assert getattr(read.config, field) == getattr(model.config, field), field
    assert torch.equal(outputs(read.build()), outputs(model))


def test_91_classes_get_coco_names_and_ids(tmp_path: Path) -> None:
    torch.save({"model": state_dict_as_official(small_model(num_classes=91))}, tmp_path / "a.pth")
    categories = load_checkpoint(tmp_path / "a.pth").categories
    assert dict(zip(categories.ids, categories.names, strict=True))[18] == "dog"
    assert COCO_NAMES[18] == "dog"
    assert categories.ids[90] == 90


def test_training_arguments_complete_the_config(tmp_path: Path) -> None:
    model = small_model(backbone="resnet50", dilation=True)
    arguments = argparse.Namespace(dilation=True, nheads=4, dropout=0.0, lr=1e-4, output_dir="/x")
    content = {"model": state_dict_as_official(model), "optimizer": {"state": {}}, "epoch": 3, "args": arguments}
    torch.save(content, tmp_path / "checkpoint.pth")
    config = load_checkpoint(tmp_path / "checkpoint.pth").config
    assert (config.dilation, config.num_heads, config.dropout) == (True, 4, 0.0)


def test_dilation_is_read_from_an_official_file_name(tmp_path: Path) -> None:
    torch.save(
        {"model": state_dict_as_official(small_model(backbone="resnet50", dilation=True))},
        tmp_path / "detr-r50-dc5-f0fb7ef5.pth",
    )
    assert load_checkpoint(tmp_path / "detr-r50-dc5-f0fb7ef5.pth").config.dilation


class Payload:
    """An object whose unpickling creates a file."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.witness,))


@pytest.mark.parametrize(
    ("save", "message"),
    [
        (torch.save, "holds an object of type getattr, which is not read"),
        (
            lambda content, path: path.write_bytes(pickle.dumps(content)),
            "is in another pickle protocol than torch",
        ),
    ],
)
def test_malicious_pickle_is_rejected_without_being_executed(tmp_path: Path, save: object, message: str) -> None:
    witness = tmp_path / "witness"
    assert callable(save)
    save({"model": Payload(witness)}, tmp_path / "evil.pth")
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path / "evil.pth")
    assert not witness.exists()


@pytest.mark.parametrize("name", ["model.onnx", "model.pt2", "folder/model.xml"])
def test_exported_network_is_rejected_by_its_name(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / name).write_bytes(b"a network")
    source = tmp_path / (name.split("/")[0])
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(source)
    assert str(error.value).startswith(f"{source}: is an exported network, expected the weights that it was made of")


def test_error_lists_presets_for_a_mistyped_name_but_not_for_a_path() -> None:
    for path in ("nowhere/runs/first", "first.pth"):
        with pytest.raises(CheckpointError, match=f"^{path}: no such file or folder, .*check the path$"):
            load_checkpoint(path)
    with pytest.raises(CheckpointError, match="did you mean 'detrkit-s'"):
        load_checkpoint("detrkti-s")
    with pytest.raises(CheckpointError, match="detrkit models lists all"):
        load_checkpoint("xyz")


def test_file_that_holds_no_detr_is_rejected(tmp_path: Path) -> None:
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "resnet.pth")
    with pytest.raises(CheckpointError, match=r"contains only a backbone .*'conv1\.weight'.* as backbone_weights"):
        load_checkpoint(tmp_path / "resnet.pth")
    torch.save({"head.conv1.weight": torch.zeros(1), "decoder.0.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"has entries such as 'head\.conv1\.weight', expected those of a DETR"):
        load_checkpoint(tmp_path / "other.pth")
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="holds a list"):
        load_checkpoint(tmp_path / "list.pth")
    (tmp_path / "empty.pth").write_bytes(b"")
    with pytest.raises(CheckpointError, match="not readable as weights"):
        load_checkpoint(tmp_path / "empty.pth")
    with pytest.raises(CheckpointError, match="expected a run folder"):
        load_checkpoint(tmp_path)


def test_unknown_name_is_rejected_with_the_closest_preset(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="detr-r50"):
        load_checkpoint("detr-r5O")
    with pytest.raises(CheckpointError, match="no such file"):
        load_checkpoint(tmp_path / "missing.pth")


def test_building_a_model_needs_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr("socket.socket.connect", refuse)
    small_model()


def test_preset_without_published_weights_is_rejected() -> None:
    with pytest.raises(CheckpointError, match="no weights of this model were published"):
        load_checkpoint("detr-tiny")


HUB_PRESETS = [name for name in HUB_MODELS if name not in REALTIME_HUB_MODELS]
FAST = ("detr-r50", "deformable-detr-r50", "dfine-n")


@pytest.mark.parametrize("preset", slow_except(FAST, [*HUB_PRESETS, "rtdetr-r18", "rtdetrv2-s", "dfine-n"]))
def test_preset_is_downloaded_from_its_hub_repository(
    preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requested = []

    def download_to(name: str, _revision: str | None) -> Path:
        requested.append(name)
        return tmp_path

    changes = {"backbone": PRESETS[preset].backbone if preset in REALTIME_HUB_MODELS else "resnet50"}
    model = small_model(preset, **changes, num_queries=4, dim_feedforward=8)
    write_huggingface_folder(tmp_path, checkpoint_of(model))
    monkeypatch.setattr("detrkit.checkpoints.load.hub_snapshot", download_to)
    assert load_checkpoint(preset).config == model.config
    assert requested == [HUB_MODELS[preset]]


def test_hugging_face_folder_keeps_category_ids_names_and_image_size(tmp_path: Path) -> None:
    categories = Categories((7, 9, 40), ("cell", "platelet", "crystal"))
    write_huggingface_folder(tmp_path, checkpoint_of(small_model(), categories, Preprocessing(image_size=256)))
    read = load_checkpoint(tmp_path)
    assert read.categories == categories
    assert read.preprocessing.image_size == 256


def test_dilated_native_backbone_is_rejected_before_anything_is_written(tmp_path: Path) -> None:
    dilated = small_model(backbone="resnet50", dilation=True)
    with pytest.raises(CheckpointError, match="dilation"):
        write_huggingface_folder(tmp_path / "other", checkpoint_of(dilated), native_backbone=True)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("name", "shape"),
    [("class_embed.weight", (4,)), ("query_embed.weight", ()), ("backbone.0.body.conv1.weight", (3,))],
)
def test_tensors_of_wrong_shapes_are_rejected_in_one_sentence(
    tmp_path: Path, name: str, shape: tuple[int, ...]
) -> None:
    weights = {**state_dict_as_official(small_model()), name: torch.zeros(shape)}
    torch.save({"model": weights}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"a\.pth: ") as error:
        load_checkpoint(tmp_path / "a.pth")
    assert "\n" not in str(error.value)


def test_state_dict_without_string_keys_is_rejected(tmp_path: Path) -> None:
    torch.save({0: torch.zeros(1)}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="expected those of a DETR"):
        load_checkpoint(tmp_path / "a.pth")


def test_malformed_training_arguments_are_rejected(tmp_path: Path) -> None:
    state = state_dict_as_official(small_model("dab-detr-r50"))
    torch.save({"model": state, "args": argparse.Namespace(pe_temperatureH=None)}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="its weights are not those of a DETR"):
        load_checkpoint(tmp_path / "a.pth")
