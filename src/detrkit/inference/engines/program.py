"""`.pt2` files of `torch.export`, run by PyTorch.

Loading such a file makes torch generate Python code and call functions named in it, so an untrusted file could run
anything. Therefore every string in it is checked against an allow list first: ATen operators without string arguments,
integer arithmetic, plain names, unpickled weights. torch loads a copy that contains nothing else.
"""

import io
import json
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from detrkit._internal.text import first_line
from detrkit.checkpoints.export_formats import METADATA_FILE
from detrkit.errors import CheckpointError
from detrkit.inference.engines.exported import ExportedEngine
from detrkit.inference.engines.metadata import ExportMetadata

_GRAPH = "models/model.json"
_WEIGHT_LISTS = ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json")
_VERSION_FILES = ("archive_format", "archive_version", ".data/version", "byteorder", ".data/serialization_id")
_TENSOR_FILE = re.compile(r"data/(?:weights/weight|constants/tensor)_\d+")
_EXAMPLES = "data/sample_inputs/model.pt"  # pickled, if present
_KNOWN_FILES = (_GRAPH, *_WEIGHT_LISTS, *_VERSION_FILES, _EXAMPLES, f"extra/{METADATA_FILE}")
_MAX_JSON_BYTES = 100_000_000

_NAME = re.compile(r"[\w.+-]*", re.ASCII)
_ARITHMETIC = re.compile(
    r"(?:Symbol\('s\d+'(?:, (?:positive|integer|nonnegative)=True)*\)|Integer\(-?\d+\)"
    r"|(?:Add|Mul|FloorDiv|CleanDiv|Mod|Max|Min)(?=\()|[(), ])*"
)
_STRUCTURE = re.compile(
    r'(?:"(?:type|context|children_spec|builtins\.(?:tuple|dict|list)|null|\[\])"|null|1|[][{}:, ])*'
)
_PYTHON_OPERATOR = re.compile(r"_operator\.(?:add|sub|mul|floordiv|mod|neg|getitem|eq|ne|lt|le|gt|ge)")
_ATEN_OPERATOR = re.compile(r"torch\.ops\.aten\.(\w+)\.(\w+)", re.ASCII)
_SAFE_STRING_ARGUMENTS = {"approximate", "rounding_mode", "padding_mode"}  # others could be file names


class ProgramSession:
    """A program run by torch on the CPU."""

    def __init__(self, module: Any, metadata: ExportMetadata, source: object) -> None:
        self.module = module
        self.metadata = metadata
        self.source = source

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run the network."""
        try:
            outputs = self.module(*(inputs[name] for name in self.metadata.input_names))
            return dict(zip(self.metadata.output_names, outputs, strict=True))
        except (RuntimeError, ValueError, TypeError, AssertionError) as error:
            raise CheckpointError(f"{self.source}: torch cannot run it ({first_line(error)})") from None


def read_program(path: Path) -> ExportedEngine:
    """Open an exported `.pt2` file, after checking every string in it.

    Raises:
        CheckpointError: the file is damaged, was not written by detrkit, or contains more than a network needs.
    """
    try:
        members = _read_members(path)
        metadata = ExportMetadata.from_text(_text(members.pop(f"extra/{METADATA_FILE}", b"")), path)
        for name in _WEIGHT_LISTS:
            _check_weight_list(json.loads(members[name]))
        _check_graph(json.loads(members[_GRAPH]))
        program = torch.export.load(_archive(members))
        session = ProgramSession(program.module(), metadata, path)
    except CheckpointError:
        raise
    except Exception as error:  # zipfile, json and torch raise many types on malformed content
        raise CheckpointError(f"{path}: not readable as a .pt2 file ({first_line(error)}); export it again") from None
    return ExportedEngine(session, metadata, path)


def _read_members(path: Path) -> dict[str, bytes]:
    """Read the files in the archive, by their names without the top folder."""
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


def _archive(members: Mapping[str, bytes]) -> io.BytesIO:
    """Write an archive of these files alone, so that nothing unchecked is loaded."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            archive.writestr(f"model/{name}", content)
    buffer.seek(0)
    return buffer


def _check_weight_list(content: Any) -> None:
    """Check that no weight is pickled, and that each is a plain file in the archive."""
    for entry in content["config"].values():
        if entry["use_pickle"] is not False or not re.fullmatch(r"(?:weight|tensor)_\d+", entry["path_name"]):
            raise ValueError("a weight is pickled, which could run code")


def _check_graph(content: Any) -> None:
    """Check that a graph only computes.

    Raises:
        ValueError: it contains a string that no exported network needs.
    """
    if content.get("guards_code"):
        raise ValueError("it contains Python code")
    for key, text in _strings(content):
        if key == "target":
            allowed = _is_safe_operator(text)
        elif key == "expr_str":
            allowed = bool(_ARITHMETIC.fullmatch(text))
        elif key in ("in_spec", "out_spec"):
            allowed = bool(_STRUCTURE.fullmatch(text))
        else:
            allowed = bool(_NAME.fullmatch(text))
        if not allowed:
            raise ValueError(f"unexpected string {text[:80]!r}")


def _strings(content: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Iterate over all strings of a JSON document, including keys, each with the key it is stored under."""
    if isinstance(content, dict):
        for inner, value in content.items():
            yield "", inner
            yield from _strings(value, inner)
    elif isinstance(content, list):
        for value in content:
            yield from _strings(value, key)
    elif isinstance(content, str):
        yield key, content


def _is_safe_operator(target: str) -> bool:
    """Return whether a function only computes; ATen operators with string arguments could open files."""
    if _PYTHON_OPERATOR.fullmatch(target):
        return True
    match = _ATEN_OPERATOR.fullmatch(target)
    packet = getattr(torch.ops.aten, match[1], None) if match else None
    operator = getattr(packet, match[2], None) if match else None
    if not isinstance(operator, torch._ops.OpOverload):
        return False
    arguments = operator._schema.arguments
    return not any("str" in str(one.type) and one.name not in _SAFE_STRING_ARGUMENTS for one in arguments)


def _text(content: bytes) -> str | None:
    return content.decode("utf-8") if content else None
