"""Record the input and output shapes of the parts of a model during a forward pass."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from torch import Tensor, nn

from detrkit.config.model import ModelConfig
from detrkit.explain.stage_descriptions import describe_part
from detrkit.models.attention.recording import capture_calls
from detrkit.models.detr import DETR
from detrkit.models.queries.mixed import MixedQueries
from detrkit.models.queries.two_stage import EncoderQueries

Shape = tuple[int, ...]

PARTS = (
    "backbone",
    "neck.projection",
    "neck.positions",
    "encoder",
    "query_source",
    "decoder",
    "heads.class_head",
    "heads.box_head",
    "mask_head",
)


@dataclass(frozen=True)
class StageIO:
    """Input and output shapes of one part of the model.

    Attributes:
        part: name of the module within the model.
        inputs: shapes of the input tensors, by parameter name.
        outputs: shapes of the output tensors.
        description: what the part does, in a sentence.
        file: source file of the part, relative to the package.
    """

    part: str
    inputs: tuple[tuple[str, Shape], ...]
    outputs: tuple[Shape, ...]
    description: str
    file: str


@contextmanager
def capture_stages(model: DETR) -> Iterator[list[StageIO]]:
    """Record the shapes of every part, in the order of the forward pass; the list is filled at the end of the context."""
    absent: tuple[str, ...] = () if model.mask_head is not None else ("mask_head",)
    if model.config.is_hybrid or model.config.is_vit:
        absent += ("neck.positions",)  # the encoder, or the backbone, has its own
    modules = {part: model.get_submodule(part) for part in PARTS if part not in absent}
    stages: list[StageIO] = []
    with capture_calls(list(modules.values())) as calls:
        yield stages
    for part, module in modules.items():
        if part == "query_source" and not isinstance(
            module, EncoderQueries | MixedQueries
        ):  # embeddings without an input
            stages.append(_stage(model.config, part, module, {}, module.get_parameter("weight")))
        elif part == "neck.positions" and model.config.is_multi_scale:  # called once per feature map
            arguments, _ = calls[modules["encoder"]]
            stages.append(_stage(model.config, part, module, {}, arguments["features"].positions))
        elif module in calls:
            stages.append(_stage(model.config, part, module, *calls[module]))


def _stage(config: ModelConfig, part: str, module: nn.Module, arguments: dict[str, Any], output: Any) -> StageIO:
    inputs = tuple((name, shape) for argument in arguments.items() for name, shape in _named_shapes(*argument))
    return StageIO(part, inputs, tuple(_shapes(output)), describe_part(part, config), source_file(module))


def source_file(module: nn.Module) -> str:
    """Return the source file of a module, or of the layers of a stack of layers, relative to the package."""
    layers = dict(module.named_children()).get("layers")
    kind = type(layers[0] if isinstance(layers, nn.ModuleList) and len(layers) else module)
    return kind.__module__.removeprefix("detrkit.").replace(".", "/") + ".py"


def _named_shapes(name: str, value: Any) -> list[tuple[str, Shape]]:
    """Return the shapes of the tensors in an argument, by its name or by the names of its fields."""
    if not is_dataclass(value):
        return [(name, shape) for shape in _shapes(value)]
    return [(field.name, shape) for field in fields(value) for shape in _shapes(getattr(value, field.name))]


def _shapes(value: Any) -> list[Shape]:
    if isinstance(value, Tensor):
        return [tuple(value.shape)]
    if is_dataclass(value):
        return [shape for field in fields(value) for shape in _shapes(getattr(value, field.name))]
    return [shape for item in value for shape in _shapes(item)] if isinstance(value, list | tuple) else []
