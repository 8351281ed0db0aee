"""Files of `torch.save` with content that torch does not write."""

import io
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import torch

MAGIC_NUMBER = 0x1950A86A20F9469CFC6C


class Stored:
    """Stands for a storage, which a pickle names."""

    def __init__(self, numel: int = 4, key: str = "0", kind: Any = torch.FloatStorage, view: object = None) -> None:
        self.numel = numel
        self.key = key
        self.kind = kind
        self.view = view


class Call:
    """Unpickled by calling a function, and then setting a state if there is one."""

    def __init__(self, function: Any, *args: object, state: object = None) -> None:
        self.reduced = (function, args) if state is None else (function, args, state)

    def __reduce__(self) -> Any:
        return self.reduced


def tensor(storage: Stored, offset: Any = 0, size: Any = (4,), stride: Any = (1,)) -> Call:
    """Return what is unpickled as a view of a storage."""
    return Call(torch._utils._rebuild_tensor_v2, storage, offset, size, stride, False, {})


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO, is_zip: bool) -> None:
        super().__init__(file, protocol=2)
        self.is_zip = is_zip

    def persistent_id(self, value: object) -> object:
        if not isinstance(value, Stored):
            return None
        identity = ("storage", value.kind, value.key, "cpu", value.numel)
        return identity if self.is_zip else (*identity, value.view)


def pickled(content: object, is_zip: bool = True) -> bytes:
    """Return a pickle in which `Stored` objects are named by a persistent id."""
    file = io.BytesIO()
    _Pickler(file, is_zip).dump(content)
    return file.getvalue()


def forge_zip(
    path: Path, content: object, storages: dict[str, bytes] | None = None, compression: int = zipfile.ZIP_STORED
) -> Path:
    """Write a file in today's format; a content that is bytes is the pickle itself."""
    storages = {"0": bytes(16)} if storages is None else storages
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("a/data.pkl", content if isinstance(content, bytes) else pickled(content))
        for key, data in storages.items():
            archive.writestr(f"a/data/{key}", data)
        archive.writestr("a/version", "3\n")
        archive.writestr("a/byteorder", "little")
    return path


def forge_sequence(path: Path, content: object, storage: bytes = bytes(16), system: object = None) -> Path:
    """Write a file in the format before PyTorch 1.6."""
    parts = [MAGIC_NUMBER, 1001, {"little_endian": True} if system is None else system, content, ["0"]]
    data = b"".join(pickled(part, is_zip=False) for part in parts)
    path.write_bytes(data + struct.pack("<q", len(storage) // 4) + storage)
    return path
