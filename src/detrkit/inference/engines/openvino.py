"""Folders with an OpenVINO network, computed on the CPU in the precision that they were made for.

A size of photo that comes a second time gets a network compiled for it alone: all about padding is then known and
folds away, which makes an int8 network a seventh faster.
"""

import importlib
import sys
import threading
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from detrkit.checkpoints.exported import METADATA_FILE, NETWORK_FILE
from detrkit.errors import CheckpointError, ConfigError
from detrkit.inference.engines.exported import ExportedEngine, ExportMetadata, ExportPrecision
from detrkit.inference.engines.onnx import first_line

WEIGHTS_FILE = "model.bin"
_MAX_SIZES = 2  # with a network of their own, each of which holds the weights once more
_HINTS: dict[ExportPrecision, str] = {"float32": "f32", "bfloat16": "bf16", "int8": "bf16"}


class OpenVinoSession:
    """A network for photos of any size, and some for one size each, without padding."""

    def __init__(self, core: Any, network: Any, precision: ExportPrecision, source: object) -> None:
        self.core = core
        self.network = network
        self.source = source
        self.settings = {
            "INFERENCE_PRECISION_HINT": hint_of(precision, core),
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        }
        self.output_names = [output.get_any_name() for output in network.outputs]
        self._any_size = core.compile_model(network, "CPU", self.settings).create_infer_request()
        self._one_at_a_time = threading.Lock()
        self._of_size: dict[tuple[int, ...], Any] = {}
        self._seen: Counter[tuple[int, ...]] = Counter()

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Compute once."""
        try:
            with self._one_at_a_time:
                return self._infer({name: tensor.numpy() for name, tensor in inputs.items()})
        except RuntimeError as error:
            raise CheckpointError(f"{self.source}: OpenVINO cannot compute it ({first_line(error)})") from None

    def _infer(self, given: dict[str, Any]) -> dict[str, Tensor]:
        request = self._any_size
        if not given["padding_mask"].any():
            request = self._request_for(given["images"].shape) or request
            if request is not self._any_size:
                del given["padding_mask"]
        results = request.infer(given, share_inputs=True)
        # copies: the next photo overwrites the results
        return {name: torch.from_numpy(np.array(results[index])) for index, name in enumerate(self.output_names)}

    def _request_for(self, shape: tuple[int, ...]) -> Any | None:
        """The network compiled for a size, once that size has come before."""
        if shape in self._of_size:
            return self._of_size[shape]
        self._seen[shape] += 1
        if self._seen[shape] < 2 or len(self._of_size) >= _MAX_SIZES:
            return None
        network = without_padding(self.network, shape)
        self._of_size[shape] = self.core.compile_model(network, "CPU", self.settings).create_infer_request()
        return self._of_size[shape]


def without_padding(network: Any, shape: tuple[int, ...]) -> Any:
    """A network for images of one shape, (B, C, H, W), none of which is padded."""
    operations = load_openvino().opset13
    fixed = network.clone()
    batch, _, height, width = shape
    for node in fixed.get_ops():
        if node.get_type_name() == "ScaledDotProductAttention":
            # a mask that lets everything pass comes out wrong in bfloat16 (OpenVINO 2026.4)
            query, key, value = (node.input_value(index) for index in range(3))
            free = operations.scaled_dot_product_attention(query, key, value)
            for reader in node.output(0).get_target_inputs():
                reader.replace_source_output(free.output(0))
    mask = fixed.input("padding_mask").get_node()
    nothing = operations.constant(np.zeros((batch, height, width), dtype=bool))
    for reader in mask.output(0).get_target_inputs():
        reader.replace_source_output(nothing.output(0))
    fixed.remove_parameter(mask)
    shapes = {"images": list(shape), "sizes": [batch, 2]}
    names = [parameter.get_any_name() for parameter in fixed.inputs]
    fixed.reshape({name: shapes[name] for name in names})
    return fixed


def load_openvino() -> Any:
    """Import openvino, without the package by which it and nncf tell their makers of every use.

    Raises:
        ConfigError: it is not installed.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # as if it were not installed
    try:
        return importlib.import_module("openvino")
    except ImportError:
        raise ConfigError("openvino is not installed; pip install 'detrkit[openvino]'") from None


def hint_of(precision: ExportPrecision, core: Any) -> str:
    """The precision to compute in; float32 where the processor has no bfloat16."""
    can = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return "f32" if "BF16" not in can else _HINTS[precision]


def read_openvino(folder: Path) -> ExportedEngine:
    """Open a folder with an exported OpenVINO network. Nothing in it is executed but its graph.

    Raises:
        ConfigError: openvino is not installed.
        CheckpointError: a file is missing or damaged, or was not written by detrkit.
    """
    core = load_openvino().Core()
    try:
        text = (folder / METADATA_FILE).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"{folder / METADATA_FILE}: not readable ({first_line(error)}); export it again"
        ) from None
    metadata = ExportMetadata.from_text(text, folder / METADATA_FILE)
    for name in (NETWORK_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder / name}: found nothing, expected a part of the network; export it again")
    try:
        network = core.read_model(folder / NETWORK_FILE, folder / WEIGHTS_FILE)
        names = tuple(parameter.get_any_name() for parameter in network.inputs)
        if sorted(names) != sorted(metadata.input_names):
            raise CheckpointError(f"{folder}: found inputs {names}, expected {metadata.input_names}; export it again")
        session = OpenVinoSession(core, network, metadata.precision, folder)
    except RuntimeError as error:
        raise CheckpointError(f"{folder}: not readable as OpenVINO ({first_line(error)}); export it again") from None
    return ExportedEngine(session, metadata, folder)
