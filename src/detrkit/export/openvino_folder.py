"""A program -> a folder with an OpenVINO network: float32, bfloat16 or int8.

bfloat16 is the processor's: the folder says so, and the weights take half the room. int8 is post-training quantization by
nncf: ranges are measured on photos of the user's, and what would lose by it stays in float.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from detrkit._internal.files import write_text
from detrkit.checkpoints.exported import METADATA_FILE, NETWORK_FILE
from detrkit.data.batching import collate
from detrkit.errors import ConfigError, ExportError
from detrkit.export.suppress_output import quiet
from detrkit.inference.engines.exported import ExportMetadata, pad_to_min_side
from detrkit.inference.engines.onnx import first_line
from detrkit.inference.engines.openvino import load_openvino
from detrkit.structures import Sample

# between the last hidden layers and the outputs: the heads, post-processing included
_HEAD_OPERATIONS = {
    "Add", "Broadcast", "Concat", "Convert", "Divide", "Gather", "MatMul", "Multiply", "ReduceMax", "Relu", "Reshape",
    "Sigmoid", "Slice", "Softmax", "Squeeze", "StridedSlice", "Subtract", "TopK", "Transpose", "Unsqueeze", "VariadicSplit",
}  # fmt: skip


def write_openvino(
    program: ExportedProgram, metadata: ExportMetadata, folder: Path, calibration: Sequence[Sample] = ()
) -> None:
    """Write the network's two files and its metadata.

    Args:
        program: what to write.
        metadata: its precision decides the form.
        folder: exists.
        calibration: photos to measure ranges on, for int8.

    Raises:
        ConfigError: openvino or nncf is not installed.
        ExportError: OpenVINO cannot express the program.
    """
    openvino = load_openvino()
    try:
        with quiet():
            network = openvino.convert_model(program)
    except Exception as error:  # its frontends raise many kinds
        raise ExportError(f"export: OpenVINO cannot express the model ({first_line(error)})") from None
    for port, name in zip(network.inputs, metadata.input_names, strict=True):
        _call(port, name)
    for port, name in zip(network.outputs, metadata.output_names, strict=True):
        _call(port, name)
    if metadata.precision == "int8":
        network = _quantize(network, calibration, metadata)
    openvino.save_model(network, folder / NETWORK_FILE, compress_to_fp16=metadata.precision == "bfloat16")
    write_text(folder / METADATA_FILE, metadata.to_text())


def _call(port: Any, name: str) -> None:
    port.get_tensor().set_names({name})
    port.get_node().set_friendly_name(name)


def _quantize(network: Any, calibration: Sequence[Sample], metadata: ExportMetadata) -> Any:
    """Quantize the backbone with its sums, and the transformer's linear layers.

    The transformer's attention, norms and sums stay in float, and so do the heads: a box is a sigmoid of a number whose
    last digits count. So do places: where queries refer to them, and where they look. The quantizer's own mode for
    transformers leaves the backbone's sums in float, too, which is slower.
    """
    try:
        with quiet():
            import nncf
    except ImportError:
        raise ConfigError("--precision int8: needs nncf; pip install 'detrkit[openvino]'") from None
    has_places = metadata.model.queries != "learned"
    in_float = [*_heads(network), *(_work_on_tokens(network) if has_places else _sums_of_tokens(network))]
    names = [node.get_friendly_name() for node in in_float]
    with quiet():
        return nncf.quantize(
            network,
            nncf.Dataset(list(calibration), _inputs_of(network, metadata.min_side)),
            subset_size=len(calibration),
            preset=nncf.QuantizationPreset.MIXED,
            ignored_scope=nncf.IgnoredScope(names=names, types=["ScaledDotProductAttention"], validate=False),
        )


def _inputs_of(network: Any, min_side: int) -> Callable[[Sample], dict[str, Any]]:
    """What a network is given for a photo alone."""
    names = [port.get_any_name() for port in network.inputs]

    def inputs(sample: Sample) -> dict[str, Any]:
        batch = collate([sample])
        images, padding_mask = pad_to_min_side(batch.images, batch.padding_mask, min_side)
        values = {"images": images, "padding_mask": padding_mask, "sizes": torch.tensor(batch.original_sizes)}
        return {name: values[name].numpy() for name in names}

    return inputs


def _heads(network: Any) -> list[Any]:
    """The operations between the decoder's last norm and the outputs."""
    found: dict[str, Any] = {}
    waiting = [result.input_value(0).get_node() for result in network.get_results()]
    while waiting:
        node = waiting.pop()
        if node.get_type_name() in _HEAD_OPERATIONS and node.get_friendly_name() not in found:
            found[node.get_friendly_name()] = node
            waiting += [port.get_source_output().get_node() for port in node.inputs()]
    return list(found.values())


def _work_on_tokens(network: Any) -> list[Any]:
    """All that is done to anything but maps, (B, C, h, w), linear layers left out."""
    others = ("Constant", "Convert", "MatMul", "Parameter", "Result")
    ranks = {
        node: node.get_output_partial_shape(0).rank
        for node in network.get_ops()
        if node.get_output_size() and node.get_type_name() not in others
    }
    return [node for node, rank in ranks.items() if rank.is_static and rank.get_length() != 4]


def _sums_of_tokens(network: Any) -> list[Any]:
    """The transformer's sums, (B, S, D); those of the backbone are of maps, (B, C, h, w)."""
    sums = [node for node in network.get_ops() if node.get_type_name() == "Add"]
    return [node for node in sums if node.get_output_partial_shape(0).rank.get_length() == 3]
