"""Open an exported file with the engine of its format."""

from pathlib import Path

import torch

from detrkit.checkpoints.exported import is_exported
from detrkit.distributed.devices import choose_device
from detrkit.inference.engines.exported import ExportedEngine
from detrkit.inference.engines.onnx import read_onnx
from detrkit.inference.engines.openvino import read_openvino
from detrkit.inference.engines.program import read_program


def load_exported(path: Path) -> ExportedEngine:
    """Open a file or folder written by `detrkit.export`; its format is known by its path, its content is checked.

    Raises:
        ConfigError: the library that runs it is not installed.
        CheckpointError: it is damaged, or was not written by detrkit.
    """
    if path.is_dir():
        return read_openvino(path)
    return read_onnx(path) if path.suffix == ".onnx" else read_program(path)


def choose_inference_device(source: Path | str, name: str) -> torch.device:
    """Return the device to run a model on; ``"auto"`` is the CPU for exported files, which run nowhere else.

    Raises:
        ConfigError: this machine has no such device.
    """
    return choose_device("cpu" if name == "auto" and is_exported(source) else name)
