"""Training checkpoints as found: wrappers' prefixes, containers, averages, split weights, Trainer folders."""

import json
import logging
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from detrkit import load_official_state_dict, state_dict_as_official
from detrkit.checkpoints.backbones import load_backbone_file
from detrkit.checkpoints.containers import find_weights, tensors_of
from detrkit.checkpoints.conversion.huggingface import write_huggingface_folder
from detrkit.checkpoints.load import load_checkpoint
from detrkit.checkpoints.sources import local_file
from detrkit.cli import main
from detrkit.errors import CheckpointError, ConfigError
from tests.checkpoints.models import CATEGORIES, checkpoint_of, small_model

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def state() -> State:
    return state_dict_as_official(small_model(decoder_layers=1))


@pytest.fixture(scope="module")
def average(state: State) -> State:
    return {name: tensor + 1 if tensor.is_floating_point() else tensor for name, tensor in state.items()}


def named(state: State, prefix: str) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def saved(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


def is_loaded(path: Path, expected: State, key: str | None = None) -> bool:
    checkpoint = load_checkpoint(path, state_dict_key=key)
    return torch.equal(checkpoint.state["backbone.body.conv1.weight"], expected["backbone.0.body.conv1.weight"])


@pytest.mark.parametrize(
    "prefix",
    [
        *("module.", "_orig_mod.", "model.", "net.", "module._orig_mod.", "_orig_mod.module.", "model.module."),
        *("module.model.", "model._orig_mod.", "ema_model.", "student.", "_forward_module.model.", "detr."),
        "_fsdp_wrapped_module.detector.net.",
    ],
)
def test_prefix_of_a_wrapper_is_removed_and_noted(prefix: str, state: State, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(saved(tmp_path / "a.pth", {"model": named(state, prefix), "epoch": 3}))
    assert checkpoint.config.num_queries == 5
    assert all(f"{part}." in checkpoint.notes[-1] for part in prefix.rstrip(".").split("."))


def test_compiled_parts_inside_of_a_model_are_recognised(state: State, tmp_path: Path) -> None:
    compiled = {name.replace("transformer.", "transformer._orig_mod."): tensor for name, tensor in state.items()}
    assert is_loaded(saved(tmp_path / "a.pth", {"model": compiled}), state)


@pytest.mark.parametrize(
    "place",
    [
        *(
            "model",
            "state_dict",
            "model_state_dict",
            "weights",
            "net",
            "network",
            "ema_model",
            "model_ema",
            "my own name",
        ),
        *("ema.module", "ema.state_dict", "checkpoint.model.module", "state.ema.shadow"),
    ],
)
def test_weights_are_found_in_any_container(place: str, state: State, tmp_path: Path) -> None:
    content: dict[str, Any] = OrderedDict(state)
    for name in reversed(place.split(".")):
        content = {
            name: content,
            "epoch": 3,
            "optimizer": {"state": {0: {"step": torch.tensor(1)}}, "param_groups": []},
        }
    assert is_loaded(saved(tmp_path / "a.pth", content), state)


@pytest.mark.parametrize(
    ("place", "key"),
    [("ema_model", "model"), ("ema.module", "model"), ("model_ema", "model"), ("state_dict_ema", "model")],
)
def test_moving_average_is_preferred_and_the_other_can_be_chosen(
    place: str, key: str, state: State, average: State, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content: dict[str, Any] = average
    for name in reversed(place.split(".")):
        content = {name: content}
    path = saved(tmp_path / "a.pth", {key: state, **content})
    with caplog.at_level(logging.WARNING):
        assert is_loaded(path, average)
    assert f"'{place}', the moving average, is used, and state_dict_key='{key}' chooses the other" in caplog.text
    assert is_loaded(path, state, key)
    assert is_loaded(path, average, place)
    assert is_loaded(path, average, place.split(".")[0])


def test_models_in_one_state_dict_are_told_apart_by_their_prefix(state: State, average: State, tmp_path: Path) -> None:
    together = {
        "state_dict": named(state, "model.") | named(average, "ema_model.") | {"criterion.weight": torch.ones(3)}
    }
    path = saved(tmp_path / "lightning.ckpt", together)
    assert is_loaded(path, average)
    assert is_loaded(path, state, "state_dict.model")
    assert is_loaded(path, state, "model")
    of_ema_pytorch = named(state, "online_model.") | named(average, "ema_model.") | {"initted": torch.tensor(True)}
    assert is_loaded(saved(tmp_path / "b.pt", of_ema_pytorch), average)


def test_average_of_torch_is_read(tmp_path: Path) -> None:
    model = nn.Module()
    model.weight = nn.Parameter(torch.ones(1))
    counters = set(torch.optim.swa_utils.AveragedModel(model).state_dict()) - {"module.weight"}
    official = state_dict_as_official(small_model())
    content = {**named(official, "module."), **{name: torch.tensor(2) for name in counters}}
    assert is_loaded(saved(tmp_path / "a.pth", {"model": content}), official)


def test_average_of_the_parameters_alone_is_not_used(state: State, average: State, tmp_path: Path) -> None:
    parameters = {name: tensor for name, tensor in average.items() if "running" not in name}
    assert is_loaded(saved(tmp_path / "a.pth", {"model": state, "ema": parameters}), state)


def test_student_and_teacher_have_to_be_chosen_from(state: State, average: State, tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pth", {"student": state, "teacher": average})
    with pytest.raises(
        CheckpointError, match="weights of 2 models, 'student' and 'teacher'; choose one with state_dict_key"
    ):
        load_checkpoint(path)
    assert is_loaded(path, average, "teacher")


def test_key_without_weights_is_rejected_with_the_choices(state: State, tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pth", {"model": state, "epoch": 3})
    with pytest.raises(
        CheckpointError, match="state_dict_key='ema' names no weights of a detector; choose one of 'model'"
    ):
        load_checkpoint(path, state_dict_key="ema")
    save_file(state, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="names no weights"):
        load_checkpoint(tmp_path / "a.safetensors", state_dict_key="ema")


def test_container_deeper_than_is_searched_is_reached_by_its_name(state: State, tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pth", {"a": {"b": {"c": {"d": {"e": state}}}}})
    with pytest.raises(CheckpointError, match=r"found the entries 'a', expected those of a DETR .*state_dict_key"):
        load_checkpoint(path)
    assert is_loaded(path, state, "a.b.c.d.e")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "holds no named weights, expected those of a DETR"),
        (
            {"epoch": 3, "network": {"fc.weight": torch.ones(1)}},
            r"'epoch', 'network', names such as 'fc\.weight' in 'network'",
        ),
        ({str(number): number for number in range(20)}, r"'8', '9' and 10 more, expected"),
        ({"model": {}}, "found the entries 'model', expected"),
    ],
)
def test_unknown_content_is_described(content: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message) as error:
        load_checkpoint(saved(tmp_path / "a.pth", content))
    assert "\n" not in str(error.value)


def test_model_with_masks_keeps_the_prefix_of_its_box_model(tmp_path: Path) -> None:
    official = state_dict_as_official(small_model(mask_head=True))
    for prefix in ("", "module.", "model._orig_mod."):
        found = find_weights({"model": named(official, prefix)})
        assert [one.tensors.keys() for one in found] == [official.keys()]


def test_wrapped_state_dict_is_loaded_into_a_model(state: State) -> None:
    report = load_official_state_dict(small_model(decoder_layers=1), {"state_dict": named(state, "model.module.")})
    assert "query_source.weight" in report.loaded


def test_wrapped_backbone_is_loaded(tmp_path: Path) -> None:
    source, model = small_model(), small_model()
    with torch.no_grad():
        source.backbone.body.conv1.weight.add_(1)
    state = source.backbone.body.state_dict()
    load_backbone_file(model, saved(tmp_path / "a.pth", {"state_dict": named(state, "module."), "epoch": 3}))
    assert torch.equal(model.backbone.body.conv1.weight, source.backbone.body.conv1.weight)
    assert tensors_of({}) == {}


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """A folder of Hugging Face whose weights are in two files."""
    write_huggingface_folder(tmp_path, checkpoint_of(small_model(), CATEGORIES))
    whole = tmp_path / "model.safetensors"
    from safetensors.torch import load_file

    tensors = load_file(whole)
    whole.unlink()
    names = sorted(tensors)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, own in parts.items():
        save_file({name: tensors[name] for name in own}, tmp_path / file)
        torch.save({name: tensors[name] for name in own}, tmp_path / file.replace("safetensors", "bin"))
    weight_map = {name: file for file, own in parts.items() for name in own}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return tmp_path


def test_weights_in_several_files_are_joined(sharded: Path) -> None:
    checkpoint = load_checkpoint(sharded)
    assert checkpoint.categories.names == CATEGORIES.names
    expected = small_model().state_dict()
    assert all(torch.equal(checkpoint.state[name], tensor) for name, tensor in expected.items())
    index = sharded / "model.safetensors.index.json"
    text = index.read_text().replace(".safetensors", ".bin")
    index.unlink()
    (sharded / "pytorch_model.bin.index.json").write_text(text)
    assert load_checkpoint(sharded).state.keys() == expected.keys()


@pytest.mark.parametrize(
    "file", ["../a.safetensors", "/etc/a.safetensors", "sub/a.safetensors", "..\\a.safetensors", ".."]
)
def test_index_cannot_name_files_elsewhere(file: str, sharded: Path) -> None:
    index = sharded / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": file}}))
    with pytest.raises(CheckpointError, match="expected one in the same folder"):
        load_checkpoint(index)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": 3}'])
def test_malformed_index_is_rejected(text: str, sharded: Path) -> None:
    (sharded / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CheckpointError, match="not readable as an index of weights"):
        load_checkpoint(sharded)


def test_missing_part_is_named(sharded: Path) -> None:
    (sharded / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model-00002-of-00002\.safetensors: no such file"):
        load_checkpoint(sharded)
    save_file({"other": torch.ones(1)}, sharded / "model-00002-of-00002.safetensors")
    with pytest.raises(CheckpointError, match="has no entry"):
        load_checkpoint(sharded)


def test_pointer_of_git_lfs_is_recognised(tmp_path: Path) -> None:
    for name in ("model.safetensors", "a.pth"):
        (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
        with pytest.raises(CheckpointError, match="git lfs pull"):
            load_checkpoint(tmp_path / name)


@pytest.fixture
def trainer_output(tmp_path: Path) -> Path:
    """An output folder of the Hugging Face Trainer, with checkpoints only and their common files next to them."""
    for step in (9, 20, 100):
        folder = tmp_path / f"checkpoint-{step}"
        write_huggingface_folder(folder, checkpoint_of(small_model(num_queries=step), CATEGORIES))
        (folder / "preprocessor_config.json").unlink()
        (folder / "training_args.bin").write_bytes(b"")
    (tmp_path / "checkpoint-200").mkdir()  # interrupted while it was written
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"size": 96}))
    return tmp_path


def test_newest_or_best_checkpoint_of_a_trainer_folder_is_used(trainer_output: Path) -> None:
    checkpoint = load_checkpoint(trainer_output)
    assert (checkpoint.config.num_queries, checkpoint.preprocessing.image_size) == (100, 96)
    assert checkpoint.notes[0].endswith("the newest, checkpoint-100, is used")
    for best in ("/home/me/out/checkpoint-20", "C:\\out\\checkpoint-20"):
        state = {"best_model_checkpoint": best, "global_step": 100}
        (trainer_output / "checkpoint-100" / "trainer_state.json").write_text(json.dumps(state))
        checkpoint = load_checkpoint(trainer_output)
        assert checkpoint.config.num_queries == 20
        assert checkpoint.notes[0].endswith("the best, checkpoint-20, is used")
    state["best_model_checkpoint"] = "/gone/checkpoint-50"
    (trainer_output / "checkpoint-100" / "trainer_state.json").write_text(json.dumps(state))
    assert load_checkpoint(trainer_output).config.num_queries == 100


def test_final_model_of_a_trainer_folder_wins(trainer_output: Path) -> None:
    write_huggingface_folder(trainer_output, checkpoint_of(small_model(num_queries=7), CATEGORIES))
    checkpoint = load_checkpoint(trainer_output)
    assert (checkpoint.config.num_queries, checkpoint.notes) == (7, ())
    assert local_file(trainer_output) == trainer_output / "model.safetensors"


def test_folder_with_another_weights_file_names_it(tmp_path: Path) -> None:
    (tmp_path / "checkpoint0099.pth").touch()
    with pytest.raises(CheckpointError, match=r"it contains checkpoint0099\.pth, which can be given itself"):
        load_checkpoint(tmp_path)


def test_command_line_says_and_chooses(
    state: State, average: State, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = saved(tmp_path / "a.pth", {"model": state, "ema_model": average})
    for key, arguments in (("ema_model", ()), ("model", ("--state-dict-key", "model"))):
        with pytest.raises(SystemExit) as exit:
            main(["convert", str(path), str(tmp_path / f"{key}.safetensors"), "--to", "detrkit", *arguments])
        assert not exit.value.code
        error = capsys.readouterr().err
        assert error.count("--state-dict-key model chooses the other") == (key == "ema_model")
    assert is_loaded(tmp_path / "model.safetensors", state)
    with pytest.raises(CheckpointError, match="holds one model; omit state_dict_key"):
        load_checkpoint(tmp_path / "model.safetensors", state_dict_key="model")


def test_exported_file_takes_no_model(tmp_path: Path) -> None:
    from detrkit import Detector

    (tmp_path / "a.onnx").touch()
    with pytest.raises(ConfigError, match="omit state_dict_key"):
        Detector.load(tmp_path / "a.onnx", state_dict_key="a")
