"""`detrkit evaluate`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from detrkit._internal.text import plural
from detrkit.checkpoints.path_kinds import DATASET, MODEL_OR_RESULTS, check_kinds
from detrkit.checkpoints.sources import check_source
from detrkit.data.formats.registry import FormatName, check_dataset_path
from detrkit.distributed.devices import check_device_name
from detrkit.errors import check_minimum

if TYPE_CHECKING:
    from rich.console import Console

    from detrkit.evaluation.analysis import Analysis
    from detrkit.evaluation.result import EvalResult


def evaluate(
    source: str,
    data: str,
    /,
    *,
    split: Literal["val", "train", "test"] = "val",
    format: FormatName | None = None,
    by_layer: Annotated[bool, Parameter(negative="")] = False,
    query_map: Annotated[bool, Parameter(negative="")] = False,
    instance_capacity: Annotated[bool, Parameter(negative="")] = False,
    store_thresholds: bool | None = None,
    batch_size: int = 1,
    device: str = "auto",
    workers: int = 2,
    model: str | None = None,
    state_dict_key: str | None = None,
    output: Annotated[Path, Parameter(name=["--output", "-o"])] = Path("evaluation"),
) -> None:
    """Evaluate a model, or saved predictions, on a dataset: COCO metrics, thresholds, error types, and a report.

    Writes report.html, scores.json and detections.json. Images without annotations (a folder, or a COCO image_info JSON)
    are only predicted.

    Example: `detrkit evaluate runs/first coco --by-layer`, or `detrkit evaluate results.json coco`

    Parameters
    ----------
    source
        Run folder, weights file, exported file, Hugging Face folder or id, or preset; or a .json file with COCO results of
        any model: boxes, masks, or panoptic (with PNGs in a folder of the same name).
    data
        Dataset folder: COCO, COCO panoptic, YOLO or Pascal VOC, or shards.
    split
        Split of the dataset.
    format
        Annotation format; detected from the folder if omitted.
    by_layer
        AP after every decoder layer, with and without NMS (figure 4 of the paper).
    query_map
        Boxes predicted by each query (figure 7).
    instance_capacity
        Detected objects as their number grows (figure 12).
    store_thresholds
        Store the best score thresholds in the checkpoint, for `predict --threshold auto`. By default they are stored if
        the dataset's validation split is the one that the run was trained with.
    batch_size
        Images per batch; does not change the metrics.
    device
        `cpu`, `cuda`, `cuda:1`; `auto` uses a GPU if there is one.
    workers
        Processes that read images.
    model
        Preset, or config.yaml of a run, of weights that do not describe their model, such as a saved state_dict().
    state_dict_key
        Entry of a .pth file that holds the weights, such as ema_model; default: the moving average if there is one.
    output
        Folder to write to; a name that ends in .json gets the detections only, as COCO results.
    """
    check_kinds({"source": (source, MODEL_OR_RESULTS), "data": (data, DATASET)})
    check_dataset_path(data)
    check_minimum("batch_size", batch_size, 1)
    check_minimum("workers", workers, 0)
    check_device_name(device)
    if Path(source).suffix != ".json":
        check_source(source)
    from detrkit.cli.console import get_console, progress_bar
    from detrkit.evaluation.evaluate import evaluate as evaluate_source

    with progress_bar("evaluating") as progress:
        result = evaluate_source(
            source,
            data,
            split=split,
            format=format,
            by_layer=by_layer,
            query_map=query_map,
            instance_capacity=instance_capacity,
            store_thresholds="auto" if store_thresholds is None else store_thresholds,
            batch_size=batch_size,
            device=device,
            workers=workers,
            model=model,
            state_dict_key=state_dict_key,
            output=output,
            progress=progress,
        )
    _print_result(result, output, get_console())


def _print_result(result: "EvalResult", output: Path, console: "Console") -> None:
    from detrkit.cli.metrics_table import print_metrics

    for note in result.notes:
        console.print(note)
    if not result.metrics.values:
        count = plural(len(result.split), "image")
        source = result.split.source
        console.print(f"{source} has no annotations; the detections of {count} are in {output}", soft_wrap=True)
        return
    print_metrics(result.metrics, console)
    if result.analysis is not None:
        _print_analysis(result.analysis, console)
    if result.thresholds is not None and result.thresholds.segments is not None:
        console.print(f"segments: minimum query score {result.thresholds.segments:.2f}")
    for analysis in result.paper_analyses:
        if analysis.name == "by_layer":
            _print_layers(analysis.content, console)
    if output.suffix != ".json":
        console.print(f"report: {output / 'report.html'}", soft_wrap=True)
    if result.stored_in is not None and result.thresholds is not None:
        count = plural(len(result.thresholds.per_class), "class", "classes")
        console.print(
            f"thresholds stored in {result.stored_in}, {count} with their own; detrkit predict --threshold auto uses them",
            soft_wrap=True,
        )


def _print_analysis(analysis: "Analysis", console: "Console") -> None:
    """Print the limit of detections if it is not the published one, the best threshold, and error types."""
    from detrkit.cli.console import build_table
    from detrkit.evaluation.coco import PUBLISHED_MAX_DETECTIONS
    from detrkit.evaluation.report.page import max_detections_note

    if analysis.metrics.max_detections != PUBLISHED_MAX_DETECTIONS:
        console.print(max_detections_note(analysis.metrics))
    if best := analysis.best.overall:
        numbers = f"precision {best.precision:.3f}, recall {best.recall:.3f}, F1 {best.f1:.3f}"
        console.print(f"best threshold {best.threshold:.3f}: {numbers}")
    rows = [("true positives", str(analysis.errors.num_true_positives))]
    rows += [(name, str(count)) for name, count in analysis.errors.counts.items()]
    console.print(build_table("", ("at this threshold", "count"), rows))


def _print_layers(layers: list[dict[str, float]], console: "Console") -> None:
    from detrkit.cli.console import build_table
    from detrkit.evaluation.metrics import format_metric

    names = ("ap", "ap_nms", "ap50", "ap50_nms")
    rows = [(str(one["layer"]), *(format_metric(one[name]) for name in names)) for one in layers]
    console.print(build_table("", ("decoder layer", "AP", "with NMS", "AP50", "with NMS"), rows))
