"""Describe a model: parts, parameters, FLOPs and output shapes."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from detrkit.benchmark.image_size import usual_size
from detrkit.checkpoints.load import load_checkpoint
from detrkit.checkpoints.named_model import NamedModel
from detrkit.config.model import ModelConfig
from detrkit.errors import ConfigError, arg, import_optional
from detrkit.explain.stages import StageIO, capture_stages
from detrkit.models.build import model_without_memory
from detrkit.models.presets import PRESETS, preset_config


@dataclass(frozen=True)
class StageDescription:
    """One part of a model.

    Attributes:
        io: input and output shapes.
        num_parameters: number of parameters.
        gflops: billions of floating-point operations; a multiplication and an addition are two.
    """

    io: StageIO
    num_parameters: int
    gflops: float

    @property
    def part(self) -> str:
        """Name of the module within the model."""
        return self.io.part


@dataclass(frozen=True, repr=False)
class ModelDescription:
    """Parts of a model for images of one size.

    Attributes:
        name: name of the model's source.
        config: configuration of the model.
        size: (height, width) of the image in pixels.
        stages: parts in the order of the forward pass.
        num_parameters: number of parameters of all parts, with small ones that are no stage, such as heads of the quality.
        num_trainable: number of them that are trained.
        gflops: billions of floating-point operations for one image, attention included.
    """

    name: str
    config: ModelConfig
    size: tuple[int, int]
    stages: tuple[StageDescription, ...]
    num_parameters: int
    num_trainable: int
    gflops: float

    def __repr__(self) -> str:
        height, width = self.size
        return (
            f"ModelDescription({self.name!r}, {height} x {width} px: {self.num_parameters:,} parameters, "
            f"{self.gflops:.1f} GFLOPs)"
        )

    def _repr_html_(self) -> str:
        return str(self.to_pandas().to_html(index=False))

    def to_pandas(self) -> Any:
        """Convert to a DataFrame with one row per part; requires pandas."""
        pandas = import_optional("pandas", "ModelDescription.to_pandas", "pandas")
        return pandas.DataFrame(
            [
                {
                    "part": stage.part,
                    "outputs": ", ".join(map(str, stage.io.outputs)),
                    "parameters": stage.num_parameters,
                    "gflops": stage.gflops,
                }
                for stage in self.stages
            ]
        )

    def save_figure(self, path: Path | str) -> None:
        """Write a figure of the tensor shapes as .svg, .png or .pdf.

        Raises:
            ConfigError: the file has another suffix, or was not written by detrkit and would be overwritten.
        """
        from detrkit.explain.figures import write_stages_figure

        height, width = self.size
        title = f"{self.name}: tensor shapes for an image of {height} x {width} px"
        image = (1, self.config.in_channels, height, width)
        write_stages_figure([stage.io for stage in self.stages], image, title, Path(path))


def describe_model(
    source: str | Path | ModelConfig,
    *,
    size: tuple[int, int] | None = None,
    model: NamedModel | None = None,
    state_dict_key: str | None = None,
) -> ModelDescription:
    """Describe a model without computing anything.

    Args:
        source: preset, run folder, weights file, or a model configuration.
        size: (height, width) of the image in pixels, as the model sees it. Default: of the squares to which the model
            stretches images, or (800, 1066).
        model: of weights that do not describe it; see `Detector.load`.
        state_dict_key: entry of a `.pth` file that holds the weights.

    Returns:
        Parameters, GFLOPs, and the shapes of every part; it prints as a table.

    Raises:
        ConfigError: the size is out of range.
        DetrkitError: there is no such model.
    """
    if size is not None and min(size) < 1:
        raise ConfigError(f"{arg('size', size)} is out of range; expected (height, width) in pixels.")
    if isinstance(source, ModelConfig):
        name, config = "model", source
    else:
        name = str(source)
        is_preset = not Path(name).exists() and (name in PRESETS or "/" not in name)
        if is_preset and model is not None:
            raise ConfigError(f"{arg('model', str(model))} is for weights; {name} is a preset, which needs none")
        if is_preset:
            config = preset_config(name)
        else:
            checkpoint = load_checkpoint(name, model=model, state_dict_key=state_dict_key)
            config, size = checkpoint.config, size or usual_size(checkpoint.config, checkpoint.preprocessing)
    size = size or usual_size(config)
    network = model_without_memory(config).eval()
    num_parameters = sum(p.numel() for p in network.parameters())
    num_trainable = sum(p.numel() for p in network.parameters() if p.requires_grad)
    network.requires_grad_(False)  # the counter fails on views of parameters that require gradients
    # fused attention is not counted on the meta device; the math backend is, with the same operations
    with (
        torch.no_grad(),
        capture_stages(network) as stages,
        FlopCounterMode(display=False, depth=8) as counter,
        sdpa_kernel(SDPBackend.MATH),
    ):
        network(torch.empty(1, config.in_channels, *size, device="meta"))
    flops = {re.sub(r"^DETR\.", "", name): sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
    described = [
        StageDescription(
            io=stage,
            num_parameters=sum(p.numel() for p in network.get_submodule(stage.part).parameters()),
            gflops=flops.get(stage.part, 0) / 1e9,
        )
        for stage in stages
    ]
    gflops = counter.get_total_flops() / 1e9
    return ModelDescription(name, config, size, tuple(described), num_parameters, num_trainable, gflops)
