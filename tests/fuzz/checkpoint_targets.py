"""Targets: checkpoints of every format. Weights are zeros that are not part of an input, so that inputs stay small."""

import io
import json
import pickle
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from detrkit import build_model, state_dict_as_official
from detrkit.checkpoints.conversion.huggingface import write_huggingface_folder
from detrkit.checkpoints.files import read_training_state
from detrkit.checkpoints.load import load_checkpoint
from detrkit.checkpoints.native import Checkpoint, Preprocessing, Thresholds, checkpoint_from_header, save_checkpoint
from detrkit.config.model import ModelConfig
from detrkit.data.categories import Categories
from detrkit.data.dataset import unannotated
from detrkit.models.detr import DETR
from tests.fuzz.dataset_targets import write_files
from tests.fuzz.target import Target

TINY = {
    "num_classes": 2,
    "num_queries": 3,
    "hidden_dim": 8,
    "num_heads": 2,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "dim_feedforward": 8,
}
CATEGORIES = Categories((1, 7), ("cat", "dog"))
_STORAGE = 20_000  # floats that all tensors of a pickle are views of
_MAX_WEIGHTS = 2_000_000  # bytes


def tiny_model(preset: str = "detr-tiny", **overrides: Any) -> DETR:
    """Return a model with few weights."""
    return build_model(preset, **{**TINY, **overrides})


def tiny_checkpoint(model: DETR) -> Checkpoint:
    """Return a checkpoint with everything that a header can hold."""
    thresholds = Thresholds(overall=0.5, per_class={7: 0.25}, segments=0.1)
    return Checkpoint(model.state_dict(), model.config, CATEGORIES, Preprocessing(image_size=64), thresholds)


def use_checkpoint(checkpoint: Checkpoint, *, build: bool = True) -> None:
    """Do with a checkpoint what predicting with it does first."""
    if build:
        checkpoint.build()
    repr(checkpoint.preprocessing), checkpoint.preprocessing.describe()
    if checkpoint.thresholds is not None:
        checkpoint.thresholds.of(checkpoint.categories.ids)
    checkpoint.preprocessing.transform(3)(unannotated(torch.zeros(3, 24, 32, dtype=torch.uint8)))


# detrkit's own files: the input is the header


def _native_seeds(folder: Path, _nasty: Path | None) -> Iterable[Sequence[bytes]]:
    path = folder / "model.safetensors"
    save_checkpoint(path, tiny_checkpoint(tiny_model()))
    content = path.read_bytes()
    yield [content[8 : 8 + int.from_bytes(content[:8], "little")]]


def _size_of_tensors(header: bytes) -> int:
    """Return where the last tensor ends, as the file must end there; of a malformed header, any number."""
    try:
        ends = [entry["data_offsets"][1] for name, entry in json.loads(header).items() if name != "__metadata__"]
        return min(max(0, *ends), _MAX_WEIGHTS)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
        return 0


def _native_run(files: Sequence[bytes], folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(len(files[0]).to_bytes(8, "little") + files[0] + bytes(_size_of_tensors(files[0])))
    use_checkpoint(load_checkpoint(path))


# the description in the header alone, at a higher speed


def _description_seeds(folder: Path, _nasty: Path | None) -> Iterable[Sequence[bytes]]:
    for (header,) in _native_seeds(folder, None):
        yield [json.loads(header)["__metadata__"]["detrkit"].encode()]


def _description_run(files: Sequence[bytes], folder: Path) -> None:
    header = files[0].decode("utf-8", "replace")
    use_checkpoint(checkpoint_from_header({}, header, folder / "model.safetensors"), build=False)


# files of torch.save: the input is the pickle


def pickle_of(content: Any) -> bytes:
    """Return the pickle in a file of `torch.save`; all tensors become views of one storage of zeros."""
    buffer = io.BytesIO()
    torch.save(_viewed(content, torch.zeros(_STORAGE)), buffer)
    with zipfile.ZipFile(buffer) as archive:
        return archive.read(next(name for name in archive.namelist() if name.endswith("/data.pkl")))


def _viewed(content: Any, storage: Tensor) -> Any:
    if isinstance(content, Tensor):
        if content.numel() <= _STORAGE:
            return storage[: content.numel()].view(content.shape)
        return storage[: content.shape[0]].view(content.shape[0], *(1 for _ in content.shape[1:]))
    if isinstance(content, Mapping):
        return {name: _viewed(value, storage) for name, value in content.items()}
    return content


def torch_file(data: bytes) -> bytes:
    """Return a file of `torch.save` with a pickle, and storages of zeros."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/byteorder", "little")
        for number in range(3):
            archive.writestr(f"archive/data/{number}", bytes(4 * _STORAGE))
        archive.writestr("archive/version", "3\n")
    return buffer.getvalue()


def _pickle_seeds(_folder: Path, _nasty: Path | None) -> Iterable[Sequence[bytes]]:
    import argparse

    weights = state_dict_as_official(tiny_model("detr-r18"))
    yield [
        pickle_of(
            {"model": weights, "epoch": 3, "args": argparse.Namespace(lr=0.1, name="x"), "optimizer": {"state": {}}}
        )
    ]
    yield [pickle_of({f"module.{name}": tensor for name, tensor in weights.items()})]
    yield [
        pickle_of(
            {
                "ema": {"module": weights},
                "model": weights,
                "path": Path("x"),
                "size": torch.Size([1, 2]),
                "kind": torch.float16,
            }
        )
    ]
    yield [pickle.dumps({"a": [1, 2.5, None, True, "x", b"y", {1, 2}, (3, 4)]}, protocol=2)]


def _pickle_run(files: Sequence[bytes], folder: Path) -> None:
    path = folder / "model.pth"
    path.write_bytes(torch_file(files[0]))
    use_checkpoint(load_checkpoint(path))


# whole files of torch.save, of all of its formats


def _torch_seeds(_folder: Path, _nasty: Path | None) -> Iterable[Sequence[bytes]]:
    for zipped in (True, False):
        buffer = io.BytesIO()
        torch.save(
            {"a": torch.zeros(3), "b": {"c": torch.ones(2, dtype=torch.int64)}},
            buffer,
            _use_new_zipfile_serialization=zipped,
        )
        yield [buffer.getvalue()]
    yield [b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"]


def _torch_run(files: Sequence[bytes], folder: Path) -> None:
    path = folder / "model.pth"
    path.write_bytes(files[0])
    use_checkpoint(load_checkpoint(path))


# training states: the input is the pickle


def _state_seeds(_folder: Path, _nasty: Path | None) -> Iterable[Sequence[bytes]]:
    run = {
        "settings": {"lr": 0.1},
        "model": {},
        "categories": CATEGORIES.to_json(),
        "train": torch.zeros(3),
        "val": torch.zeros(2),
    }
    yield [
        pickle_of(
            {"format": 1, "num_batches": 3, "num_steps": 9, "run": run, "step": 2, "model": {"a": torch.zeros(3, 4)}}
        )
    ]


def _state_run(files: Sequence[bytes], folder: Path) -> None:
    path = folder / "state.pt"
    path.write_bytes(torch_file(files[0]))
    read_training_state(path)


# folders of Hugging Face


def _huggingface_files(folder: Path) -> tuple[bytes, bytes]:
    checkpoint = tiny_checkpoint(tiny_model("detr-r18"))
    write_huggingface_folder(folder / "written", checkpoint)
    config, preprocessor = (
        (folder / "written" / f"{name}.json").read_bytes() for name in ("config", "preprocessor_config")
    )
    return config, preprocessor


def _huggingface_seeds(folder: Path, _nasty: Path | None) -> Iterable[Sequence[bytes]]:
    config, preprocessor = _huggingface_files(folder)
    yield [config, preprocessor, b""]
    yield [
        config,
        b'{"do_resize": true, "size": 800, "max_size": 1333, "do_normalize": true, "image_mean": [0, 0, 0]}',
        b"",
    ]
    names = load_file(folder / "written" / "model.safetensors")
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(names, "model-00001-of-00001.safetensors")}
    yield [config, b"", json.dumps(index).encode()]


def _huggingface_prepare(folder: Path) -> None:
    """Write weights whose large tensors have another shape; shapes are compared after the descriptions were read."""
    _huggingface_files(folder)
    weights = load_file(folder / "written" / "model.safetensors")
    small = {
        name: one if one.numel() < 5000 else torch.zeros(one.shape[0], one.shape[1], *(1 for _ in one.shape[2:]))
        for name, one in weights.items()
    }
    (folder / "model").mkdir()
    save_file(small, folder / "model" / "model.safetensors", metadata={"format": "pt"})
    save_file(small, folder / "model" / "model-00001-of-00001.safetensors", metadata={"format": "pt"})
    (folder / "weights").write_bytes((folder / "model" / "model.safetensors").read_bytes())


def _huggingface_run(files: Sequence[bytes], folder: Path) -> None:
    names = ("model/config.json", "model/preprocessor_config.json", "model/model.safetensors.index.json")
    write_files(folder, dict(zip(names, files, strict=True)))
    write_files(folder, {"model/model.safetensors": b"" if files[2] else (folder / "weights").read_bytes()})
    use_checkpoint(load_checkpoint(folder / "model"), build=False)


# architectures alone


def _model_seeds(_folder: Path, _nasty: Path | None) -> Iterable[Sequence[bytes]]:
    for preset in ("detrkit-s", "detr-tiny", "deformable-detr-r50", "dab-detr-r50"):
        yield [json.dumps(build_config(preset)).encode()]


def build_config(preset: str) -> dict[str, Any]:
    """Return the fields of a preset."""
    from detrkit.models.presets import preset_config

    return dict(preset_config(preset).model_dump(mode="json"))


def _model_run(files: Sequence[bytes], _folder: Path) -> None:
    from pydantic import ValidationError

    from detrkit.errors import CheckpointError
    from detrkit.models.build import model_without_memory

    try:
        config = ModelConfig.model_validate_json(files[0])
    except (ValidationError, ValueError) as error:
        raise CheckpointError(f"model: {str(error).splitlines()[0]}") from None
    try:
        model_without_memory(config)
    except (RuntimeError, OverflowError) as error:  # as `Checkpoint.build`
        raise CheckpointError(f"model: {str(error).splitlines()[0]}") from None


TARGETS = (
    Target("native", ("header",), _native_run, _native_seeds, is_slow=True),
    Target("description", ("json",), _description_run, _description_seeds),
    Target("pickle", ("pickle",), _pickle_run, _pickle_seeds, is_slow=True),
    Target("torch", ("bytes",), _torch_run, _torch_seeds),
    Target("state", ("pickle",), _state_run, _state_seeds),
    Target(
        "huggingface",
        ("json", "json", "json"),
        _huggingface_run,
        _huggingface_seeds,
        _huggingface_prepare,
        is_slow=True,
    ),
    Target("model", ("json",), _model_run, _model_seeds, is_slow=True),
)
