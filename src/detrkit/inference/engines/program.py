"""`.pt2` files of `torch.export`, computed by PyTorch.

torch builds Python code and calls functions by what such a file says, so that a file from anyone could run anything.
So every word of it is looked at first: only ATen operators that take no text, arithmetic of integers, plain names, and
weights that are not pickled; and torch is handed a copy with nothing else in it.
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

from detrkit.checkpoints.exported import METADATA_FILE
from detrkit.errors import CheckpointError
from detrkit.inference.engines.exported import ExportedEngine, ExportMetadata
from detrkit.inference.engines.onnx import first_line

_GRAPH = "models/model.json"
_LISTS = ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json")
_MARKS = ("archive_format", "archive_version", ".data/version", "byteorder", ".data/serialization_id")
_TENSOR = re.compile(r"data/(?:weights/weight|constants/tensor)_\d+")
_EXAMPLES = "data/sample_inputs/model.pt"  # pickled, where there are any
_MAX_BYTES_OF_JSON = 100_000_000

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
_HARMLESS_TEXTS = {"approximate", "rounding_mode", "padding_mode"}  # arguments; others name files


class ProgramSession:
    """A program that torch computes on the CPU."""

    def __init__(self, module: Any, metadata: ExportMetadata, source: object) -> None:
        self.module = module
        self.metadata = metadata
        self.source = source

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Compute once."""
        try:
            outputs = self.module(*(inputs[name] for name in self.metadata.input_names))
            return dict(zip(self.metadata.output_names, outputs, strict=True))
        except (RuntimeError, ValueError, TypeError, AssertionError) as error:
            raise CheckpointError(f"{self.source}: torch cannot compute it ({first_line(error)})") from None


def read_program(path: Path) -> ExportedEngine:
    """Open an exported `.pt2` file, after looking at every word of it.

    Raises:
        CheckpointError: the file is damaged, was not written by detrkit, or asks for more than a network needs.
    """
    try:
        members = _read_members(path)
        metadata = ExportMetadata.from_text(_text(members.pop(f"extra/{METADATA_FILE}", b"")), path)
        for name in _LISTS:
            _check_list(json.loads(members[name]))
        _check_graph(json.loads(members[_GRAPH]))
        program = torch.export.load(_archive(members))
        session = ProgramSession(program.module(), metadata, path)
    except CheckpointError:
        raise
    except Exception as error:  # zipfile, json and torch raise many kinds on malformed content
        raise CheckpointError(f"{path}: not readable as a .pt2 file ({first_line(error)}); export it again") from None
    return ExportedEngine(session, metadata, path)


def _read_members(path: Path) -> dict[str, bytes]:
    """The files in the archive, without the folder that they lie in."""
    members: dict[str, bytes] = {}
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            name = entry.filename.partition("/")[2]
            known = name in (_GRAPH, *_LISTS, *_MARKS, _EXAMPLES, f"extra/{METADATA_FILE}") or _TENSOR.fullmatch(name)
            if not known or name in members or entry.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"it holds {entry.filename!r}, which no network needs")
            if name.endswith(".json") and entry.file_size > _MAX_BYTES_OF_JSON:
                raise ValueError(f"{entry.filename!r} has {entry.file_size} bytes")
            members[name] = archive.read(entry)
    if members.get(_EXAMPLES):
        raise ValueError("it holds pickled examples, which could run code")
    return members


def _archive(members: Mapping[str, bytes]) -> io.BytesIO:
    """An archive with these files and nothing else, so that what was looked at is what is loaded."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            archive.writestr(f"model/{name}", content)
    buffer.seek(0)
    return buffer


def _check_list(content: Any) -> None:
    """See that no weight is pickled, and that each lies in the archive under a plain name."""
    for entry in content["config"].values():
        if entry["use_pickle"] is not False or not re.fullmatch(r"(?:weight|tensor)_\d+", entry["path_name"]):
            raise ValueError("a weight is pickled, which could run code")


def _check_graph(content: Any) -> None:
    """See that a graph only computes.

    Raises:
        ValueError: it says something that no exported network needs to say.
    """
    if content.get("guards_code"):
        raise ValueError("it holds Python code")
    for key, text in _texts(content):
        if key == "target":
            allowed = _is_harmless_operator(text)
        elif key == "expr_str":
            allowed = bool(_ARITHMETIC.fullmatch(text))
        elif key in ("in_spec", "out_spec"):
            allowed = bool(_STRUCTURE.fullmatch(text))
        else:
            allowed = bool(_NAME.fullmatch(text))
        if not allowed:
            raise ValueError(f"it says {text[:80]!r}, which no network needs")


def _texts(content: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every text in a JSON document, keys included, with the key that it stands under."""
    if isinstance(content, dict):
        for inner, value in content.items():
            yield "", inner
            yield from _texts(value, inner)
    elif isinstance(content, list):
        for value in content:
            yield from _texts(value, key)
    elif isinstance(content, str):
        yield key, content


def _is_harmless_operator(target: str) -> bool:
    """Whether a function only computes: ATen operators that take text could open files."""
    if _PYTHON_OPERATOR.fullmatch(target):
        return True
    match = _ATEN_OPERATOR.fullmatch(target)
    packet = getattr(torch.ops.aten, match[1], None) if match else None
    operator = getattr(packet, match[2], None) if match else None
    if not isinstance(operator, torch._ops.OpOverload):
        return False
    arguments = operator._schema.arguments
    return not any("str" in str(one.type) and one.name not in _HARMLESS_TEXTS for one in arguments)


def _text(content: bytes) -> str | None:
    return content.decode("utf-8") if content else None
