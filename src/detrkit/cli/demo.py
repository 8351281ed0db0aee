"""`detrkit demo`."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from detrkit.cli.exit_codes import exit_with


def demo(
    *,
    output: Annotated[Path, Parameter(name=["--output", "-o"])] = Path("runs/demo"),
    seed: int = 42,
    task: Literal["boxes", "panoptic"] = "boxes",
    model: Literal["detrkit-s", "detr-tiny"] = "detrkit-s",
) -> None:
    """Train a small DETR on drawn shapes, in minutes, and show what it found.

    Needs no data and no network. Leaves a run folder with predictions on unseen drawings and report.html.

    Example: `detrkit demo --task panoptic --output runs/scenes`

    Parameters
    ----------
    output
        Run folder to create.
    seed
        Of the drawings, the weights and the order.
    task
        `boxes` around shapes; `panoptic`: the shapes' masks as well, and sky, water and grass behind them.
    model
        `detrkit-s`, our own; or `detr-tiny`, plain DETR, which learns less in the same time, and whose attention is whole.
    """
    from detrkit.demo.run import run_demo

    exit_with(run_demo(output, seed, task, model).stopped_by)
