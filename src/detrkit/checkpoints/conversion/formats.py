"""Checkpoint formats that `detrkit.convert` writes. Light: imports no torch."""

from pathlib import Path
from typing import Literal, get_args

from detrkit.errors import ConfigError, arg, did_you_mean

CheckpointFormat = Literal["detrkit", "official", "huggingface", "huggingface-no-timm"]
_SUFFIX = {"detrkit": ".safetensors", "official": ".pth"}  # others are folders


def check_output(output: Path, format: str) -> None:
    """Check that a file or folder of this format can be written.

    Raises:
        ConfigError: the format is unknown, the suffix does not fit, or the output exists.
    """
    if format not in get_args(CheckpointFormat):
        raise ConfigError(
            f"{arg('to', format)} is not a checkpoint format; {did_you_mean(format, get_args(CheckpointFormat))}"
        )
    suffix = _SUFFIX.get(format)
    if suffix and output.suffix != suffix:
        raise ConfigError(f"{output}: expected a file ending in {suffix} for {arg('to', format)}; rename it")
    if output.exists() and (output.is_file() or any(output.iterdir())):
        raise ConfigError(f"{output}: exists already; choose another {arg('output')}, or remove it")
