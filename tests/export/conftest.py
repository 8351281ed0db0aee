"""A model, its traced programs and its exported files, shared by the tests of the formats; the exports are slow."""

import copy
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch

from detrkit.checkpoints.export_formats import EXPORT_FORMATS
from detrkit.models.detr import DETR
from tests.export.models import metadata_of, small_model, trace


@pytest.fixture(scope="session")
def model() -> DETR:
    return small_model()


@pytest.fixture(scope="session")
def program_of(model: DETR) -> Callable[[bool], torch.export.ExportedProgram]:
    """A function from `postprocess` to the traced model."""
    return cache(lambda postprocess: trace(model, postprocess))


@pytest.fixture(scope="session")
def exported(
    model: DETR,
    program_of: Callable[[bool], torch.export.ExportedProgram],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., Path]:
    """A function from a format, and whether post-processing is included, to the exported model."""
    folder = tmp_path_factory.mktemp("exported")

    @cache
    def export(format: str, postprocess: bool = False) -> Path:
        path = folder / f"{format}-{postprocess}{EXPORT_FORMATS[format].suffix}"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch 2.11 about itself
            program = copy.deepcopy(program_of(postprocess))  # writers may change it
        EXPORT_FORMATS[format].write(program, metadata_of(model, postprocess=postprocess), path)
        return path

    return export
