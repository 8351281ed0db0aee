"""Open an exported file with the engine of its format."""

from pathlib import Path

import torch

from detrkit.checkpoints.export_formats import export_format_of, is_exported
from detrkit.distributed.devices import choose_device
from detrkit.errors import CheckpointError
from detrkit.inference.engines.exported import ExportedEngine


def load_exported(path: Path) -> ExportedEngine:
    """Open a file or folder written by `detrkit.export`; its format is known by its path, its content is checked.

    Raises:
        ConfigError: the library that runs it is not installed.
        CheckpointError: it is damaged, or was not written by detrkit.
    """
    format = export_format_of(path)
    if format is None:
        raise CheckpointError(f"{path}: holds no exported network; export it again")
    engine = format.read(path)
    assert isinstance(engine, ExportedEngine)
    return engine


def choose_inference_device(source: Path | str, name: str) -> torch.device:
    """Return the device to run a model on; ``"auto"`` is the CPU for exported files, which run nowhere else.

    Raises:
        ConfigError: this machine has no such device.
    """
    return choose_device("cpu" if name == "auto" and is_exported(source) else name)
