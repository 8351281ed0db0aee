"""What goes in and out of every stage, with shapes.

Input: a model that is about to run. Output: one `Passage` per part, in the order of the forward pass.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from torch import Tensor

from detrkit.config.model import ModelConfig
from detrkit.explain.stage_descriptions import code_of, describe_part
from detrkit.models.attention.recording import capture_calls
from detrkit.models.detr import DETR
from detrkit.models.queries.two_stage import TwoStageQueries

Shape = tuple[int, ...]

PARTS = (
    "backbone",
    "input_projection",
    "positions",
    "encoder",
    "query_source",
    "decoder",
    "heads.class_head",
    "heads.box_head",
    "mask_head",
)


@dataclass(frozen=True)
class StageIO:
    """A stage of the forward pass.

    Attributes:
        part: name of the module within the model.
        takes: shapes of the tensors that come in, by the names in its signature.
        gives: shapes of the tensors that come out.
        meaning: what it does, in a sentence.
        code: where to read it.
    """

    part: str
    takes: tuple[tuple[str, Shape], ...]
    gives: tuple[Shape, ...]
    meaning: str
    code: str


@contextmanager
def capture_stage_io(model: DETR) -> Iterator[list[StageIO]]:
    """Note what goes through every part while a model runs; the list is filled when the block ends."""
    absent = () if model.mask_head is not None else ("mask_head",)
    parts = [part for part in PARTS if part not in absent]
    modules = {part: model.get_submodule(part) for part in parts}
    passages: list[StageIO] = []
    with capture_calls(list(modules.values())) as calls:
        yield passages
    noted = {part: calls[module] for part, module in modules.items() if module in calls}
    for part in PARTS:
        if part == "query_source" and not isinstance(model.query_source, TwoStageQueries):  # a table: nothing goes in
            passages.append(_passage(model.config, part, {}, model.query_source.weight))
        elif part == "positions" and model.config.has_pyramid:  # asked map by map
            given, _ = noted["encoder"]
            passages.append(_passage(model.config, part, {}, given["scene"].positions))
        elif part in noted:
            passages.append(_passage(model.config, part, *noted[part]))


def _passage(config: ModelConfig, part: str, given: dict[str, Any], output: Any) -> StageIO:
    takes = tuple((name, shape) for argument in given.items() for name, shape in _named_shapes(*argument))
    return StageIO(part, takes, tuple(_shapes(output)), describe_part(part, config), code_of(part, config))


def _named_shapes(name: str, value: Any) -> list[tuple[str, Shape]]:
    """Shapes in an argument, by its name, or by those of its fields."""
    if not is_dataclass(value):
        return [(name, shape) for shape in _shapes(value)]
    return [(one.name, shape) for one in fields(value) for shape in _shapes(getattr(value, one.name))]


def _shapes(value: Any) -> list[Shape]:
    if isinstance(value, Tensor):
        return [tuple(value.shape)]
    if is_dataclass(value):
        return [shape for one in fields(value) for shape in _shapes(getattr(value, one.name))]
    return [shape for each in value for shape in _shapes(each)] if isinstance(value, list | tuple) else []
