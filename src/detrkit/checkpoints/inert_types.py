"""Types that training scripts store next to weights, and the harmless values that they are read as.

Numbers of NumPy become Python numbers, paths become text, dict-like configurations become dicts, and other harmless types
`Inert` objects. A type that is not listed here is refused by its name.
"""

import argparse
import struct
from collections import OrderedDict
from collections.abc import Callable
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

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
        # the text of a container could be longer than the memory
        return args[0] if args and isinstance(args[0], str) else ""


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


def new_list(*args: object) -> list[object]:
    """Return a list that the unpickler fills."""
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
    (new_list, ["collections.deque", "builtins.list"]),
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
# pairs of what a type is read as and the type's name, as `torch.serialization.safe_globals` takes them
READ_AS: list[tuple[Callable[..., Any], str]] = [(read_as, name) for read_as, names in _READ_AS for name in names]
