"""Checks of untrusted `.pt2` files of `torch.export`.

Loading such a file makes torch generate Python code, call the functions named in it and view its weights with the strides
named in it. Therefore the archive, every string, every operator with its arguments and every weight are checked against
allow lists first (`check_members`), and the loaded graph is run without data to know the size of every intermediate
tensor before it is computed (`check_memory`).
"""

import math
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from detrkit._internal.documents import parse_json
from detrkit.checkpoints.export_formats import METADATA_FILE

GRAPH = "models/model.json"
_WEIGHT_LISTS = {
    "data/weights/model_weights_config.json": ("data/weights/", r"weight_\d+"),
    "data/constants/model_constants_config.json": ("data/constants/", r"tensor_\d+"),
}
_VERSION_FILES = ("archive_format", "archive_version", ".data/version", "byteorder", ".data/serialization_id")
_TENSOR_FILE = re.compile(r"data/(?:weights/weight|constants/tensor)_\d+")
_EXAMPLES = "data/sample_inputs/model.pt"  # pickled, if present
_KNOWN_FILES = (GRAPH, *_WEIGHT_LISTS, *_VERSION_FILES, _EXAMPLES, f"extra/{METADATA_FILE}")
_MAX_JSON_BYTES = 100_000_000
_MAX_NODES = 100_000
_MAX_INTEGER = 2**40  # `slice` counts to 2**63 - 1, which is allowed as well
_MAX_TENSOR_BYTES = 4 * 2**30  # of an intermediate tensor, for one image of `_CHECKED_SIDE`
_CHECKED_SIDE = 1344  # pixels

_NAME = re.compile(r"[\w.+-]*", re.ASCII)
_AXIS = re.compile(r"(?:\d{1,9}\*)?s\d{1,9}")  # a symbol, or a multiple of it; torch counts to the number of a `u9`
_ARITHMETIC = re.compile(
    r"(?:Symbol\('s\d+'(?:, (?:positive|integer|nonnegative)=True)*\)|Integer\(-?\d{1,18}\)"
    r"|(?:Add|Mul|FloorDiv|CleanDiv|Mod|Max|Min)(?=\()|[(), ])*"
)
_STRUCTURE = re.compile(
    r'(?:"(?:type|context|children_spec|builtins\.(?:tuple|dict|list)|null|\[\])"|null|1|[][{}:, ])*'
)
_PYTHON_OPERATOR = re.compile(r"_operator\.(?:add|sub|mul|floordiv|mod|neg|getitem|eq|ne|lt|le|gt|ge)")
_ATEN_OPERATOR = re.compile(r"torch\.ops\.aten\.(\w+\.\w+)", re.ASCII)
_STRINGS_OF_ARGUMENTS = {"", "none", "tanh", "floor", "trunc", "constant", "reflect", "replicate", "circular"}

# `torch.serialization` of dtypes: unsigned and signed integers, floating point, bool; not complex or quantized
_DTYPES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 2, 7: 4, 8: 8, 12: 1, 13: 2}  # code: bytes

# what `export_program` emits for the presets (a test collects it) and for timm's backbones, and similar operators: all
# that check their arguments, neither resize a storage nor read values as sizes, and take text from a fixed list at most
_OPERATORS = """
    __and__.Tensor _assert_tensor_metadata.default abs.default adaptive_avg_pool2d.default add.Scalar add.Tensor
    add_.Tensor addcmul.default alias.default all.dim amax.default arange.default arange.start argmax.default
    avg_pool2d.default
    batch_norm.default bitwise_not.default bmm.default cat.default ceil.default chunk.default
    clamp.default clamp_min.default clone.default constant_pad_nd.default contiguous.default conv2d.default
    conv_transpose2d.input cos.default cumsum.default
    detach.default div.Scalar div.Tensor dropout.default elu.default eq.Scalar eq.Tensor exp.default expand.default
    flatten.using_ints flip.default floor.default floor_divide.default full.default full_like.default
    gather.default ge.Scalar ge.Tensor gelu.default grid_sampler.default group_norm.default gt.Scalar gt.Tensor
    hardsigmoid.default hardswish.default hardswish_.default hardtanh.default hardtanh_.default index.Tensor
    index_select.default layer_norm.default le.Scalar le.Tensor leaky_relu.default leaky_relu_.default
    linear.default log.default logical_and.default logical_not.default logical_or.default logit.default lt.Scalar
    lt.Tensor masked_fill.Scalar matmul.default max.dim max_pool2d.default maximum.default mean.default mean.dim
    minimum.default mish.default movedim.int mul.Scalar mul.Tensor narrow.default ne.Scalar neg.default
    ones.default ones_like.default pad.default permute.default pow.Scalar pow.Tensor_Scalar pow.Tensor_Tensor prelu.default
    promote_types.default reciprocal.default relu.default relu6.default relu_.default remainder.Scalar
    repeat.default repeat_interleave.self_int reshape.default rms_norm.default round.default rsqrt.default rsub.Scalar
    scaled_dot_product_attention.default select.int sigmoid.default silu.default silu_.default sin.default
    slice.Tensor softmax.int softplus.default sort.default split.Tensor split_with_sizes.default sqrt.default
    square.default squeeze.dim stack.default sub.Scalar sub.Tensor sum.dim_IntList sym_size.int tanh.default
    to.dtype topk.default transpose.int unbind.int unflatten.int unsqueeze.default upsample_bilinear2d.vec
    upsample_nearest2d.vec view.default view_as.default where.ScalarOther where.self zeros.default zeros_like.default
    """
OPERATORS = frozenset(_OPERATORS.split())


def read_members(path: Path) -> dict[str, bytes]:
    """Read the files in the archive, by their names without the top folder.

    Raises:
        ValueError: the archive contains what detrkit's exports do not.
    """
    members: dict[str, bytes] = {}
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            name = entry.filename.partition("/")[2]
            known = name in _KNOWN_FILES or _TENSOR_FILE.fullmatch(name)
            if not known or name in members or entry.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"unexpected file {entry.filename!r}")
            if name.endswith(".json") and entry.file_size > _MAX_JSON_BYTES:
                raise ValueError(f"{entry.filename!r} has {entry.file_size} bytes")
            members[name] = archive.read(entry)
    if members.get(_EXAMPLES):
        raise ValueError("it contains pickled examples, which could run code")
    return members


def check_members(members: Mapping[str, bytes]) -> None:
    """Check the graph and the lists of weights.

    Raises:
        ValueError: they contain what no exported network needs.
    """
    for name, (folder, pattern) in _WEIGHT_LISTS.items():
        for entry in parse_json(members[name])["config"].values():
            _check_weight(entry, folder, pattern, members)
    graph = parse_json(members[GRAPH])
    if graph.get("guards_code"):
        raise ValueError("it contains Python code")
    for key, text in _strings(graph):
        _check_string(key, text)
    nodes = graph["graph_module"]["graph"]["nodes"]
    if len(nodes) > _MAX_NODES:
        raise ValueError(f"it has {len(nodes)} nodes")
    for node in nodes:
        _check_node(node)


def check_memory(program: torch.export.ExportedProgram, side: int = _CHECKED_SIDE) -> None:
    """Run a program without data on one image, and check the size of every intermediate tensor.

    Args:
        program: loaded.
        side: of the image, in pixels; less if the program takes no such images.

    Raises:
        ValueError: a tensor is too large, or an operator is called with arguments that it does not take.
    """
    signature = program.graph_signature
    weights = {name: one.detach() for name, one in {**program.state_dict, **program.constants}.items()}
    names = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    with FakeTensorMode() as mode:
        inputs = [
            mode.from_tensor(weights[names[node.name]])
            if node.name in names
            else torch.empty(_input_shape(node.meta["val"].shape, program, side), dtype=node.meta["val"].dtype)
            for node in program.graph.find_nodes(op="placeholder")
        ]
        _MemoryCheck(program.graph_module).run(*inputs)


def _input_shape(shape: Sequence[Any], program: torch.export.ExportedProgram, side: int) -> list[int]:
    """Return the shape of an input for one image, of this side as far as the ranges of the axes allow it."""
    lengths = []
    for axis, length in enumerate(shape):
        if isinstance(length, int):
            lengths.append(length)
        else:
            limits = program.range_constraints[length.node.expr]
            size = side if axis else 1  # the first axis is the batch
            size -= size % max(1, int(length.node.expr.as_coeff_Mul()[0]))  # sides may be multiples of a number
            lengths.append(int(max(limits.lower, min(limits.upper, size))))
    return lengths


class _MemoryCheck(torch.fx.Interpreter):
    """Runs a graph on tensors without data, and looks at the size of the results."""

    def run_node(self, n: torch.fx.Node) -> Any:
        """Run one node."""
        result = super().run_node(n)
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, Tensor) and tensor.numel() * tensor.element_size() > _MAX_TENSOR_BYTES:
                raise ValueError(f"{n.name} has the shape {tuple(tensor.shape)}, which is too large")
        return result


def _check_weight(entry: Any, folder: str, pattern: str, members: Mapping[str, bytes]) -> None:
    """Check that a weight is a plain file in the archive, and that its strides stay within it."""
    if entry["use_pickle"] is not False or not re.fullmatch(pattern, entry["path_name"]):
        raise ValueError("a weight is pickled, which could run code")
    meta = entry["tensor_meta"]
    _check_enum("as_scalar_type", meta["dtype"])
    if meta["device"]["type"] != "cpu":
        raise ValueError(f"unexpected device {meta['device']!r}"[:100])
    sizes, strides = (_integers(meta[name]) for name in ("sizes", "strides"))
    (offset,) = _integers([meta["storage_offset"]])
    if len(sizes) != len(strides) or min([*sizes, *strides, offset], default=0) < 0:
        raise ValueError(f"a weight has the sizes {sizes} and strides {strides}"[:200])
    # a stride of 0 would repeat a few bytes of the file without end
    item, stored = _DTYPES[meta["dtype"]], len(members[folder + entry["path_name"]])
    last = sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
    if (math.prod(sizes) and (offset + last + 1) * item > stored) or math.prod(sizes) * item > stored:
        raise ValueError(f"a weight has the sizes {sizes}, its file {stored} bytes"[:200])


def _integers(entries: Sequence[Any]) -> list[int]:
    numbers = [entry["as_int"] if isinstance(entry, dict) else entry for entry in entries]
    if not all(type(number) is int for number in numbers):
        raise ValueError("a weight's size is not an integer")
    return numbers


def _check_string(key: str, text: str) -> None:
    if key == "target":
        allowed = _is_allowed_operator(text)
    elif key == "expr_str":
        allowed = bool(_ARITHMETIC.fullmatch(text))
    elif key in ("in_spec", "out_spec"):
        allowed = bool(_STRUCTURE.fullmatch(text))
    elif key == "range_constraints":
        allowed = bool(_AXIS.fullmatch(text))
    elif key == "as_string":
        allowed = text in _STRINGS_OF_ARGUMENTS
    else:
        allowed = bool(_NAME.fullmatch(text))
    if not allowed:
        raise ValueError(f"unexpected string {text[:80]!r}")


def _strings(content: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Iterate over all strings of a JSON document, each with the key it is stored under, and over all keys."""
    if isinstance(content, dict):
        for inner, value in content.items():
            yield (key if key == "range_constraints" else ""), inner
            yield from _strings(value, inner)
    elif isinstance(content, list):
        for value in content:
            yield from _strings(value, key)
    elif isinstance(content, str):
        yield key, content


def _is_allowed_operator(target: str) -> bool:
    if _PYTHON_OPERATOR.fullmatch(target):
        return True
    match = _ATEN_OPERATOR.fullmatch(target)
    return match is not None and match[1] in OPERATORS


def _check_node(node: Any) -> None:
    """Check the arguments of a call: their names and kinds, numbers, dtypes and devices."""
    match = _ATEN_OPERATOR.fullmatch(node["target"])
    names = None
    if match:
        packet, _, overload = match[1].partition(".")
        schema = getattr(getattr(torch.ops.aten, packet), overload)._schema
        names = {argument.name for argument in schema.arguments}
    for given in node["inputs"]:
        if names is not None and given["name"] not in names:
            raise ValueError(f"unexpected argument {given['name'][:80]!r} of {node['target']}")
        _check_argument(given["arg"])


def _check_argument(argument: Any) -> None:
    for kind, value in argument.items():
        if kind in ("as_graph", "as_custom_obj", "as_operator", "as_complex"):
            raise ValueError(f"unexpected argument {kind}")
        if kind in ("as_scalar_type", "as_layout"):
            _check_enum(kind, value)
        if kind == "as_device" and value.get("type") != "cpu":
            raise ValueError(f"unexpected device {str(value)[:80]}")
        for number in value if isinstance(value, list) else [value]:
            if type(number) is int and abs(number) > _MAX_INTEGER and number != 2**63 - 1:
                raise ValueError(f"unexpected number {number}")


def _check_enum(kind: str, value: Any) -> None:
    if value not in ({7} if kind == "as_layout" else _DTYPES):  # 7: strided, not sparse
        raise ValueError(f"unexpected {kind.removeprefix('as_')} {str(value)[:80]}")
