"""ONNX files, run by ONNX Runtime."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from detrkit._internal.text import first_line
from detrkit.errors import CheckpointError, ConfigError, install_hint
from detrkit.inference.engines.exported import ExportedEngine
from detrkit.inference.engines.metadata import METADATA_KEY, ExportMetadata


class OnnxSession:
    """A session of ONNX Runtime."""

    def __init__(self, session: Any, source: object) -> None:
        self.session = session
        self.source = source
        self.output_names = [output.name for output in session.get_outputs()]

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run the network."""
        try:
            outputs = self.session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
        except Exception as error:  # onnxruntime's errors have no common base class
            raise CheckpointError(f"{self.source}: ONNX Runtime cannot run it ({first_line(error)})") from None
        return {name: torch.from_numpy(array) for name, array in zip(self.output_names, outputs, strict=True)}


def read_onnx(path: Path) -> ExportedEngine:
    """Open an exported ONNX file; only its graph is executed.

    Raises:
        ConfigError: onnxruntime is not installed.
        CheckpointError: the file is damaged, or was not written by detrkit.
    """
    try:
        import onnxruntime
    except ImportError:
        raise ConfigError(f"{path}: needs onnxruntime; {install_hint('detrkit[export]')}") from None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors are reported by our exception alone
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        # its fallback to the same provider prints to stdout
        session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"], enable_fallback=False
        )
        text = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
        names = tuple(one.name for one in session.get_inputs())
    except Exception as error:  # as above; and text that is not UTF-8
        raise CheckpointError(f"{path}: not readable as ONNX ({first_line(error)}); export it again") from None
    metadata = ExportMetadata.from_text(text, path)
    if names != metadata.input_names:
        raise CheckpointError(f"{path}: found inputs {names}, expected {metadata.input_names}; export it again")
    return ExportedEngine(OnnxSession(session, path), metadata, path)
