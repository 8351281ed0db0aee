"""Everything that a run needs to go on, in one file, written atomically and read without executing anything."""

from pathlib import Path
from typing import Any

import torch

from detrkit._internal.files import atomic_write
from detrkit.errors import CheckpointError, ConfigError

FORMAT = 1


def write_state(path: Path, state: dict[str, Any]) -> None:
    """Write a state of tensors and plain values.

    Raises:
        ConfigError: the disk is full, or the folder cannot be written to; what was there before is still there.
    """
    try:
        with atomic_write(path) as temporary:
            torch.save({"format": FORMAT, **state}, temporary)
    except (OSError, RuntimeError) as error:  # torch's writer raises the latter when the disk is full
        reason = str(error).splitlines()[0]
        raise ConfigError(f"{path}: cannot be written ({reason}); make room and go on with --resume") from None


def read_state(path: Path) -> dict[str, Any]:
    """Read a state.

    Raises:
        CheckpointError: it is missing, damaged, or of another version.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds on malformed and on forbidden content
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise CheckpointError(f"{path}: not readable as the state of a run ({reason}); start the run again") from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(f"{path}: is not the state of a run of this version; start the run again")
    return state
