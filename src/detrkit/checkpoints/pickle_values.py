"""Stand-ins for the values in a pickle of weights, which take no memory, and for the results of torch's functions in it.

Each function checks its arguments: torch's own take any amount of memory for some of them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch

from detrkit.checkpoints.inert_types import READ_AS, new_list
from detrkit.errors import CheckpointError, short

_MAX_DIMENSIONS = 64  # of a tensor, torch's own limit
_MAX_KEY_DEPTH = 3  # of tuples that are hashed
_MAX_KEY_ITEMS = 1000  # in tuples that are hashed, with those of inner tuples

# torch's functions that make ordinary tensors: position of the storage's arguments is the same in all
_REBUILD = frozenset(("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3"))
_REBUILD_PARAMETER = frozenset(("_rebuild_parameter", "_rebuild_parameter_with_state"))
_REBUILD_SUBCLASS = "torch._tensor._rebuild_from_type_v2"
_TENSOR_TYPES = frozenset(("torch.Tensor", "torch._tensor.Tensor", "torch.nn.parameter.Parameter"))
# kinds of tensors that no detector's weights are, by torch's function
_OTHER_TENSORS = {
    "_rebuild_sparse_tensor": "sparse",
    "_rebuild_sparse_csr_tensor": "sparse",
    "_rebuild_nested_tensor": "nested",
    "_rebuild_qtensor": "quantized",
    "_rebuild_meta_tensor_no_storage": "meta",
    "_rebuild_device_tensor_from_numpy": "NumPy",
    "_rebuild_device_tensor_from_cpu_tensor": "device",
    "_rebuild_wrapper_subclass": "wrapped",
}
# bytes per element
_STORAGES = {
    f"{kind}Storage": size
    for size, kinds in (
        (1, "Untyped Bool Byte Char QInt8 QUInt8 QUInt4x2 QUInt2x4"),
        (2, "Half BFloat16 Short"),
        (4, "Float Int QInt32"),
        (8, "Double Long ComplexFloat"),
        (16, "ComplexDouble"),
    )
    for kind in kinds.split()
}
_INERT = frozenset(name for _, name in READ_AS)
_LISTS = frozenset(name for read_as, name in READ_AS if read_as is new_list)
_SCHEMES = frozenset(
    f"torch.per_{scheme}"
    for scheme in (
        "tensor_affine", "tensor_symmetric", "channel_affine", "channel_symmetric", "channel_affine_float_qparams"
    )
)  # fmt: skip


@dataclass(frozen=True)
class Global:
    """A type or function, by its full name."""

    name: str


@dataclass(frozen=True)
class Storage:
    """A storage of so many bytes, with elements of so many."""

    nbytes: int
    itemsize: int


class AnyTensor:
    """Any ordinary tensor."""


class AnyObject:
    """Any other object that has no items, or whose items do not matter."""


class CountedTuple(tuple[Any, ...]):
    """A tuple that knows how deep it is, and how many items it has with those of inner tuples."""

    depth: int
    num_items: int

    def __new__(cls, items: Sequence[Any]) -> "CountedTuple":
        """Make a tuple of these items."""
        made = super().__new__(cls, items)
        inner = [item for item in items if isinstance(item, CountedTuple)]
        made.depth = 1 + max((item.depth for item in inner), default=0)
        made.num_items = len(items) + sum(item.num_items for item in inner)
        return made


class RefusedPickleError(CheckpointError):
    """A pickle that is not read; the message lacks the name of the file."""


def refuse(reason: str) -> NoReturn:
    """Raise the error for a pickle that is not read."""
    raise RefusedPickleError(reason)


def refuse_malformed() -> NoReturn:
    """Raise the error for a pickle that torch.save does not write."""
    refuse(
        "not readable as weights (not written by torch.save, or more than tensors and plain values in it); expected "
        ".safetensors, or a state dict saved by torch"
    )


def storage_itemsize(storage_type: Any) -> int:
    """Return the bytes per element of a type of storage, such as ``torch.FloatStorage``."""
    name = storage_type.name.rpartition(".")[2] if isinstance(storage_type, Global) else ""
    if name not in _STORAGES:
        refuse_malformed()
    return _STORAGES[name]


def check_key(key: Any) -> None:
    """Check that hashing a key takes no time or stack to speak of.

    Raises:
        RefusedPickleError: it is a tuple of many levels.
    """
    if isinstance(key, CountedTuple) and (key.depth > _MAX_KEY_DEPTH or key.num_items > _MAX_KEY_ITEMS):
        refuse("has a deeply nested key, expected names of weights")


def as_list(value: Any) -> list[Any]:
    """Return a value that must be a list."""
    if type(value) is not list:
        refuse_malformed()
    return value


def check_global(name: str) -> None:
    """Check that a type or function is one that torch.save writes, or that is read as an inert value.

    Args:
        name: with its module.

    Raises:
        RefusedPickleError: it is not.
    """
    if name in _INERT or name in _CALLS or name in _SCHEMES or _is_torch_type(name):
        return
    module, _, kind = name.rpartition(".")
    if module == "torch._utils" and kind in _OTHER_TENSORS:
        refuse(f"holds a {_OTHER_TENSORS[kind]} tensor, expected ordinary ones; save dense copies of the weights")
    refuse(
        f"holds an object of type {name.removeprefix('builtins.')}, which is not read, as that could run code of "
        "the file; where this type is known, save the weights alone: torch.save(model.state_dict(), 'weights.pth')"
    )


def result_of(name: str, arguments: Sequence[Any]) -> Any:
    """Return what a function or type makes, a tensor only if its storage holds it.

    Raises:
        RefusedPickleError: it is no function of torch.save, or has arguments that torch.save does not write.
    """
    if name in _CALLS:
        return _CALLS[name](arguments)
    if name not in _INERT:
        refuse(f"calls {name}, which is no function of torch.save; save the weights again with torch.save")
    if name == "builtins.frozenset":
        return _make_set(arguments)
    return [] if name in _LISTS else AnyObject()


def _is_torch_type(full: str) -> bool:
    """Return whether this is a dtype, a type of storage or a type of tensor of torch, none of which is called."""
    package, _, name = full.rpartition(".")
    if package not in ("torch", "torch.storage", "torch.cuda", "torch._tensor", "torch.nn.parameter"):
        return False
    known = getattr(torch, name, None)
    return isinstance(known, torch.dtype) or name.endswith(("Storage", "Tensor")) or name == "Parameter"


def _make_tensor(arguments: Sequence[Any]) -> AnyTensor:
    storage, offset, size, stride = arguments[:4]
    itemsize = storage.itemsize
    if len(arguments) > 6 and isinstance(arguments[6], Global):  # of `_rebuild_tensor_v3`
        dtype = getattr(torch, arguments[6].name.rpartition(".")[2], None)
        itemsize = dtype.itemsize if isinstance(dtype, torch.dtype) else refuse_malformed()
    if not all(type(number) is int and number >= 0 for number in (offset, *size, *stride)):
        refuse("holds a tensor with a negative or malformed size, stride or offset; get the file again")
    if len(size) != len(stride) or len(size) > _MAX_DIMENSIONS:
        refuse_malformed()
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    if 0 not in size and (last + 1) * itemsize > storage.nbytes:
        refuse(
            f"holds a tensor of shape {short(tuple(size))} that needs {(last + 1) * itemsize:,} bytes of a storage of "
            f"{storage.nbytes:,}; get the file again"
        )
    return AnyTensor()


def _make_parameter(arguments: Sequence[Any]) -> Any:
    if not arguments or not isinstance(arguments[0], AnyTensor):
        refuse_malformed()
    return arguments[0]


def _make_subclass(arguments: Sequence[Any]) -> Any:
    function, kind, inner, _ = arguments
    if not isinstance(function, Global) or not isinstance(kind, Global) or kind.name not in _TENSOR_TYPES:
        refuse_malformed()
    if function.name == _REBUILD_SUBCLASS:  # torch does not nest them, and any number would exhaust the stack
        refuse_malformed()
    return result_of(function.name, inner)


def _make_set(arguments: Sequence[Any]) -> AnyObject:
    for item in as_list(arguments[0]) if arguments else []:
        check_key(item)
    return AnyObject()


def _make_ordered_dict(arguments: Sequence[Any]) -> dict[Any, Any]:
    for pair in as_list(arguments[0]) if arguments else []:
        check_key(pair[0])
    return {}


def _make_counter(arguments: Sequence[Any]) -> dict[Any, Any]:
    if arguments and not isinstance(arguments[0], dict):
        refuse_malformed()
    return {}


def _make_text_bytes(arguments: Sequence[Any]) -> AnyObject:
    """Check the arguments of `bytearray` and of `_codecs.encode`, which writes bytes as text."""
    if arguments and not isinstance(arguments[0], str | bytes | AnyObject):
        refuse("holds an array of bytes of a given size, expected its content; save the weights alone")
    if any(encoding not in ("latin-1", "latin1", "iso-8859-1") for encoding in arguments[1:]):
        refuse_malformed()
    return AnyObject()


def _make_size(arguments: Sequence[Any]) -> CountedTuple:
    items = arguments[0] if arguments else ()
    if not all(type(item) is int for item in items):
        refuse_malformed()
    return CountedTuple(tuple(items))


def _make_plain(arguments: Sequence[Any]) -> AnyObject:
    if not all(isinstance(argument, str | int | float) for argument in arguments):
        refuse_malformed()
    return AnyObject()


_CALLS: Mapping[str, Callable[[Sequence[Any]], Any]] = {
    **{f"torch._utils.{name}": _make_tensor for name in _REBUILD},
    **{f"torch._utils.{name}": _make_parameter for name in _REBUILD_PARAMETER},
    _REBUILD_SUBCLASS: _make_subclass,
    "torch.nn.parameter.Parameter": _make_parameter,
    "torch.Size": _make_size,
    "torch.device": _make_plain,
    "torch.serialization._get_layout": _make_plain,
    "builtins.complex": _make_plain,
    "builtins.set": _make_set,
    "builtins.bytearray": _make_text_bytes,
    "_codecs.encode": _make_text_bytes,
    "collections.OrderedDict": _make_ordered_dict,
    "collections.Counter": _make_counter,
}
