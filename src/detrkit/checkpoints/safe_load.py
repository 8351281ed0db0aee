"""`torch.load` for files that hold more than weights: harmless types are read as inert values, nothing is executed.

torch's ``weights_only`` unpickler calls only what it is given. For the types that training scripts store next to weights,
it is given substitutes: numbers of NumPy become Python numbers, paths become text, dict-like configurations become dicts,
and other harmless types `Inert` objects. Any type that is not listed here is refused by its name.
"""

import argparse
import re
import struct
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import torch

from detrkit._internal.text import first_line
from detrkit.errors import CheckpointError

_LOCK = threading.Lock()  # torch's list of allowed types is global
# codes of NumPy's dtypes and of `struct`
_NUMBERS = {
    **{"f2": "e", "f4": "f", "f8": "d", "b1": "?"},
    **{"i1": "b", "i2": "h", "i4": "i", "i8": "q", "u1": "B", "u2": "H", "u4": "I", "u8": "Q"},
}


class Inert:
    """Stands for an object of another type, which is not created."""

    def __init__(self, *args: object) -> None:
        self.args = args

    def __setstate__(self, state: object) -> None:
        """Keep the state, unread."""
        self.state = state


class _Dtype(Inert):
    """Stands for a `numpy.dtype`."""

    @property
    def format(self) -> str | None:
        """Format of `struct`, None for other dtypes than numbers."""
        code = self.args[0] if self.args else None
        state = getattr(self, "state", None)
        order = state[1] if isinstance(state, tuple) and len(state) > 1 else "<"
        number = _NUMBERS.get(code) if isinstance(code, str) else None
        return number and (">" if order == ">" else "<") + number


class _Mapping:
    """Stands for a type derived from dict."""

    def __new__(cls, *args: object) -> Any:
        # one that the unpickler fills, with attributes
        return OrderedDict()


class _Text:
    """Stands for a type derived from str."""

    def __new__(cls, *args: object) -> Any:
        return str(args[0]) if args else ""


def _number(dtype: object, data: object = None) -> object:
    """Return a number of NumPy as one of Python."""
    format = dtype.format if isinstance(dtype, _Dtype) else None
    if format is None or not isinstance(data, bytes) or len(data) != struct.calcsize(format):
        return Inert(dtype, data)
    return struct.unpack(format, data)[0]


def _posix_path(*parts: str) -> str:
    return str(PurePosixPath(*parts))


def _windows_path(*parts: str) -> str:
    return str(PureWindowsPath(*parts))


def _dict(*args: object) -> dict[object, object]:
    return {}


def _list(*args: object) -> list[object]:
    return []


def _names(module: str, names: str) -> list[str]:
    return [f"{module}.{name}" for name in names.split()]


_READ_AS: tuple[tuple[Callable[..., Any], list[str]], ...] = (
    (argparse.Namespace, ["argparse.Namespace", "types.SimpleNamespace"]),
    (_number, ["numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"]),
    (_Dtype, ["numpy.dtype"]),
    (_posix_path, [
        *_names("pathlib", "PosixPath PurePosixPath Path PurePath"),
        *_names("pathlib._local", "PosixPath PurePosixPath Path PurePath"),
    ]),
    (_windows_path, [
        *_names("pathlib", "WindowsPath PureWindowsPath"),
        *_names("pathlib._local", "WindowsPath PureWindowsPath"),
    ]),
    (frozenset, ["builtins.frozenset"]),
    (_dict, ["collections.defaultdict"]),
    (_list, ["collections.deque", "builtins.list"]),
    (_Text, ["torch.torch_version.TorchVersion", "numpy.str_", "builtins.str"]),
    (_Mapping, [
        "builtins.dict", "yacs.config.CfgNode", "fvcore.common.config.CfgNode", "detectron2.config.config.CfgNode",
        "easydict.EasyDict", "addict.addict.Dict", "munch.Munch", "box.box.Box", "mmengine.config.config.ConfigDict",
        "mmcv.utils.config.ConfigDict", "pytorch_lightning.utilities.parsing.AttributeDict",
        "lightning.pytorch.utilities.parsing.AttributeDict", "lightning_fabric.utilities.data.AttributeDict",
        "lightning.fabric.utilities.data.AttributeDict", "util.slconfig.ConfigDict",
    ]),
    (Inert, [
        *_names("builtins", "int float bool tuple bytes object slice range NoneType"),
        *_names("datetime", "datetime date time timedelta timezone"), "zoneinfo.ZoneInfo", "time.struct_time",
        "decimal.Decimal", "fractions.Fraction", "uuid.UUID", "re._compile", "typing.Any", "copyreg._reconstructor",
        *_names("numpy", (
            "ndarray bool_ bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64 longdouble "
            "complex64 complex128 datetime64 timedelta64 generic"
        )),
        *_names("numpy.core.multiarray", "_reconstruct"), *_names("numpy._core.multiarray", "_reconstruct"),
        *_names("numpy.core.numeric", "_frombuffer"), *_names("numpy._core.numeric", "_frombuffer"),
        *_names("numpy.random._pickle", "__randomstate_ctor __generator_ctor __bit_generator_ctor"),
        *_names("numpy.random._mt19937", "MT19937"), *_names("numpy.random._pcg64", "PCG64"),
        *_names("numpy.random.bit_generator", "__pyx_unpickle_SeedSequence SeedSequence"),
        *_names("torch", "contiguous_format channels_last channels_last_3d preserve_format memory_format dtype layout"),
        *_names("omegaconf.dictconfig", "DictConfig"), *_names("omegaconf.listconfig", "ListConfig"),
        *_names("omegaconf.base", "ContainerMetadata Metadata SCMode"),
        *_names("omegaconf.nodes", (
            "AnyNode StringNode IntegerNode FloatNode BooleanNode EnumNode PathNode BytesNode InterpolationResultNode"
        )),
        *_names("mmengine.config.config", "Config"), *_names("mmengine.logging.history_buffer", "HistoryBuffer"),
        *_names("util.slconfig", "SLConfig"),
    ]),
)  # fmt: skip
_ALLOWED = [(read_as, name) for read_as, names in _READ_AS for name in names]


def load_torch_file(path: Path) -> Any:
    """Read a file of `torch.save` to the CPU.

    Raises:
        CheckpointError: it is missing, damaged, or holds a type that is not read.
    """
    try:
        with _LOCK, warnings.catch_warnings(), torch.serialization.safe_globals(_ALLOWED):  # type: ignore[arg-type]  # pairs with a name are allowed
            warnings.simplefilter("ignore")  # of other pickle protocols, some of which can be read
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for malformed and for forbidden content
        raise CheckpointError(f"{path}: {_explain(path, error)}") from None


def _explain(path: Path, error: Exception) -> str:
    text = str(error)
    if found := re.search(r"GLOBAL (\S+)", text):
        kind = found[1]
        return (
            f"holds an object of type {kind}, which is not read, as that could run code of the file; where this type is "
            "known, save the weights alone: torch.save(model.state_dict(), 'weights.pth')"
        )
    if "Unsupported operand" in text:
        return (
            "is in another pickle protocol than torch.save's, which cannot be read safely; save it with "
            "torch.save(model.state_dict(), 'weights.pth')"
        )
    if "TorchScript" in text:
        return "is a TorchScript program, expected a state dict; save model.state_dict() with torch.save instead"
    reason = first_line(error)
    if not path.is_file():
        return f"not readable as weights ({reason}); check the path"
    if "pickle" in text or text.startswith("Weights only") or "magic number" in text:  # torch's text advises to run it
        reason = "not written by torch.save, or more than tensors and plain values in it"
    return f"not readable as weights ({reason}); expected .safetensors, or a state dict saved by torch"
