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
    from detrkit.cli.console import get_console
    from detrkit.cli.training_console import ConsoleProgress, print_result
    from detrkit.demo.run import IMAGE_SIZES, NUM_TEST, NUM_TRAIN, run_demo

    console = get_console()
    console.print(f"drawing {NUM_TRAIN} training and {NUM_TEST} validation images")
    result = run_demo(output, seed, task, model, callbacks=[ConsoleProgress()])
    print_result(result)
    if result.is_complete:
        size = IMAGE_SIZES[model]
        console.print(
            f"\nTry next:\n"
            f"  open {output / 'report.html'}\n"
            f"  detrkit predict {output} {output / 'drawings'}\n"
            f"  detrkit explain {output} {output / 'drawings' / '6.png'} --annotations {output / 'drawings'}\n"
            f"  detrkit describe {output} --size {size}x{size}\n"
            f"  detrkit train YOUR_COCO_FOLDER --model detrkit-m --weights imagenet",
            soft_wrap=True,
        )
    exit_with(result.stopped_by)
