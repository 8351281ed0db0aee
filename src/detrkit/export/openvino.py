"""Export to a folder with an OpenVINO network in float32, bfloat16 or int8.

bfloat16 is computed if the processor supports it; the weights are half as large. int8 is post-training quantization by
nncf: ranges are measured on calibration images, and operations that lose accuracy stay in float.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from detrkit._internal.files import make_folder, write_text
from detrkit.checkpoints.export_formats import METADATA_FILE, NETWORK_FILE
from detrkit.data.batching import collate
from detrkit.errors import ConfigError, ExportError, arg, install_hint
from detrkit.export.suppress_output import suppress_output
from detrkit.inference.engines.exported import pad_to_min_side
from detrkit.inference.engines.metadata import ExportMetadata
from detrkit.inference.engines.openvino import load_openvino, openvino_reason
from detrkit.structures import Sample

# operations of the heads, post-processing included: between the last hidden layers and the outputs
_HEAD_OPERATIONS = {
    "Add", "Broadcast", "Concat", "Convert", "Divide", "Gather", "MatMul", "Multiply", "ReduceMax", "Relu", "Reshape",
    "Sigmoid", "Slice", "Softmax", "Squeeze", "StridedSlice", "Subtract", "TopK", "Transpose", "Unsqueeze", "VariadicSplit",
}  # fmt: skip


def write_openvino(
    program: ExportedProgram, metadata: ExportMetadata, folder: Path, calibration: Sequence[Sample] = ()
) -> None:
    """Write the network's two files and its metadata.

    Args:
        program: to write.
        metadata: with the precision.
        folder: is created.
        calibration: samples on which int8 measures ranges.

    Raises:
        ConfigError: openvino or nncf is not installed.
        ExportError: OpenVINO cannot express the program.
    """
    openvino = load_openvino()
    make_folder(folder)
    try:
        with suppress_output():
            network = openvino.convert_model(program)
    except Exception as error:  # its frontends raise many kinds
        raise ExportError(f"export: OpenVINO cannot express the model ({openvino_reason(error)})") from None
    for port, name in zip(network.inputs, metadata.input_names, strict=True):
        _set_name(port, name)
    for port, name in zip(network.outputs, metadata.output_names, strict=True):
        _set_name(port, name)
    if metadata.precision == "int8":
        network = _quantize(network, calibration, metadata)
    openvino.save_model(network, folder / NETWORK_FILE, compress_to_fp16=metadata.precision == "bfloat16")
    write_text(folder / METADATA_FILE, metadata.to_text())


def _set_name(port: Any, name: str) -> None:
    port.get_tensor().set_names({name})
    port.get_node().set_friendly_name(name)


def _quantize(network: Any, calibration: Sequence[Sample], metadata: ExportMetadata) -> Any:
    """Quantize the backbone with its residual sums, and the transformer's linear layers.

    The transformer's attention, norms and sums stay in float, and so do the heads, because boxes are sensitive to the last
    digits before their sigmoid. So do positions: reference points and sampling locations. nncf's own mode for transformers
    keeps the backbone's sums in float, too, which is slower.
    """
    try:
        with suppress_output():
            import nncf
    except ImportError:
        raise ConfigError(f"{arg('precision', 'int8')} needs nncf; {install_hint('detrkit[openvino]')}") from None
    has_references = metadata.model.queries != "learned"
    in_float = [*_heads(network), *(_token_operations(network) if has_references else _token_sums(network))]
    names = [node.get_friendly_name() for node in in_float]
    with suppress_output():
        return nncf.quantize(
            network,
            nncf.Dataset(list(calibration), _make_inputs(network, metadata.min_side)),
            subset_size=len(calibration),
            preset=nncf.QuantizationPreset.MIXED,
            ignored_scope=nncf.IgnoredScope(names=names, types=["ScaledDotProductAttention"], validate=False),
        )


def _make_inputs(network: Any, min_side: int) -> Callable[[Sample], dict[str, Any]]:
    """Return a function from a sample to the network's inputs."""
    names = [port.get_any_name() for port in network.inputs]

    def inputs(sample: Sample) -> dict[str, Any]:
        batch = collate([sample])
        images, padding_mask = pad_to_min_side(batch.images, batch.padding_mask, min_side)
        values = {"images": images, "padding_mask": padding_mask, "sizes": torch.tensor(batch.original_sizes)}
        return {name: values[name].numpy() for name in names}

    return inputs


def _heads(network: Any) -> list[Any]:
    """Return the operations between the decoder's last norm and the outputs."""
    heads: dict[str, Any] = {}
    waiting = [result.input_value(0).get_node() for result in network.get_results()]
    while waiting:
        node = waiting.pop()
        if node.get_type_name() in _HEAD_OPERATIONS and node.get_friendly_name() not in heads:
            heads[node.get_friendly_name()] = node
            waiting += [port.get_source_output().get_node() for port in node.inputs()]
    return list(heads.values())


def _token_operations(network: Any) -> list[Any]:
    """Return all operations on other tensors than feature maps, (B, C, h, w), except linear layers."""
    others = ("Constant", "Convert", "MatMul", "Parameter", "Result")
    ranks = {
        node: node.get_output_partial_shape(0).rank
        for node in network.get_ops()
        if node.get_output_size() and node.get_type_name() not in others
    }
    return [node for node, rank in ranks.items() if rank.is_static and rank.get_length() != 4]


def _token_sums(network: Any) -> list[Any]:
    """Return the transformer's sums, (B, S, D); those of the backbone have feature maps, (B, C, h, w)."""
    sums = [node for node in network.get_ops() if node.get_type_name() == "Add"]
    return [node for node in sums if node.get_output_partial_shape(0).rank.get_length() == 3]
