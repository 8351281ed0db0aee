"""Weights files and training states: read without executing anything, written atomically."""

from collections.abc import Sequence
from pathlib import Path, PureWindowsPath
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from detrkit._internal.files import atomic_write, is_file, open_file
from detrkit._internal.text import first_line
from detrkit.checkpoints.json_files import MAX_JSON, read_json
from detrkit.checkpoints.pickle_check import MAX_TENSORS
from detrkit.checkpoints.safe_load import load_torch_file
from detrkit.checkpoints.tensor_budget import check_content, check_names
from detrkit.errors import CheckpointError, ConfigError, short

_STATE_FORMAT = 1
_MAX_SHARDS = 1000
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
        _check_header(path)
        with safe_open(path, framework="pt") as opened:
            names = list(opened.keys())
            if len(names) > MAX_TENSORS:
                raise CheckpointError(f"{path}: holds {len(names):,} tensors, expected at most {MAX_TENSORS:,}")
            check_names(names, path)
            metadata = opened.metadata() or {}
            return {name: opened.get_tensor(name) for name in names}, metadata.get(HEADER_KEY)
    # torch's errors for lengths of more than 63 bits
    except (SafetensorError, OSError, RuntimeError, ValueError, TypeError, OverflowError) as error:
        raise CheckpointError(
            f"{path}: not readable as safetensors ({first_line(error)}); is the file complete?"
        ) from None


def _check_header(path: Path) -> None:
    """Check the length of the header, which is parsed as a whole.

    Raises:
        CheckpointError: it is longer than `MAX_JSON`.
    """
    with open_file(path) as file:
        length = int.from_bytes(file.read(8), "little")
    if MAX_JSON < length < path.stat().st_size:
        raise CheckpointError(f"{path}: has a header of {length:,} bytes, expected at most {MAX_JSON:,}")


def read_sharded(index: Path) -> dict[str, Tensor]:
    """Read weights that are split over several files, as Hugging Face writes large models.

    Args:
        index: ``model.safetensors.index.json`` or ``pytorch_model.bin.index.json``; the files are next to it.

    Raises:
        CheckpointError: the index is malformed, a file is missing or damaged, or it lacks an entry.
    """
    weight_map = read_json(index, "an index of weights").get("weight_map")
    if not isinstance(weight_map, dict):
        raise CheckpointError(
            f"{index}: not readable as an index of weights (it has no 'weight_map'); get the folder again"
        )
    names_in: dict[str, list[str]] = {}
    for name, file in weight_map.items():
        names_in.setdefault(str(file), []).append(name)
    if len(names_in) > _MAX_SHARDS or len(weight_map) > MAX_TENSORS:
        raise CheckpointError(
            f"{index}: names {len(weight_map):,} tensors in {len(names_in):,} files, expected at most {MAX_TENSORS:,} in "
            f"{_MAX_SHARDS:,}"
        )
    tensors: dict[str, Tensor] = {}
    sizes: dict[Path, int] = {}
    for file, names in sorted(names_in.items()):
        path = _shard_path(index, file)
        sizes[path.resolve()] = path.stat().st_size
        tensors |= _read_shard(path, index, names)
    check_content(tensors, sum(sizes.values()), index)
    return tensors


def _shard_path(index: Path, file: str) -> Path:
    """Return the path of a file that an index names, which has to be in the same folder, or in the cache of the hub."""
    if file in ("", ".", "..") or Path(file).name != file or PureWindowsPath(file).name != file:
        raise CheckpointError(f"{index}: names the file {short(file)}, expected one in the same folder")
    path = index.parent / file
    if not is_file(path):
        raise CheckpointError(f"{path}: no such file, but {index.name} names it; get the whole folder")
    folder = index.parent.resolve()
    # a snapshot of the hub's cache holds links to ../../blobs
    places = (folder, folder.parent.parent / "blobs") if folder.parent.name == "snapshots" else (folder,)
    if path.resolve().parent not in places:
        raise CheckpointError(f"{path}: is a link to a file outside of its folder; copy the file there")
    return path


def _read_shard(path: Path, index: Path, names: Sequence[str]) -> dict[str, Tensor]:
    content = read_safetensors(path)[0] if path.suffix == ".safetensors" else read_torch_file(path)
    missing = next((name for name in names if not isinstance(content.get(name), Tensor)), None)
    if missing is not None:
        raise CheckpointError(f"{path}: has no entry {short(missing)}, which {index.name} names; get the folder again")
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
        state = load_torch_file(path)
    except CheckpointError as error:
        reason = error.message.removeprefix(f"{path}: ").partition(";")[0]  # without its own advice
        raise CheckpointError(f"{path}: not readable as a training state ({reason}); start the run again") from None
    version = state.get("format") if isinstance(state, dict) else None
    if not isinstance(version, int) or version != _STATE_FORMAT:  # tensors are compared element by element
        raise CheckpointError(f"{path}: not a training state of this version; start the run again")
    return state
