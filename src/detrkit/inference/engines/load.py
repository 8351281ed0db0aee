"""Whatever `detrkit export` wrote -> its engine. The form is told by the path; what lies there is checked."""

from pathlib import Path

from detrkit.inference.engines.exported import ExportedRuntime
from detrkit.inference.engines.onnx import read_onnx
from detrkit.inference.engines.openvino import read_openvino
from detrkit.inference.engines.program import read_program


def load_exported(path: Path) -> ExportedRuntime:
    """Open it.

    Raises:
        ConfigError: the library that computes it is not installed.
        CheckpointError: it is damaged, or was not written by detrkit.
    """
    if path.is_dir():
        return read_openvino(path)
    return read_onnx(path) if path.suffix == ".onnx" else read_program(path)
