"""A program -> an ONNX file that opens well in a viewer and runs in ONNX Runtime.

Nodes are named after the modules of the model that they come from, weights after ours, axes batch, height and width. The
metadata hold the metadata that `Detector.load` reads, and the same for people: classes and preprocessing.
"""

import ast
import importlib
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch.export import ExportedProgram

from detrkit._version import __version__
from detrkit.data.batching import normalization_stats
from detrkit.data.transforms.geometry import max_long_side
from detrkit.errors import ConfigError, ExportError
from detrkit.export.suppress_output import quiet
from detrkit.inference.engines.exported import KEY, ExportMetadata
from detrkit.inference.engines.onnx import first_line

OPSET = 18  # attention as an operator of its own, from 23 on, fails in ONNX Runtime
_MAX_NUMBERS = 8  # that a name may hold
_SCOPES = "pkg.torch.onnx.name_scopes"  # where torch notes the modules that a node comes from


def write_onnx(program: ExportedProgram, metadata: ExportMetadata, path: Path) -> None:
    """Write one file.

    Raises:
        ConfigError: onnx or onnxscript is not installed.
        ExportError: ONNX cannot express the program.
    """
    _require("onnx", "onnxscript")
    import torch

    try:
        with quiet():
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
    """What the file says about itself: to `Detector.load`, and to people."""
    mean, deviation = normalization_stats(metadata.model.in_channels)
    size = metadata.preprocessing.image_size
    preprocessing = {
        "resize": f"shorter side to {size} pixels, longer side at most {max_long_side(size)}, bilinear with antialiasing",
        "image_size": size,
        "scale": 1 / 255,
        "mean": mean,
        "deviation": deviation,
        "channels": "RGB" if metadata.model.in_channels == 3 else metadata.model.in_channels,
        "padding": "zeros after normalisation, at the bottom and on the right; padding_mask is true there",
    }
    names = {index: one.name for index, one in enumerate(metadata.categories)}
    ids = {index: one.id for index, one in enumerate(metadata.categories)}
    readable = {"names": names, "category_ids": ids, "preprocessing": preprocessing}
    return {
        KEY: metadata.to_text(),
        **{key: json.dumps(value, ensure_ascii=False) for key, value in readable.items()},
    }


def _drop_checks_for_nan(graph: Any) -> None:
    """Take out what guards attention against rows in which all is padding: every photo has a cell that is none."""
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
    """Name nodes and weights after the model's modules, and drop torch's notes, which hold paths of source files."""
    taken: Counter[str] = Counter()
    for node in graph:
        scope = _scope(node)
        name = f"{scope}/{node.op_type}"
        taken[name] += 1
        node.name = name if taken[name] == 1 else f"{name}_{taken[name]}"
        node.metadata_props.clear()
        if not any(value.is_graph_output() for value in node.outputs):
            _name_values(node)
        for value in node.inputs:
            if node.op_type == "MatMul" and value.name in graph.initializers and value.name.startswith("val_"):
                name = f"{scope}.weight_transposed"
                taken[name] += 1  # a layer that is asked several times has as many copies
                value.name = name if taken[name] == 1 else f"{name}_{taken[name]}"
    for value in list(graph.initializers.values()):
        value.name = value.name.removeprefix("model.")
    _name_constants(graph)
    for value in [*graph.inputs, *graph.initializers.values(), *(value for node in graph for value in node.outputs)]:
        value.metadata_props.clear()
    _name_axes(graph)


def _name_values(node: Any) -> None:
    """Call what a node gives by the node's own name."""
    for number, value in enumerate(node.outputs):
        value.name = node.name if not number else f"{node.name}.{number}"


def _name_constants(graph: Any) -> None:
    """Call numbers that torch has numbered by what they are; tables by the first node that needs them."""
    taken: Counter[str] = Counter()
    for value in list(graph.initializers.values()):
        if "." in value.name:  # a weight
            continue
        array = value.const_value.numpy()
        if array.size > _MAX_NUMBERS:
            name = "".join(f"{node.name}.table" for node in value.consumers()[:1]) or value.name
        else:
            name = f"constant_{array.tolist()}".replace(" ", "")
        taken[name] += 1
        value.name = name if taken[name] == 1 else f"{name}_{taken[name]}"


def _scope(node: Any) -> str:
    """The module that a node comes from, by its name in our weights."""
    scopes = [scope for scope in ast.literal_eval(node.metadata_props.get(_SCOPES, "[]")) if not scope.startswith("_")]
    return (scopes[-2].removeprefix("model").removeprefix(".") if len(scopes) > 1 else "") or "detr"


def _name_axes(graph: Any) -> None:
    """Call the axes of any length batch, height and width, instead of s34."""
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
                    value.shape[index] = None  # sums of the others, which viewers cannot read


def _free_axes(value: Any) -> Iterator[Any]:
    return (axis for axis in value.shape if not isinstance(axis, int))


def _require(*packages: str) -> None:
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError:
            raise ConfigError(f"--format onnx: needs {package}; pip install 'detrkit[export]'") from None
