"""Export to an ONNX file for ONNX Runtime, with readable names for graph viewers.

Nodes are named after the modules that they come from, weights as in the state dict, axes batch, height and width. The
file's metadata properties hold the `ExportMetadata` that `Detector.load` reads, and classes and preprocessing as JSON.
"""

import ast
import importlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from detrkit._internal.text import first_line
from detrkit._version import __version__
from detrkit.data.decoding import RGB
from detrkit.errors import ConfigError, ExportError, arg, install_hint
from detrkit.export.suppress_output import suppress_output
from detrkit.inference.engines.metadata import METADATA_KEY, ExportMetadata
from detrkit.structures import Sample

OPSET = 18  # the attention operator of opset 23 and later fails in ONNX Runtime
_MAX_NAMED_NUMBERS = 8  # constants of up to this size are named after their values
_SCOPES = "pkg.torch.onnx.name_scopes"  # metadata property of a node: the modules that it comes from


def write_onnx(
    program: ExportedProgram, metadata: ExportMetadata, path: Path, calibration: Sequence[Sample] = ()
) -> None:
    """Write one file.

    Raises:
        ConfigError: onnx or onnxscript is not installed.
        ExportError: ONNX cannot express the program.
    """
    _require("onnx", "onnxscript")
    try:
        with suppress_output():
            exported = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=OPSET,
                verbose=False,
                input_names=list(metadata.input_names),
                output_names=list(metadata.output_names),
            )
    except Exception as error:  # the exporter raises many kinds
        raise ExportError(f"export: ONNX cannot express the model ({first_line(error)})") from None
    assert exported is not None
    model = exported.model
    _drop_checks_for_nan(model.graph)
    _rename(model.graph)
    model.producer_name, model.producer_version = "detrkit", __version__
    model.graph.name = "detr"
    model.metadata_props.clear()
    model.metadata_props.update(onnx_metadata(metadata))
    exported.save(path)


def onnx_metadata(metadata: ExportMetadata) -> dict[str, str]:
    """Return the metadata properties: for `Detector.load`, and readable ones."""
    preprocessing, channels = metadata.preprocessing, metadata.model.in_channels
    normalization = preprocessing.normalization(channels)
    how = {
        "description": preprocessing.describe(),
        "resize": preprocessing.resize,
        "image_size": preprocessing.image_size,
        "max_size": preprocessing.longest_side,
        "size": preprocessing.size,
        "rounding": preprocessing.rounding,
        "interpolation": preprocessing.interpolation,
        "scale": normalization.scale,
        "mean": normalization.mean or (0.0,),
        "std": normalization.std or (1.0,),
        "channels": "RGB" if channels == RGB else channels,
        "padding": "zeros after normalisation, at the bottom and on the right; padding_mask is true there",
    }
    readable = {
        "names": [one.name for one in metadata.categories],
        "category_ids": [one.id for one in metadata.categories],
        "preprocessing": how,
    }
    return {
        METADATA_KEY: metadata.to_text(),
        **{key: json.dumps(value, ensure_ascii=False) for key, value in readable.items()},
    }


def _drop_checks_for_nan(graph: Any) -> None:
    """Remove guards of attention against rows that are all padding: every image has a cell that is not."""
    for node in list(graph):
        if node.op_type != "IsNaN":
            continue
        for guard in list(node.outputs[0].consumers()):
            if guard.op_type == "Where" and guard.inputs[2] is node.inputs[0]:
                guard.outputs[0].replace_all_uses_with(node.inputs[0])
                graph.remove(guard, safe=True)
        if not node.outputs[0].consumers():
            graph.remove(node, safe=True)


def _rename(graph: Any) -> None:
    """Name nodes and weights after the model's modules, and drop torch's metadata, which hold paths of source files."""
    used: Counter[str] = Counter()
    for node in graph:
        scope = _scope(node)
        name = f"{scope}/{node.op_type}"
        used[name] += 1
        node.name = name if used[name] == 1 else f"{name}_{used[name]}"
        node.metadata_props.clear()
        if not any(value.is_graph_output() for value in node.outputs):
            _name_values(node)
        for value in node.inputs:
            if node.op_type == "MatMul" and value.name in graph.initializers and value.name.startswith("val_"):
                name = f"{scope}.weight_transposed"
                used[name] += 1  # a layer that is called several times has as many copies
                value.name = name if used[name] == 1 else f"{name}_{used[name]}"
    for value in list(graph.initializers.values()):
        value.name = value.name.removeprefix("model.")
    _name_constants(graph)
    for value in [*graph.inputs, *graph.initializers.values(), *(value for node in graph for value in node.outputs)]:
        value.metadata_props.clear()
    _name_axes(graph)


def _name_values(node: Any) -> None:
    """Name the outputs of a node after the node."""
    for number, value in enumerate(node.outputs):
        value.name = node.name if not number else f"{node.name}.{number}"


def _name_constants(graph: Any) -> None:
    """Name small constants after their values, and tables after the first node that uses them."""
    used: Counter[str] = Counter()
    for value in list(graph.initializers.values()):
        if "." in value.name:  # a weight
            continue
        array = value.const_value.numpy()
        if array.size > _MAX_NAMED_NUMBERS:
            name = "".join(f"{node.name}.table" for node in value.consumers()[:1]) or value.name
        else:
            name = f"constant_{array.tolist()}".replace(" ", "")
        used[name] += 1
        value.name = name if used[name] == 1 else f"{name}_{used[name]}"


def _scope(node: Any) -> str:
    """Return the name of the module that a node comes from."""
    scopes = [scope for scope in ast.literal_eval(node.metadata_props.get(_SCOPES, "[]")) if not scope.startswith("_")]
    return (scopes[-2].removeprefix("model").removeprefix(".") if len(scopes) > 1 else "") or "detr"


def _name_axes(graph: Any) -> None:
    """Name the dynamic axes batch, height and width, instead of s34."""
    names = {
        str(axis): name for axis, name in zip(_free_axes(graph.inputs[0]), ("batch", "height", "width"), strict=True)
    }
    values = [*graph.inputs, *graph.outputs, *(value for node in graph for value in node.outputs)]
    for value in values:
        if value.shape is not None:
            for index, axis in enumerate(value.shape):
                if str(axis) in names:
                    value.shape[index] = names[str(axis)]
                elif not isinstance(axis, int) and value not in graph.outputs:
                    value.shape[index] = None  # expressions of the others, which viewers cannot read


def _free_axes(value: Any) -> Iterator[Any]:
    return (axis for axis in value.shape if not isinstance(axis, int))


def _require(*packages: str) -> None:
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError:
            raise ConfigError(f"{arg('format', 'onnx')} needs {package}; {install_hint('detrkit[export]')}") from None
