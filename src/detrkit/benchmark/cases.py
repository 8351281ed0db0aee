"""Cases of a benchmark, and what they have in common. Importing this module does not import torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

CaseKind = Literal["detrkit", "transformers", "faster-rcnn"]
CasePrecision = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class BenchmarkCase:
    """One model in one precision.

    Attributes:
        kind: implementation: detrkit's, the same model in transformers, or torchvision's Faster R-CNN.
        source: preset, run folder, weights file or exported file; empty for Faster R-CNN.
        precision: of the computation.
        model: preset, or `config.yaml` of a run, of weights that do not describe their model.
        state_dict_key: entry of a `.pth` file that holds the weights.
    """

    kind: CaseKind
    source: str
    precision: CasePrecision = "float32"
    model: str | None = None
    state_dict_key: str | None = None

    @property
    def name(self) -> str:
        """Name of the case in tables."""
        if self.kind == "faster-rcnn":
            return "torchvision Faster R-CNN R50-FPN"
        name = f"{Path(self.source).name} {self.precision}"
        return name if self.kind == "detrkit" else f"transformers {name}"


@dataclass(frozen=True)
class BenchmarkConfig:
    """Settings shared by all cases.

    Attributes:
        size: (height, width) of the images in pixels.
        batch_size: images per batch.
        device: "cpu", "cuda" or "cuda:1".
        num_threads: CPU threads; None for PyTorch's default.
        rounds: measured batches per case.
    """

    size: tuple[int, int] = (800, 1066)
    batch_size: int = 1
    device: str = "cpu"
    num_threads: int | None = None
    rounds: int = 10
