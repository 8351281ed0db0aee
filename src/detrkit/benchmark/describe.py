"""A model described: parts, parameters, GFLOPs, and the shape at every stage."""

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.table import Table
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from detrkit._internal.provenance import refuse_foreign_overwrite
from detrkit._internal.text import plain_console
from detrkit.checkpoints.load import read_checkpoint
from detrkit.config.model import ModelConfig
from detrkit.errors import ConfigError
from detrkit.explain.figures import SUFFIXES, write_stages_figure
from detrkit.explain.stages import StageIO, capture_stages
from detrkit.models.detr import DETR
from detrkit.models.presets import PRESETS, model_from_config, preset_config


@dataclass(frozen=True)
class Stage:
    """One row of the description."""

    passage: StageIO
    parameters: int
    gigaflops: float

    @property
    def shapes(self) -> str:
        """What it gives, a line each."""
        return "\n".join(str(shape) for shape in self.passage.outputs)


def describe_model(name: str, size: str, picture: Path | None = None) -> list[Stage]:
    """Print the description of a preset or a checkpoint for photos of a size; draw it if asked.

    Raises:
        ConfigError: the size or the picture's name is malformed.
        DetrkitError: no such model.
    """
    if picture is not None:
        if picture.suffix.lower() not in SUFFIXES:
            raise ConfigError(
                f"--output: found {picture.name!r}, expected the name of a picture: {', '.join(SUFFIXES)}"
            )
        refuse_foreign_overwrite(picture)
    is_preset = not Path(name).exists() and (name in PRESETS or "/" not in name)
    config = preset_config(name) if is_preset else read_checkpoint(name).config
    height, width = parse_size(size)
    stages = describe_stages(config, (height, width))
    table = Table(title=f"{name}, a photo of {height} x {width} px", title_justify="left")
    for heading in ("part", "gives", "parameters", "GFLOPs"):
        table.add_column(heading, justify="left" if heading in ("part", "gives") else "right")
    for stage in stages:
        table.add_row(stage.passage.part, stage.shapes, f"{stage.parameters:,}", f"{stage.gigaflops:.2f}")
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
    if picture is not None:
        passages = [stage.passage for stage in stages]
        image = (1, config.in_channels, height, width)
        write_stages_figure(passages, image, f"{name}: shapes for a photo of {height} x {width} px", picture)
        console.print(f"picture: {picture}", soft_wrap=True)
    return stages


@torch.no_grad()
def describe_stages(config: ModelConfig, size: tuple[int, int]) -> list[Stage]:
    """Run a model without numbers (on the meta device) and note shapes and FLOPs of its parts."""
    model = _on_meta(config).requires_grad_(False)  # the counter trips over views of trained parameters
    # fused attention is not counted on the meta device; its plain form is, and does the same work
    with (
        capture_stages(model) as passages,
        FlopCounterMode(display=False, depth=8) as counter,
        sdpa_kernel(SDPBackend.MATH),
    ):
        model(torch.empty(1, config.in_channels, *size, device="meta"))
    counts = {re.sub(r"^DETR\.", "", name): sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
    return [
        Stage(
            passage=passage,
            parameters=sum(p.numel() for p in model.get_submodule(passage.part).parameters()),
            gigaflops=counts.get(passage.part, 0) / 1e9,
        )
        for passage in passages
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
    if not match or not all(int(side) for side in match.groups()):
        raise ConfigError(f"--size: found {text!r}, expected HEIGHTxWIDTH in pixels, for example 800x1066")
    return int(match[1]), int(match[2])
