"""`detrkit benchmark`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from detrkit._internal.files import write_text
from detrkit._internal.provenance import refuse_foreign_overwrite
from detrkit.checkpoints.path_kinds import MODEL, check_kinds
from detrkit.checkpoints.sources import check_source
from detrkit.checkpoints.zoo import MODEL_NAMES
from detrkit.cli.console import build_table, get_console, progress_bar
from detrkit.cli.image_size import parse_size
from detrkit.distributed.devices import check_device_name
from detrkit.errors import check_minimum

if TYPE_CHECKING:
    from detrkit.benchmark.report import BenchmarkReport


def benchmark(
    *sources: str,
    size: str | None = None,
    batch_size: int = 1,
    rounds: int = 10,
    precisions: Annotated[
        list[Literal["float32", "bfloat16"]] | None, Parameter(consume_multiple=True, negative="")
    ] = None,
    baselines: bool = True,
    device: str = "auto",
    num_threads: int | None = None,
    model: str | None = None,
    state_dict_key: str | None = None,
    output: Annotated[Path | None, Parameter(name=["--output", "-o"])] = None,
) -> None:
    """Measure models side by side on this machine: speed by stage, parameters, GFLOPs, memory.

    Every model runs in its own process. They take turns, so that other load on the machine affects all alike. Baselines are
    the same model in `transformers`, if it is installed, and torchvision's Faster R-CNN.

    Example: `detrkit benchmark runs/first model.onnx --size 640x640 --output speed`

    Parameters
    ----------
    sources
        Presets (with random weights), run folders, weights files, exported files; detr-r50 by default.
    size
        Size of the images as the models see them, HEIGHTxWIDTH in pixels. Default: of the squares to which the first
        model stretches images, or 800x1066.
    batch_size
        Images per batch.
    rounds
        Measured batches per model; the median counts.
    precisions
        Of models in PyTorch; both by default, without bfloat16 if the device computes it slowly.
    baselines
        Also measure transformers and Faster R-CNN.
    device
        `cpu`, `cuda`, `cuda:1`; `auto` takes a GPU if there is one.
    num_threads
        CPU threads; all cores by default.
    model
        Preset, or config.yaml of a run, of weights files that do not describe their model, such as a saved state_dict().
    state_dict_key
        Entry of .pth files that holds the weights, such as ema_model; default: the moving average if there is one.
    output
        Folder for benchmark.html, benchmark.png and benchmark.json.
    """
    height_width = None if size is None else parse_size(size)
    check_minimum("batch_size", batch_size, 1)
    check_minimum("rounds", rounds, 1)
    check_device_name(device)
    check_kinds({"sources": (sources, MODEL)})
    for source in sources:
        if source not in MODEL_NAMES:  # presets get random weights
            check_source(source)
    files = [] if output is None else [output / f"benchmark.{suffix}" for suffix in ("html", "png", "json")]
    for file in files:
        refuse_foreign_overwrite(file)

    from detrkit.benchmark.benchmark import benchmark as run_benchmark

    with progress_bar("measuring") as progress:
        report = run_benchmark(
            sources or "detr-r50",
            size=height_width,
            batch_size=batch_size,
            rounds=rounds,
            precisions=precisions or ("float32", "bfloat16"),
            baselines=baselines,
            device=device,
            num_threads=num_threads,
            model=model,
            state_dict_key=state_dict_key,
            progress=progress,
        )
    _print_report(report)
    if files:
        page, plot, document = files
        report.to_html(page)
        report.save_plot(plot)
        write_text(document, json.dumps(report.to_json()))
        get_console().print(f"written: {', '.join(map(str, files))}", soft_wrap=True)


def _print_report(report: "BenchmarkReport") -> None:
    from detrkit.benchmark.report import HEADINGS

    console = get_console()
    console.print(build_table(report.title, HEADINGS, report.rows()))
    for result in report.measured:
        if result.stage_seconds:
            stages = ", ".join(f"{name} {1000 * seconds:.0f}" for name, seconds in result.stage_seconds.items())
            console.print(f"{result.name}, ms by stage: {stages}")
    for error in report.errors():
        console.print(error)
