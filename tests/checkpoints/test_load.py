"""Weights in the published form and from the network: told by their keys, safely read, never guessed at."""

import argparse
import hashlib
import json
import pickle
from pathlib import Path

import pytest
import torch

from detrkit import build_model
from detrkit.checkpoints import download
from detrkit.checkpoints.conversion.detr import state_dict_as_official
from detrkit.checkpoints.conversion.huggingface import read_preprocessing, write_folder
from detrkit.checkpoints.download import HUB_MODELS
from detrkit.checkpoints.load import read_checkpoint
from detrkit.checkpoints.native import Checkpoint, Preprocessing
from detrkit.data.categories import COCO_NAMES, Categories, default_categories
from detrkit.errors import CheckpointError
from detrkit.models.detr import DETR
from detrkit.models.presets import preset_config

SMALL = {"num_queries": 5, "encoder_layers": 1, "decoder_layers": 2, "dim_feedforward": 32}


def small(**changes: object) -> DETR:
    torch.manual_seed(0)
    return build_model("detr-r50", **{"num_classes": 3, **SMALL, **changes})


def outputs(model: DETR) -> torch.Tensor:
    torch.manual_seed(1)
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        predictions = model.eval()(images)
    return torch.cat([predictions.class_logits, predictions.boxes], -1)


@pytest.mark.parametrize(
    "changes", [{}, {"position_embedding": "learned"}, {"pre_norm": True}, {"mask_head": True}], ids=str
)
def test_published_form_round_trip(tmp_path: Path, changes: dict[str, object]) -> None:
    model = small(**changes)
    torch.save({"model": state_dict_as_official(model)}, tmp_path / "a.pth")
    read = read_checkpoint(tmp_path / "a.pth")
    for field in ("num_classes", "num_queries", "encoder_layers", "position_embedding", "pre_norm", "mask_head"):
        assert getattr(read.config, field) == getattr(model.config, field), field
    assert torch.equal(outputs(read.build()), outputs(model))


def test_the_91_slots_keep_coco_names_and_ids(tmp_path: Path) -> None:
    torch.save({"model": state_dict_as_official(small(num_classes=91))}, tmp_path / "a.pth")
    categories = read_checkpoint(tmp_path / "a.pth").categories
    assert dict(zip(categories.ids, categories.names, strict=True))[18] == "dog"
    assert COCO_NAMES[18] == "dog"
    assert categories.ids[90] == 90


def test_a_training_checkpoint_says_what_weights_do_not_show(tmp_path: Path) -> None:
    model = small(dilation=True)
    arguments = argparse.Namespace(dilation=True, nheads=4, dropout=0.0, lr=1e-4, output_dir="/x")
    content = {"model": state_dict_as_official(model), "optimizer": {"state": {}}, "epoch": 3, "args": arguments}
    torch.save(content, tmp_path / "checkpoint.pth")
    config = read_checkpoint(tmp_path / "checkpoint.pth").config
    assert (config.dilation, config.num_heads, config.dropout) == (True, 4, 0.0)


def test_a_published_name_tells_dilation(tmp_path: Path) -> None:
    torch.save({"model": state_dict_as_official(small(dilation=True))}, tmp_path / "detr-r50-dc5-f0fb7ef5.pth")
    assert read_checkpoint(tmp_path / "detr-r50-dc5-f0fb7ef5.pth").config.dilation


class Payload:
    """What a malicious file holds: unpickling it would run a command."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.witness,))


@pytest.mark.parametrize("save", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))])
def test_a_malicious_pickle_is_refused_and_does_nothing(tmp_path: Path, save: object) -> None:
    witness = tmp_path / "witness"
    assert callable(save)
    save({"model": Payload(witness)}, tmp_path / "evil.pth")
    with pytest.raises(
        CheckpointError, match=r"not readable as weights \(it is no file of torch's, or holds more than"
    ):
        read_checkpoint(tmp_path / "evil.pth")
    assert not witness.exists()


@pytest.mark.parametrize("name", ["model.onnx", "model.pt2", "folder/model.xml"])
def test_an_exported_network_is_called_one(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / name).write_bytes(b"a network")
    source = tmp_path / (name.split("/")[0])
    with pytest.raises(CheckpointError) as error:
        read_checkpoint(source)
    assert str(error.value).startswith(f"{source}: is an exported network, expected the weights that it was made of")


def test_a_mistyped_path_lists_no_presets_and_a_mistyped_name_ours_first() -> None:
    for path in ("nowhere/runs/first", "first.pth"):
        with pytest.raises(CheckpointError, match=f"^{path}: found nothing there, .*check the path$"):
            read_checkpoint(path)
    with pytest.raises(CheckpointError, match="did you mean 'detrkit-s'"):
        read_checkpoint("detrkti-s")
    with pytest.raises(CheckpointError, match="choose one of detrkit-s, detrkit-m, detr-r50,"):
        read_checkpoint("xyz")


def test_what_is_no_detr_is_refused(tmp_path: Path) -> None:
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "resnet.pth")
    with pytest.raises(CheckpointError, match=r"a backbone alone .*'conv1\.weight'.* as --backbone-weights"):
        read_checkpoint(tmp_path / "resnet.pth")
    torch.save({"head.conv1.weight": torch.zeros(1), "decoder.0.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"found entries such as 'head\.conv1\.weight', expected those of a DETR"):
        read_checkpoint(tmp_path / "other.pth")
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="found a list"):
        read_checkpoint(tmp_path / "list.pth")
    (tmp_path / "empty.pth").write_bytes(b"")
    with pytest.raises(CheckpointError, match="not readable as weights"):
        read_checkpoint(tmp_path / "empty.pth")
    with pytest.raises(CheckpointError, match="expected a run folder"):
        read_checkpoint(tmp_path)


def test_an_unknown_name_is_refused_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="detr-r50"):
        read_checkpoint("detr-r5O")
    with pytest.raises(CheckpointError, match="found nothing"):
        read_checkpoint(tmp_path / "missing.pth")


def test_a_download_is_checked_by_its_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    content = b"weights"
    digest = hashlib.sha256(content).hexdigest()[:8]
    good, bad = tmp_path / f"w-{digest}.pth", tmp_path / "w-00000000.pth"
    good.write_bytes(content)
    bad.write_bytes(content)
    path = download.fetch(good.as_uri())
    assert path.read_bytes() == content
    good.unlink()
    assert download.fetch(good.as_uri()) == path  # the second time nothing is fetched
    with pytest.raises(CheckpointError, match="damaged"):
        download.fetch(bad.as_uri())
    with pytest.raises(CheckpointError, match="cannot be fetched"):
        download.fetch((tmp_path / "w-11111111.pth").as_uri())
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_building_a_model_asks_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr("socket.socket.connect", refuse)
    small()


def test_no_weights_can_be_fetched_for_it() -> None:
    with pytest.raises(CheckpointError, match="no weights of this model can be fetched"):
        read_checkpoint("detr-tiny")


@pytest.mark.parametrize("preset", HUB_MODELS)
def test_successors_are_fetched_from_the_hub_by_their_presets_names(
    preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def fetched(name: str) -> Path:
        asked.append(name)
        return tmp_path

    small_one = {"num_classes": 3, "num_queries": 4, "encoder_layers": 1, "decoder_layers": 2, "dim_feedforward": 8}
    config = preset_config(preset, **small_one)
    checkpoint = Checkpoint(
        build_model(preset, **small_one).state_dict(), config, default_categories(3), Preprocessing()
    )
    write_folder(tmp_path, checkpoint)
    monkeypatch.setattr("detrkit.checkpoints.load._hub_snapshot", fetched)
    assert read_checkpoint(preset).config == config
    assert asked == [HUB_MODELS[preset]]


def test_official_files_of_ours_keep_heads_and_dilation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from detrkit.checkpoints.conversion.convert import convert_weights
    from detrkit.checkpoints.native import save_checkpoint

    model = small(num_heads=4, dilation=True)
    categories = Categories((5, 6, 9), ("a", "b", "c"))
    save_checkpoint(
        tmp_path / "a.safetensors",
        Checkpoint(model.state_dict(), model.config, categories, Preprocessing(image_size=300)),
    )
    assert convert_weights(str(tmp_path / "a.safetensors"), tmp_path / "plain.pth", "official") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "no category names" in said
    assert "300 px" in said
    read = read_checkpoint(tmp_path / "plain.pth").config
    assert (read.num_heads, read.dilation) == (4, True)
    torch.load(tmp_path / "plain.pth", weights_only=True)  # the published code's own reading


def test_a_grey_model_is_converted(tmp_path: Path) -> None:
    from detrkit.checkpoints.conversion.convert import convert_weights
    from detrkit.checkpoints.native import save_checkpoint

    model = build_model("detr-tiny", num_classes=3, num_queries=4, in_channels=1)
    save_checkpoint(
        tmp_path / "a.safetensors",
        Checkpoint(model.state_dict(), model.config, default_categories(3), Preprocessing()),
    )
    assert convert_weights(str(tmp_path / "a.safetensors"), tmp_path / "b.safetensors", "detrkit") == 0


@pytest.mark.parametrize(
    ("content", "size"),
    [
        ({"size": {"shortest_edge": 640, "longest_edge": 900}}, 640),
        ({"size": 480}, 480),
        ({"size": {"max_height": 480, "max_width": 500}}, 480),
        ({"size": {"height": 512, "width": 512}}, 512),
        ({"size": {}}, 800),
        ({}, 800),
    ],
    ids=str,
)
def test_photo_sizes_of_hugging_face(content: dict[str, object], size: int, tmp_path: Path) -> None:
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps(content))
    assert read_preprocessing(file).image_size == size
    file.write_text(json.dumps({"size": 480, **content, "image_mean": [0.5, 0.5, 0.5]}))
    with pytest.raises(CheckpointError, match="image_mean: found"):
        read_preprocessing(file)


def test_hugging_face_folders_keep_ids_names_and_photo_size(tmp_path: Path) -> None:
    categories = Categories((7, 9, 40), ("cell", "platelet", "crystal"))
    model = small()
    checkpoint = Checkpoint(model.state_dict(), model.config, categories, Preprocessing(image_size=256))
    write_folder(tmp_path / "folder", checkpoint)
    read = read_checkpoint(tmp_path / "folder")
    assert read.categories == categories
    assert read.preprocessing.image_size == 256
    dilated = small(dilation=True)
    with pytest.raises(CheckpointError, match="dilation"):
        write_folder(
            tmp_path / "other",
            Checkpoint(dilated.state_dict(), dilated.config, categories, Preprocessing()),
            native_backbone=True,
        )
    assert not (tmp_path / "other").exists()


def test_a_damaged_file_in_the_cache_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    (tmp_path / "hub" / "checkpoints" / "w-00000000.pth").write_bytes(b"half")
    with pytest.raises(CheckpointError, match="SHA-256"):
        download.fetch("https://nowhere.invalid/w-00000000.pth")


@pytest.mark.parametrize(
    ("name", "shape"),
    [("class_embed.weight", (4,)), ("query_embed.weight", ()), ("backbone.0.body.conv1.weight", (3,))],
)
def test_tensors_of_other_shapes_are_refused_in_one_sentence(tmp_path: Path, name: str, shape: tuple[int, ...]) -> None:
    weights = {**state_dict_as_official(small()), name: torch.zeros(shape)}
    torch.save({"model": weights}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"a\.pth: ") as refused:
        read_checkpoint(tmp_path / "a.pth")
    assert "\n" not in str(refused.value)


def test_what_holds_no_names_is_refused(tmp_path: Path) -> None:
    torch.save({0: torch.zeros(1)}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="expected those of a DETR"):
        read_checkpoint(tmp_path / "a.pth")


def test_settings_that_are_none_are_refused(tmp_path: Path) -> None:
    content = {"model": state_dict_as_official(small()), "args": argparse.Namespace(pe_temperatureH=None)}
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="its weights are not those of a DETR"):
        read_checkpoint(tmp_path / "a.pth")
