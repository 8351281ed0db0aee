"""An export format from outside the package: weights and program in one NumPy archive."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch.export import ExportedProgram

from detrkit.inference.engines.exported import ExportedEngine
from detrkit.inference.engines.metadata import ExportMetadata
from detrkit.structures import Sample


class ToySession:
    def __init__(self, program: ExportedProgram, output_names: tuple[str, ...]) -> None:
        self.module = program.module(check_guards=False)
        self.output_names = output_names

    def run(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return dict(zip(self.output_names, self.module(*inputs.values()), strict=True))


def write_toy(
    program: ExportedProgram, metadata: ExportMetadata, path: Path, calibration: Sequence[Sample] = ()
) -> None:
    content = io.BytesIO()
    torch.export.save(program, content)
    with path.open("wb") as file:
        np.savez(file, metadata=metadata.to_text(), program=np.frombuffer(content.getvalue(), dtype=np.uint8))


def read_toy(path: Path) -> ExportedEngine:
    with np.load(path) as archive:
        metadata = ExportMetadata.from_text(str(archive["metadata"]), path)
        program = torch.export.load(io.BytesIO(archive["program"].tobytes()))
    return ExportedEngine(ToySession(program, metadata.output_names), metadata, path)
