"""Check of a pickle before torch reads it: what it would allocate, call and hash.

torch's ``weights_only`` unpickler calls no functions but its own, and some of those take any amount of memory: a view that
passes the end of its storage enlarges it, ``torch.Tensor`` and ``bytearray`` take a size, and keys of nested tuples are
hashed recursively. `check_pickle` follows the same instructions with stand-ins, and allocates nothing.
"""

import io
import pickletools
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any

from detrkit.checkpoints.pickle_values import (
    AnyObject,
    AnyTensor,
    CountedTuple,
    Global,
    Storage,
    as_list,
    check_global,
    check_key,
    refuse,
    refuse_malformed,
    result_of,
)
from detrkit.errors import CheckpointError

MAX_INSTRUCTIONS = 5_000_000  # about 40 per tensor
MAX_TENSORS = 100_000  # in one file; the largest published detectors have about 1,500

# persistent id without "storage" -> storage
FindStorage = Callable[[Sequence[Any]], tuple[int, int]]


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
        check_global(full)
        self.push(Global(full))

    def call(self, _argument: Any) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if not isinstance(function, Global) or not isinstance(arguments, tuple):
            refuse_malformed()
        made = result_of(function.name, arguments)
        if isinstance(made, AnyTensor) and not any(made is argument for argument in arguments):  # not of a parameter
            self.num_tensors += 1
            if self.num_tensors > MAX_TENSORS:
                refuse(f"holds more than {MAX_TENSORS:,} tensors; save the weights alone")
        self.push(made)

    def build(self, _argument: Any) -> None:
        self.stack.pop()
        if not isinstance(self.stack[-1], AnyObject | dict):  # a tensor's state would replace its storage
            refuse_malformed()

    def append(self, _argument: Any) -> None:
        item = self.stack.pop()
        as_list(self.stack[-1]).append(item)

    def append_many(self, _argument: Any) -> None:
        items = self.pop_to_mark()
        as_list(self.stack[-1]).extend(items)

    def set_item(self, _argument: Any) -> None:
        self.stack.pop()
        check_key(self.stack.pop())

    def set_items(self, _argument: Any) -> None:
        for key in self.pop_to_mark()[::2]:
            check_key(key)

    def make_tuple(self, size: int | None) -> None:
        if size is None:
            self.push(CountedTuple(self.pop_to_mark()))
            return
        if len(self.stack) < size:
            refuse_malformed()
        items = self.stack[len(self.stack) - size :]
        del self.stack[len(self.stack) - size :]
        self.push(CountedTuple(items))

    def load_storage(self, _argument: Any) -> None:
        identity = self.stack.pop()
        if (
            self.find_storage is None
            or not isinstance(identity, tuple)
            or len(identity) < 2
            or identity[0] != "storage"
        ):
            refuse_malformed()
        self.push(Storage(*self.find_storage(identity[1:])))

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


def _current_name(module: str, name: str) -> tuple[str, str]:
    """Return the names of Python 3, as torch does: pickles of protocol 2 have those of Python 2."""
    return NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))


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
    "EMPTY_SET": lambda checker, _: checker.push(AnyObject()),
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
