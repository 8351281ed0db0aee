"""What goes in and out of every stage, with shapes.

Input: a model that is about to run. Output: one `Passage` per part, in the order of the forward pass.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from torch import Tensor

from detrkit.explain.attention import calls_noted
from detrkit.models.detr import DETR
from detrkit.models.proposals import ProposedQueries

Shape = tuple[int, ...]

PARTS = (
    "backbone",
    "input_projection",
    "positions",
    "encoder",
    "queries",
    "decoder",
    "heads.class_head",
    "heads.box_head",
    "panoptic",
)
_MEANING = {
    "backbone": "a convolutional network turns pixels into feature maps, coarser and richer stage by stage; "
    "the last one goes on",
    "input_projection": "convolutions bring the channels down to the transformer's width; each cell becomes a token",
    "positions": "where each cell lies: added to queries and keys of the attention, since a set of tokens has no order",
    "encoder": "every token looks at every other; what comes out is called memory",
    "queries": "one per object that can be found: learned vectors, points or boxes, the same for every photo; or the "
    "encoder's best boxes",
    "decoder": "the queries, starting from zero, look at each other and at the memory; asked after every layer",
    "heads.class_head": "after every layer, for every query: a score per class and, where they share a softmax, last one "
    "for no object",
    "heads.box_head": "after every layer, for every query: centre, width and height; a sigmoid makes them 0 .. 1",
    "panoptic": "one mask per query, from its attention and the finer feature maps",
}
_CODE = {
    "backbone": "models/backbone.py",
    "input_projection": "models/pyramid.py",
    "positions": "models/positions.py",
    "encoder": "models/transformer.py: Encoder",
    "queries": "models/queries.py",
    "decoder": "models/transformer.py: Decoder",
    "heads.class_head": "models/heads.py: ClassHead",
    "heads.box_head": "models/heads.py: BoxHead",
    "panoptic": "models/panoptic.py",
}


@dataclass(frozen=True)
class Passage:
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
def passages_noted(model: DETR) -> Iterator[list[Passage]]:
    """Note what goes through every part while a model runs; the list is filled when the block ends."""
    absent = () if model.panoptic is not None else ("panoptic",)
    parts = [part for part in PARTS if part not in absent]
    modules = {part: model.get_submodule(part) for part in parts}
    passages: list[Passage] = []
    with calls_noted(list(modules.values())) as calls:
        yield passages
    noted = {part: calls[module] for part, module in modules.items() if module in calls}
    for part in PARTS:
        if part == "queries" and not isinstance(model.queries, ProposedQueries):  # a table: nothing goes in
            passages.append(_passage(part, {}, model.queries.weight))
        elif part == "positions" and model.config.has_pyramid:  # asked map by map
            given, _ = noted["encoder"]
            passages.append(_passage(part, {}, given["scene"].positions))
        elif part in noted:
            passages.append(_passage(part, *noted[part]))


def _passage(part: str, given: dict[str, Any], output: Any) -> Passage:
    takes = tuple((name, shape) for argument in given.items() for name, shape in _named_shapes(*argument))
    code = "models/proposals.py" if part == "queries" and takes else _CODE[part]
    return Passage(part, takes, tuple(_shapes(output)), _MEANING[part], code)


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
