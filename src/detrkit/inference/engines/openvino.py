"""Folders with an OpenVINO network, run on the CPU in the precision they were exported for.

An input size that occurs a second time gets a network compiled for that size without padding: constants are folded, which
makes int8 networks a seventh faster.
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

from detrkit._internal.text import first_line
from detrkit.checkpoints.export_formats import METADATA_FILE, NETWORK_FILE
from detrkit.errors import CheckpointError, ConfigError, install_hint
from detrkit.inference.engines.exported import ExportedEngine
from detrkit.inference.engines.metadata import ExportMetadata, ExportPrecision

WEIGHTS_FILE = "model.bin"
_MAX_SIZES = 2  # sizes with their own network, each of which holds another copy of the weights
_HINTS: dict[ExportPrecision, str] = {"float32": "f32", "bfloat16": "bf16", "int8": "bf16"}


class OpenVinoSession:
    """A network for inputs of any size, and networks for single sizes without padding."""

    def __init__(self, core: Any, network: Any, precision: ExportPrecision, source: object) -> None:
        self.core = core
        self.network = network
        self.source = source
        self.settings = {
            "INFERENCE_PRECISION_HINT": precision_hint(precision, core),
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        }
        self.output_names = [output.get_any_name() for output in network.outputs]
        self._dynamic = core.compile_model(network, "CPU", self.settings).create_infer_request()
        self._lock = threading.Lock()
        self._by_size: dict[tuple[int, ...], Any] = {}
        self._counts: Counter[tuple[int, ...]] = Counter()

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run the network."""
        try:
            with self._lock:
                outputs = self._infer({name: tensor.numpy() for name, tensor in inputs.items()})
        except RuntimeError as error:
            raise CheckpointError(f"{self.source}: OpenVINO cannot run it ({openvino_reason(error)})") from None
        if not all(map(len, outputs.values())):  # without AVX it has no layer normalization for inputs of any size
            raise CheckpointError(
                f"{self.source}: OpenVINO cannot run it on this processor, x86 needs AVX; export it to onnx instead"
            )
        return outputs

    def _infer(self, inputs: dict[str, Any]) -> dict[str, Tensor]:
        request = self._dynamic
        if not inputs["padding_mask"].any():
            request = self._request_for(inputs["images"].shape) or request
            if request is not self._dynamic:
                del inputs["padding_mask"]
        results = request.infer(inputs, share_inputs=True)
        # copies, because the next inference overwrites the results
        return {name: torch.from_numpy(np.array(results[index])) for index, name in enumerate(self.output_names)}

    def _request_for(self, shape: tuple[int, ...]) -> Any | None:
        """Return the network compiled for a size, from the second occurrence of the size on."""
        if shape in self._by_size:
            return self._by_size[shape]
        self._counts[shape] += 1
        if self._counts[shape] < 2 or len(self._by_size) >= _MAX_SIZES:
            return None
        network = without_padding(self.network, shape)
        self._by_size[shape] = self.core.compile_model(network, "CPU", self.settings).create_infer_request()
        return self._by_size[shape]


def without_padding(network: Any, shape: tuple[int, ...]) -> Any:
    """Return a network for unpadded images of one shape (B, C, H, W)."""
    operations = load_openvino().opset13
    fixed = network.clone()
    batch, _, height, width = shape
    for node in fixed.get_ops():
        if node.get_type_name() == "ScaledDotProductAttention":
            # an all-true mask gives wrong results in bfloat16 (OpenVINO 2026.4)
            query, key, value = (node.input_value(index) for index in range(3))
            unmasked = operations.scaled_dot_product_attention(query, key, value)
            for reader in node.output(0).get_target_inputs():
                reader.replace_source_output(unmasked.output(0))
    mask = fixed.input("padding_mask").get_node()
    no_padding = operations.constant(np.zeros((batch, height, width), dtype=bool))
    for reader in mask.output(0).get_target_inputs():
        reader.replace_source_output(no_padding.output(0))
    fixed.remove_parameter(mask)
    shapes = {"images": list(shape), "sizes": [batch, 2]}
    names = [parameter.get_any_name() for parameter in fixed.inputs]
    fixed.reshape({name: shapes[name] for name in names})
    _fold_pools(fixed)
    return fixed


def _fold_pools(network: Any) -> None:
    """Replace average pools that depend on no input by their values: numbers of cells in shortcuts of ResNet-vd.

    OpenVINO 2026.4 does not fold them, and cannot compute those of a single channel in bfloat16.
    """
    openvino = load_openvino()
    passes = importlib.import_module("openvino.passes")
    folding = passes.Manager()
    folding.register_pass(passes.ConstantFolding())  # of the sizes of inputs
    folding.run_passes(network)
    pools = [node for node in network.get_ops() if node.get_type_name() == "AvgPool" and not _depends_on_input(node)]
    if not pools:
        return
    subgraph = openvino.Model([openvino.opset13.result(node.output(0)) for node in pools], []).clone()
    compiled = openvino.Core().compile_model(subgraph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    values = compiled.create_infer_request().infer()
    for index, node in enumerate(pools):
        constant = openvino.opset13.constant(np.array(values[index]))
        for reader in node.output(0).get_target_inputs():
            reader.replace_source_output(constant.output(0))


def _depends_on_input(node: Any) -> bool:
    pending: list[Any] = [node]
    seen: set[str] = set()
    while pending:
        one = pending.pop()
        if one.get_type_name() == "Parameter":
            return True
        sources = [port.get_node() for port in one.input_values()]
        pending += [source for source in sources if source.get_name() not in seen]
        seen.update(source.get_name() for source in sources)
    return False


def load_openvino() -> Any:
    """Import openvino without its telemetry package.

    Raises:
        ConfigError: it is not installed.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # makes its import fail, as if it were not installed
    try:
        return importlib.import_module("openvino")
    except ImportError:
        raise ConfigError(f"openvino is not installed; {install_hint('detrkit[openvino]')}") from None


def openvino_reason(error: Exception) -> str:
    """Return the first line of an error of OpenVINO that is not a place in its code."""
    lines = str(error).splitlines()
    told = [line for line in lines if line.strip() and not line.startswith(("Exception from ", "Check '"))]
    return first_line(RuntimeError(told[0])) if told else first_line(error)


def precision_hint(precision: ExportPrecision, core: Any) -> str:
    """Return the precision to compute in: float32 if the processor has no bfloat16."""
    capabilities = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return "f32" if "BF16" not in capabilities else _HINTS[precision]


def read_openvino(folder: Path) -> ExportedEngine:
    """Open a folder with an exported OpenVINO network; only its graph is executed.

    Raises:
        ConfigError: openvino is not installed.
        CheckpointError: a file is missing or damaged, or was not written by detrkit.
    """
    core = load_openvino().Core()
    try:
        text = (folder / METADATA_FILE).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"{folder / METADATA_FILE}: not readable ({openvino_reason(error)}); export it again"
        ) from None
    metadata = ExportMetadata.from_text(text, folder / METADATA_FILE)
    for name in (NETWORK_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder / name}: missing, expected a part of the network; export it again")
    try:
        network = core.read_model(folder / NETWORK_FILE, folder / WEIGHTS_FILE)
        names = tuple(parameter.get_any_name() for parameter in network.inputs)
        if sorted(names) != sorted(metadata.input_names):
            raise CheckpointError(f"{folder}: found inputs {names}, expected {metadata.input_names}; export it again")
        session = OpenVinoSession(core, network, metadata.precision, folder)
    except (RuntimeError, ValueError) as error:  # ValueError: names that are not UTF-8
        raise CheckpointError(
            f"{folder}: not readable as OpenVINO ({openvino_reason(error)}); export it again"
        ) from None
    return ExportedEngine(session, metadata, folder)
