"""Whatever `detrkit export` wrote -> its engine. The form is told by the path; what lies there is checked."""

from pathlib import Path

from detrkit.inference.exported import ExportedRuntime
from detrkit.inference.exported_onnx import read_onnx
from detrkit.inference.exported_openvino import DESCRIPTION_FILE, NETWORK_FILE, read_openvino
from detrkit.inference.exported_program import read_program


def is_exported(source: Path | str) -> bool:
    """Whether a source is an exported file or folder, going by its name and what lies in it."""
    path = Path(source)
    if path.is_dir():
        return (path / NETWORK_FILE).is_file() or (path / DESCRIPTION_FILE).is_file()
    return path.is_file() and path.suffix in (".onnx", ".pt2")


def load_exported(path: Path) -> ExportedRuntime:
    """Open it.

    Raises:
        ConfigError: the library that computes it is not installed.
        CheckpointError: it is damaged, or was not written by detrkit.
    """
    if path.is_dir():
        return read_openvino(path)
    return read_onnx(path) if path.suffix == ".onnx" else read_program(path)
