"""Weights files and training states: read without executing anything, written atomically."""

import argparse
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from detrkit._internal.files import atomic_write
from detrkit.errors import CheckpointError, ConfigError

_STATE_FORMAT = 1
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
        with safe_open(path, framework="pt") as opened:
            metadata = opened.metadata() or {}
            return {name: opened.get_tensor(name) for name in opened.keys()}, metadata.get(HEADER_KEY)  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not readable as safetensors ({error}); is the file complete?") from None


def is_native_file(path: Path) -> bool:
    """Return whether a file was written by detrkit; only its header is read."""
    try:
        with safe_open(path, framework="pt") as opened:
            return HEADER_KEY in (opened.metadata() or {})
    except (SafetensorError, OSError):
        return False


def read_torch_file(path: Path) -> dict[str, Any]:
    """Read a file of `torch.save`; only tensors, plain values and an `argparse.Namespace` are accepted.

    Returns:
        The entries whose names are strings.

    Raises:
        CheckpointError: the file is missing or damaged, holds anything else, or is not a dict.
    """
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for malformed and for forbidden content
        reason = _first_line(error)
        if "pickle" in reason or reason.startswith("Weights only"):  # torch's text advises to execute the content
            reason = "not written by torch.save, or more than tensors and plain values in it"
        raise CheckpointError(
            f"{path}: not readable as weights ({reason}); expected .safetensors, or a state dict saved by torch"
        ) from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, expected a state dict saved by torch")
    return {name: value for name, value in content.items() if isinstance(name, str)}


def write_training_state(path: Path, state: dict[str, Any]) -> None:
    """Write everything that a run needs to be resumed: tensors and plain values.

    Raises:
        ConfigError: the disk is full, or the folder cannot be written to; the previous file is kept.
    """
    try:
        with atomic_write(path) as temporary:
            torch.save({"format": _STATE_FORMAT, **state}, temporary)
    except (OSError, RuntimeError) as error:  # torch's writer raises RuntimeError when the disk is full
        raise ConfigError(f"{path}: cannot be written ({_first_line(error)}); make room, then resume the run") from None


def read_training_state(path: Path) -> dict[str, Any]:
    """Read a training state.

    Raises:
        CheckpointError: it is missing, damaged, or of another version.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for malformed and for forbidden content
        raise CheckpointError(
            f"{path}: not readable as a training state ({_first_line(error)}); start the run again"
        ) from None
    if not isinstance(state, dict) or state.get("format") != _STATE_FORMAT:
        raise CheckpointError(f"{path}: not a training state of this version; start the run again")
    return state


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:120] if str(error) else type(error).__name__
