"""Files of torch.save, read without executing anything."""

import argparse
from pathlib import Path
from typing import Any

import torch

from detrkit.errors import CheckpointError


def read_pickle(path: Path) -> dict[str, Any]:
    """Read the named entries of a file of torch.save; only tensors, plain values and an argparse namespace pass.

    Raises:
        CheckpointError: it is missing, damaged, holds anything else, or no state dict.
    """
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds on malformed and on forbidden content
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        if "pickle" in reason or reason.startswith("Weights only"):  # torch goes on about how to run what is in it
            reason = "it is no file of torch's, or holds more than tensors and plain values"
        raise CheckpointError(
            f"{path}: not readable as weights ({reason}); expected .safetensors, or a state dict saved by torch"
        ) from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: found a {type(content).__name__}, expected a state dict saved by torch")
    return {name: value for name, value in content.items() if isinstance(name, str)}
