"""A model described: parts, parameters, GFLOPs, and the shape at every stage."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from detrkit.checkpoints.source import read_checkpoint
from detrkit.errors import ConfigError
from detrkit.models.config import ModelConfig
from detrkit.models.detr import DETR
from detrkit.models.presets import PRESETS, model_from_config, preset_config
from detrkit.terminal import plain_console

_PARTS = (
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


@dataclass(frozen=True)
class Stage:
    """One row of the description."""

    part: str
    shapes: str
    parameters: int
    gigaflops: float


def describe_model(name: str, size: str) -> list[Stage]:
    """Print the description of a preset or a checkpoint for photos of a size.

    Raises:
        ConfigError: the size is malformed.
        DetrkitError: no such model.
    """
    is_preset = not Path(name).exists() and (name in PRESETS or "/" not in name)
    config = preset_config(name) if is_preset else read_checkpoint(name).config
    height, width = parse_size(size)
    stages = describe_stages(config, (height, width))
    table = Table(title=f"{name}, a photo of {height} x {width} px", title_justify="left")
    for heading in ("part", "gives", "parameters", "GFLOPs"):
        table.add_column(heading, justify="left" if heading in ("part", "gives") else "right")
    for stage in stages:
        table.add_row(stage.part, stage.shapes, f"{stage.parameters:,}", f"{stage.gigaflops:.2f}")
    table.add_section()
    table.add_row(
        "all", "", f"{sum(s.parameters for s in stages):,}", f"{sum(s.gigaflops for s in stages):.2f}", style="bold"
    )
    console = plain_console()
    console.print(table)
    trainable = sum(p.numel() for p in _on_meta(config).parameters() if p.requires_grad)
    console.print(
        f"{trainable:,} parameters are trained. One photo in the batch; docs/notation.md names the axes.\n"
        "One multiplication and one addition are two FLOPs; attention is counted.",
    )
    return stages


@torch.no_grad()
def describe_stages(config: ModelConfig, size: tuple[int, int]) -> list[Stage]:
    """Run a model without numbers (on the meta device) and note shapes and FLOPs of its parts."""
    model = _on_meta(config).requires_grad_(False)  # the counter trips over views of trained parameters
    shapes: dict[str, str] = {"queries": str(tuple(model.queries.weight.shape))}

    def note(part: str) -> Any:
        """Make a hook that notes the shape of what a part gives."""

        def hook(_module: nn.Module, _inputs: object, output: Tensor | list[Tensor]) -> None:
            levels = output if isinstance(output, list) else [output]
            shapes[part] = "\n".join(str(tuple(level.shape)) for level in levels)

        return hook

    parts = {part: model.get_submodule(part) for part in _PARTS if part != "panoptic" or model.panoptic is not None}
    for part, module in parts.items():
        module.register_forward_hook(note(part))
    # fused attention is not counted on the meta device; its plain form is, and does the same work
    with FlopCounterMode(display=False, depth=8) as counter, sdpa_kernel(SDPBackend.MATH):
        model(torch.empty(1, config.in_channels, *size, device="meta"))
    counts = {re.sub(r"^DETR\.", "", name): sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
    return [
        Stage(
            part=part,
            shapes=shapes[part],
            parameters=sum(p.numel() for p in module.parameters()),
            gigaflops=counts.get(part, 0) / 1e9,
        )
        for part, module in parts.items()
    ]


def _on_meta(config: ModelConfig) -> DETR:
    with torch.device("meta"):
        return model_from_config(config).eval()


def parse_size(text: str) -> tuple[int, int]:
    """Read HEIGHTxWIDTH.

    Raises:
        ConfigError: it is something else.
    """
    match = re.fullmatch(r"(\d{2,5})x(\d{2,5})", text.strip().lower())
    if not match:
        raise ConfigError(f"--size: found {text!r}, expected HEIGHTxWIDTH in pixels, for example 800x1066")
    return int(match[1]), int(match[2])
