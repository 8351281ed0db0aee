"""Weights files and training states: read without executing anything, written atomically."""

import json
from collections.abc import Sequence
from pathlib import Path, PureWindowsPath
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from detrkit._internal.files import atomic_write
from detrkit._internal.text import first_line
from detrkit.checkpoints.safe_load import load_torch_file
from detrkit.errors import CheckpointError, ConfigError, short

_STATE_FORMAT = 1
_LFS = b"version https://git-lfs"
HEADER_KEY = "detrkit"  # of detrkit's JSON document in the metadata of a safetensors file


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], str | None]:
    """Read a safetensors file.

    Returns:
        The tensors, and detrkit's JSON document if the file holds one.

    Raises:
        CheckpointError: the file is missing or malformed.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file, expected a .safetensors file; check the path")
    try:
        _check_not_lfs_pointer(path)
        with safe_open(path, framework="pt") as opened:
            metadata = opened.metadata() or {}
            return {name: opened.get_tensor(name) for name in opened.keys()}, metadata.get(HEADER_KEY)  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not readable as safetensors ({error}); is the file complete?") from None


def read_sharded(index: Path) -> dict[str, Tensor]:
    """Read weights that are split over several files, as Hugging Face writes large models.

    Args:
        index: ``model.safetensors.index.json`` or ``pytorch_model.bin.index.json``; the files are next to it.

    Raises:
        CheckpointError: the index is malformed, a file is missing or damaged, or it lacks an entry.
    """
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = {str(name): str(file) for name, file in weight_map.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = first_line(error) if isinstance(error, OSError | ValueError) else "it has no 'weight_map'"
        raise CheckpointError(
            f"{index}: not readable as an index of weights ({reason}); get the folder again"
        ) from None
    tensors: dict[str, Tensor] = {}
    for file in sorted(set(files.values())):
        tensors |= _read_shard(index, file, [name for name, place in files.items() if place == file])
    return tensors


def _read_shard(index: Path, file: str, names: Sequence[str]) -> dict[str, Tensor]:
    path = index.parent / file
    if file in ("", ".", "..") or Path(file).name != file or PureWindowsPath(file).name != file:
        raise CheckpointError(f"{index}: names the file {short(file)}, expected one in the same folder")
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file, but {index.name} names it; get the whole folder")
    content = read_safetensors(path)[0] if path.suffix == ".safetensors" else read_torch_file(path)
    missing = next((name for name in names if not isinstance(content.get(name), Tensor)), None)
    if missing is not None:
        raise CheckpointError(f"{path}: has no entry {missing!r}, which {index.name} names; get the folder again")
    return {name: content[name] for name in names}


def _check_not_lfs_pointer(path: Path) -> None:
    """Check that a file is not the pointer that git keeps instead of a large file.

    Raises:
        CheckpointError: it is.
    """
    with path.open("rb") as file:
        if file.read(len(_LFS)) == _LFS:
            raise CheckpointError(f"{path}: is a pointer of Git LFS, not the weights; fetch them with: git lfs pull")


def is_native_file(path: Path) -> bool:
    """Return whether a file was written by detrkit; only its header is read."""
    try:
        with safe_open(path, framework="pt") as opened:
            return HEADER_KEY in (opened.metadata() or {})
    except (SafetensorError, OSError):
        return False


def read_torch_file(path: Path) -> dict[str, Any]:
    """Read a file of `torch.save` without executing anything; see `safe_load`.

    Returns:
        The entries whose names are strings.

    Raises:
        CheckpointError: the file is missing or damaged, holds a type that is not read, or is not a dict.
    """
    if path.is_file():
        _check_not_lfs_pointer(path)
    content = load_torch_file(path)
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, expected a state dict saved by torch")
    return {name: value for name, value in content.items() if isinstance(name, str)}


def write_training_state(path: Path, state: dict[str, Any]) -> None:
    """Write everything that a run needs to be resumed: tensors and plain values.

    Raises:
        ConfigError: the disk is full, or the folder cannot be written to; the previous file is kept.
    """
    with atomic_write(path) as temporary:
        try:
            torch.save({"format": _STATE_FORMAT, **state}, temporary)
        except (OSError, RuntimeError) as error:  # torch's writer raises RuntimeError when the disk is full
            reason = first_line(error)
            raise ConfigError(f"{path}: cannot be written ({reason}); make room, then resume the run") from None


def read_training_state(path: Path) -> dict[str, Any]:
    """Read a training state.

    Raises:
        CheckpointError: it is missing, damaged, or of another version.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for malformed and for forbidden content
        raise CheckpointError(
            f"{path}: not readable as a training state ({first_line(error)}); start the run again"
        ) from None
    if not isinstance(state, dict) or state.get("format") != _STATE_FORMAT:
        raise CheckpointError(f"{path}: not a training state of this version; start the run again")
    return state
