"""Export to a ``.pt2`` file of `torch.export`, with the metadata as an extra file in it."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch.export import ExportedProgram

from detrkit.checkpoints.export_formats import METADATA_FILE
from detrkit.inference.engines.metadata import ExportMetadata
from detrkit.structures import Sample


def write_program(
    program: ExportedProgram, metadata: ExportMetadata, path: Path, calibration: Sequence[Sample] = ()
) -> None:
    """Write one file, without what `inference.engines.program.read_program` rejects: pickles, Python code and paths."""
    program._example_inputs = None  # they would be pickled
    program._guards_code = []  # checks of the inputs as Python source; the ranges of the axes are kept
    for node in program.graph.nodes:
        for note in ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn"):
            node.meta.pop(note, None)
    torch.export.save(program, path, extra_files={METADATA_FILE: metadata.to_text()})
