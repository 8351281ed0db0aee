"""Check of a pickle before torch reads it: what it would allocate, call and hash.

torch's ``weights_only`` unpickler calls no functions but its own, and some of those take any amount of memory: a view that
passes the end of its storage enlarges it, ``torch.Tensor`` and ``bytearray`` take a size, and keys of nested tuples are
hashed recursively. `check_pickle` follows the same instructions with stand-ins, and allocates nothing.
"""

import io
import pickletools
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any, NoReturn

import torch

from detrkit.checkpoints.inert_types import READ_AS, new_list
from detrkit.errors import CheckpointError, short

MAX_INSTRUCTIONS = 5_000_000  # about 40 per tensor
MAX_TENSORS = 100_000  # in one file; the largest published detectors have about 1,500
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
class _Global:
    """A type or function, by its full name."""

    name: str


@dataclass(frozen=True)
class _Storage:
    """A storage of so many bytes, with elements of so many."""

    nbytes: int
    itemsize: int


class _Tensor:
    """Any ordinary tensor."""


class _Object:
    """Any other object that has no items, or whose items do not matter."""


class _Tuple(tuple[Any, ...]):
    """A tuple that knows how deep it is, and how many items it has with those of inner tuples."""

    depth: int
    num_items: int

    def __new__(cls, items: Sequence[Any]) -> "_Tuple":
        made = super().__new__(cls, items)
        inner = [item for item in items if isinstance(item, _Tuple)]
        made.depth = 1 + max((item.depth for item in inner), default=0)
        made.num_items = len(items) + sum(item.num_items for item in inner)
        return made


# persistent id without "storage" -> storage
FindStorage = Callable[[Sequence[Any]], tuple[int, int]]


class RefusedPickleError(CheckpointError):
    """A pickle that is not read; the message lacks the name of the file."""


class _BoundedReader:
    """Reads a file as `pickletools` does, but never asks for more bytes than it holds."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        position = file.tell()
        self._size = file.seek(0, io.SEEK_END)
        file.seek(position)
        self.tell, self.readline = file.tell, file.readline

    def read(self, count: int = -1) -> bytes:
        """Read so many bytes, or all that are left."""
        left = max(0, self._size - self._file.tell())
        return self._file.read(left if count < 0 else min(count, left))


class _Checker:
    """Follows the instructions of one pickle; methods handle opcodes of `pickletools`, see `_HANDLERS`."""

    def __init__(self, find_storage: FindStorage | None) -> None:
        self.find_storage = find_storage
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.num_tensors = 0

    def run(self, content: IO[bytes] | bytes) -> Any:
        """Follow all instructions, and return the stand-in of the result."""
        # a read of more bytes than there are would allocate them all
        readable = content if isinstance(content, bytes) else _BoundedReader(content)
        for number, (opcode, argument, _) in enumerate(pickletools.genops(readable)):  # type: ignore[arg-type]  # reads, no more
            if number > MAX_INSTRUCTIONS:
                refuse(f"holds more than {MAX_INSTRUCTIONS:,} instructions, expected weights")
            if opcode.name == "STOP":
                return self.stack.pop()
            handler = _HANDLERS.get(opcode.name)
            if handler is None:
                refuse(
                    "is in another pickle protocol than torch.save's, which cannot be read safely; save it with "
                    "torch.save(model.state_dict(), 'weights.pth')"
                )
            handler(self, argument)
        return None

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def push_new(self, make: Callable[[], Any]) -> None:
        self.stack.append(make())

    def pop_to_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.marks.pop()
        return items

    def mark(self, _argument: Any) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def push_global(self, argument: str) -> None:
        module, name = _current_name(*argument.partition(" ")[::2])
        full = f"{module}.{name}"
        if not (full in _INERT or full in _CALLS or full in _SCHEMES or _is_torch_type(full)):
            if module == "torch._utils" and name in _OTHER_TENSORS:
                refuse(
                    f"holds a {_OTHER_TENSORS[name]} tensor, expected ordinary ones; save dense copies of the weights"
                )
            refuse(
                f"holds an object of type {full.removeprefix('builtins.')}, which is not read, as that could run code of "
                "the file; where this type is known, save the weights alone: torch.save(model.state_dict(), 'weights.pth')"
            )
        self.push(_Global(full))

    def call(self, _argument: Any) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if not isinstance(function, _Global) or not isinstance(arguments, tuple):
            refuse_malformed()
        self.push(self.result_of(function.name, arguments))

    def result_of(self, name: str, arguments: Sequence[Any]) -> Any:
        if name in _CALLS:
            return _CALLS[name](self, arguments)
        if name not in _INERT:
            refuse(f"calls {name}, which is no function of torch.save; save the weights again with torch.save")
        if name == "builtins.frozenset":
            return _make_set(self, arguments)
        if name in _LISTS:
            return []
        return _Object()

    def build(self, _argument: Any) -> None:
        self.stack.pop()
        if not isinstance(self.stack[-1], _Object | dict):  # a tensor's state would replace its storage
            refuse_malformed()

    def append(self, _argument: Any) -> None:
        item = self.stack.pop()
        _as_list(self.stack[-1]).append(item)

    def append_many(self, _argument: Any) -> None:
        items = self.pop_to_mark()
        _as_list(self.stack[-1]).extend(items)

    def set_item(self, _argument: Any) -> None:
        self.stack.pop()
        check_key(self.stack.pop())

    def set_items(self, _argument: Any) -> None:
        for key in self.pop_to_mark()[::2]:
            check_key(key)

    def make_tuple(self, size: int | None) -> None:
        if size is None:
            self.push(_Tuple(self.pop_to_mark()))
            return
        if len(self.stack) < size:
            refuse_malformed()
        items = self.stack[len(self.stack) - size :]
        del self.stack[len(self.stack) - size :]
        self.push(_Tuple(items))

    def load_storage(self, _argument: Any) -> None:
        identity = self.stack.pop()
        if (
            self.find_storage is None
            or not isinstance(identity, tuple)
            or len(identity) < 2
            or identity[0] != "storage"
        ):
            refuse_malformed()
        self.push(_Storage(*self.find_storage(identity[1:])))

    def remember(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def recall(self, index: int) -> None:
        self.push(self.memo[index])


def check_pickle(content: IO[bytes] | bytes, find_storage: FindStorage | None = None) -> Any:
    """Check a pickle.

    Args:
        content: the pickle; a file is read up to the pickle's end.
        find_storage: returns a storage's numbers of bytes and of bytes per element, for torch's identity of it; None if
            storages are not expected.

    Returns:
        A stand-in for the content: plain values and lists as they are.

    Raises:
        RefusedPickleError: it is damaged, or would allocate or call what weights do not need.
    """
    try:
        return _Checker(find_storage).run(content)
    except CheckpointError:
        raise
    # of pickletools and of a stack with too few items
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, UnicodeError):
        refuse_malformed()


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
    name = storage_type.name.rpartition(".")[2] if isinstance(storage_type, _Global) else ""
    if name not in _STORAGES:
        refuse_malformed()
    return _STORAGES[name]


def check_key(key: Any) -> None:
    """Check that hashing a key takes no time or stack to speak of.

    Raises:
        RefusedPickleError: it is a tuple of many levels.
    """
    if isinstance(key, _Tuple) and (key.depth > _MAX_KEY_DEPTH or key.num_items > _MAX_KEY_ITEMS):
        refuse("has a deeply nested key, expected names of weights")


def _current_name(module: str, name: str) -> tuple[str, str]:
    """Return the names of Python 3, as torch does: pickles of protocol 2 have those of Python 2."""
    return NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))


def _as_list(value: Any) -> list[Any]:
    if type(value) is not list:
        refuse_malformed()
    return value


def _is_torch_type(full: str) -> bool:
    """Return whether this is a dtype, a type of storage or a type of tensor of torch, none of which is called."""
    package, _, name = full.rpartition(".")
    if package not in ("torch", "torch.storage", "torch.cuda", "torch._tensor", "torch.nn.parameter"):
        return False
    known = getattr(torch, name, None)
    return isinstance(known, torch.dtype) or name.endswith(("Storage", "Tensor")) or name == "Parameter"


def _make_tensor(checker: _Checker, arguments: Sequence[Any]) -> _Tensor:
    storage, offset, size, stride = arguments[:4]
    itemsize = storage.itemsize
    if len(arguments) > 6 and isinstance(arguments[6], _Global):  # of `_rebuild_tensor_v3`
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
    checker.num_tensors += 1
    if checker.num_tensors > MAX_TENSORS:
        refuse(f"holds more than {MAX_TENSORS:,} tensors; save the weights alone")
    return _Tensor()


def _make_parameter(_checker: _Checker, arguments: Sequence[Any]) -> Any:
    if not arguments or not isinstance(arguments[0], _Tensor):
        refuse_malformed()
    return arguments[0]


def _make_subclass(checker: _Checker, arguments: Sequence[Any]) -> Any:
    function, kind, inner, _ = arguments
    if not isinstance(function, _Global) or not isinstance(kind, _Global) or kind.name not in _TENSOR_TYPES:
        refuse_malformed()
    return checker.result_of(function.name, inner)


def _make_set(_checker: _Checker, arguments: Sequence[Any]) -> _Object:
    for item in _as_list(arguments[0]) if arguments else []:
        check_key(item)
    return _Object()


def _make_ordered_dict(_checker: _Checker, arguments: Sequence[Any]) -> dict[Any, Any]:
    for pair in _as_list(arguments[0]) if arguments else []:
        check_key(pair[0])
    return {}


def _make_counter(_checker: _Checker, arguments: Sequence[Any]) -> dict[Any, Any]:
    if arguments and not isinstance(arguments[0], dict):
        refuse_malformed()
    return {}


def _make_text_bytes(_checker: _Checker, arguments: Sequence[Any]) -> _Object:
    """Check the arguments of `bytearray` and of `_codecs.encode`, which writes bytes as text."""
    if arguments and not isinstance(arguments[0], str | bytes | _Object):
        refuse("holds an array of bytes of a given size, expected its content; save the weights alone")
    if any(encoding not in ("latin-1", "latin1", "iso-8859-1") for encoding in arguments[1:]):
        refuse_malformed()
    return _Object()


def _make_size(_checker: _Checker, arguments: Sequence[Any]) -> _Tuple:
    items = arguments[0] if arguments else ()
    if not all(type(item) is int for item in items):
        refuse_malformed()
    return _Tuple(tuple(items))


def _make_plain(_checker: _Checker, arguments: Sequence[Any]) -> _Object:
    if not all(isinstance(argument, str | int | float) for argument in arguments):
        refuse_malformed()
    return _Object()


_CALLS: Mapping[str, Callable[[_Checker, Sequence[Any]], Any]] = {
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
_Handler = Callable[[_Checker, Any], None]
# the instructions that torch's unpickler knows
_HANDLERS: Mapping[str, _Handler] = {
    "PROTO": lambda checker, _: None,
    "GLOBAL": _Checker.push_global,
    "REDUCE": _Checker.call,
    "NEWOBJ": _Checker.call,
    "BUILD": _Checker.build,
    "APPEND": _Checker.append,
    "APPENDS": _Checker.append_many,
    "SETITEM": _Checker.set_item,
    "SETITEMS": _Checker.set_items,
    "MARK": _Checker.mark,
    "TUPLE": lambda checker, _: checker.make_tuple(None),
    "EMPTY_TUPLE": lambda checker, _: checker.make_tuple(0),
    "TUPLE1": lambda checker, _: checker.make_tuple(1),
    "TUPLE2": lambda checker, _: checker.make_tuple(2),
    "TUPLE3": lambda checker, _: checker.make_tuple(3),
    "EMPTY_LIST": lambda checker, _: checker.push([]),
    "EMPTY_DICT": lambda checker, _: checker.push({}),
    "EMPTY_SET": lambda checker, _: checker.push(_Object()),
    "NONE": lambda checker, _: checker.push(None),
    "NEWTRUE": lambda checker, _: checker.push(True),
    "NEWFALSE": lambda checker, _: checker.push(False),
    **dict.fromkeys(
        ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING"), _Checker.push
    ),
    "BINPERSID": _Checker.load_storage,
    **dict.fromkeys(("BINPUT", "LONG_BINPUT"), _Checker.remember),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), _Checker.recall),
}
