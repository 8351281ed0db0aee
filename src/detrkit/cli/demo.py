"""`detrkit demo`."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from detrkit.cli.command_name import command_name
from detrkit.cli.exit_codes import exit_with
from detrkit.config.validation import check_seed
from detrkit.training.run_folder import refuse_used_run_folder


def demo(
    *,
    output: Annotated[Path, Parameter(name=["--output", "-o"])] = Path("runs/demo"),
    seed: int = 42,
    task: Literal["boxes", "panoptic"] = "boxes",
    model: Literal["detrkit-s", "detr-tiny"] = "detrkit-s",
) -> None:
    """Train a small DETR on synthetic shapes in a few minutes, without data or network.

    Writes a run folder with weights, predictions for validation images, and report.html.

    Example: `detrkit demo --task panoptic --output runs/scenes`

    Parameters
    ----------
    output
        Run folder to create.
    seed
        Seed of the images, the weights and the order of the data.
    task
        `boxes`: shapes and their boxes; `panoptic`: also masks, with sky, water and grass as stuff.
    model
        `detrkit-s`; or `detr-tiny`, plain DETR, with lower AP after the same time and dense attention to explain.
    """
    check_seed(seed)
    refuse_used_run_folder(output)

    from detrkit.cli.console import get_console
    from detrkit.cli.training_console import ConsoleProgress, print_result
    from detrkit.demo.run import IMAGE_SIZES, NUM_TRAIN, NUM_VAL, run_demo

    console = get_console()
    console.print(f"drawing {NUM_TRAIN} training and {NUM_VAL} validation images")
    result = run_demo(output, seed, task, model, callbacks=[ConsoleProgress()])
    print_result(result)
    if result.is_complete:
        size, name = IMAGE_SIZES[model], command_name()
        console.print(
            f"\nLook at {output / 'report.html'} in a browser. Try next:\n"
            f"  {name} predict {output} {output / 'drawings'} --threshold auto\n"
            f"  {name} explain {output} {output / 'drawings' / '6.png'} --annotations {output / 'drawings'}\n"
            f"  {name} describe {output} --size {size}x{size}\n"
            f"and with images of your own, in COCO, YOLO or Pascal VOC format:\n"
            f"  {name} doctor YOUR_FOLDER\n"
            f"  {name} train YOUR_FOLDER --dry-run\n"
            f"  {name} train YOUR_FOLDER --output runs/first",
            soft_wrap=True,
        )
    exit_with(result.stopped_by)
