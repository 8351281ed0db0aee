"""`.pt2` files of `torch.export`, run by PyTorch.

The files are untrusted: `program_check` looks at everything in them before torch loads a copy that contains nothing else.
"""

import io
import logging
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from detrkit._internal.text import first_line
from detrkit.checkpoints.export_formats import METADATA_FILE
from detrkit.errors import CheckpointError
from detrkit.inference.engines.exported import ExportedEngine
from detrkit.inference.engines.metadata import ExportMetadata
from detrkit.inference.engines.program_check import check_members, check_memory, read_members


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
        members = read_members(path)
        metadata = ExportMetadata.from_text(_text(members.pop(f"extra/{METADATA_FILE}", b"")), path)
        check_members(members)
        with _without_logs(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch 2.11 about tensors that wrap read-only bytes
            program = torch.export.load(_archive(members))
        check_memory(program)
        session = ProgramSession(program.module(), metadata, path)
    except CheckpointError:
        raise
    except Exception as error:  # zipfile, json and torch raise many types on malformed content
        raise CheckpointError(f"{path}: not readable as a .pt2 file ({first_line(error)}); export it again") from None
    return ExportedEngine(session, metadata, path)


@contextmanager
def _without_logs() -> Iterator[None]:
    """Keep torch from logging stack traces of malformed files; the error that follows says what is wrong."""
    logger = logging.getLogger("torch.export")
    was_disabled, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = was_disabled


def _archive(members: Mapping[str, bytes]) -> io.BytesIO:
    """Write an archive of these files alone, so that nothing unchecked is loaded."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            archive.writestr(f"model/{name}", content)
    buffer.seek(0)
    return buffer


def _text(content: bytes) -> str | None:
    return content.decode("utf-8") if content else None
