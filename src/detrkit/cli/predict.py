"""`detrkit predict`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from detrkit.inference.options import PredictOptions

if TYPE_CHECKING:
    from collections.abc import Callable

    from detrkit.inference.predict import FileResult, PredictResult


def predict(
    source: str,
    /,
    *images: str,
    output: Annotated[Path, Parameter(name=["--output", "-o"])] = Path("predictions"),
    options: Annotated[PredictOptions | None, Parameter(name="*", negative="")] = None,
) -> None:
    """Detect objects in images and videos; write annotated images, JSON, tables.

    For each image, NAME.png shows the detections and NAME.json lists them: name, category_id, score, box (left, top,
    right, bottom in pixels of the image), and mask (COCO RLE) if the model predicts masks. For each video, NAME.mp4 and
    NAME.jsonl, one line per frame. With `--write jsonl`, all images share a file predictions.jsonl, and the same command
    resumes it after a stop.

    Example: `detrkit predict runs/first holiday/*.jpg --threshold 0.7`

    Parameters
    ----------
    source
        Run folder, weights file, exported file, Hugging Face folder or id, or preset.
    images
        Images, videos, folders of images, patterns such as `'a/**/*.jpg'`, .txt lists of paths; cameras: `0`, `camera:0`,
        `rtsp://...`.
    output
        Folder to write to.
    """
    from detrkit.checkpoints.path_kinds import IMAGES, MODEL, check_kinds
    from detrkit.checkpoints.sources import check_source
    from detrkit.cli.console import progress_bar
    from detrkit.cli.exit_codes import exit_with
    from detrkit.distributed.devices import check_device_name
    from detrkit.errors import DatasetError
    from detrkit.inference.inputs import list_inputs

    options = options or PredictOptions()
    check_kinds({"source": (source, MODEL), "images": (images, IMAGES)})
    inputs = list_inputs(images, recursive=options.recursive, exclude=output)
    check_source(source)
    check_device_name(options.device)
    from detrkit.inference.predict import predict_files

    writes_lines = not options.image_outputs.isdisjoint({"jsonl", "parquet"})
    has_videos = bool(inputs.videos or inputs.cameras)
    with progress_bar("frames" if has_videos else "images", visible=writes_lines or has_videos) as progress:
        result = predict_files(
            source, inputs, output=output, options=options, progress=progress, on_result=_result_printer(writes_lines)
        )
    _print_summary(result)
    if result.errors:
        raise DatasetError(f"{len(result.errors)} of {result.num_inputs} inputs were not predicted; {result.errors[0]}")
    exit_with(result.stopped_by)


def _result_printer(writes_lines: bool) -> "Callable[[FileResult], None]":
    """Return a function that prints one line per video, and per image unless the images share a file."""
    from detrkit._internal.text import plural, printable
    from detrkit.cli.console import get_console

    console = get_console()

    def print_result(result: "FileResult") -> None:
        name = Path(result.name).name
        if result.num_frames == 0:
            if not (writes_lines and result.error):
                console.print(f"{name}: not predicted", soft_wrap=True)
        elif result.detections is None:
            frames, objects = plural(result.num_frames, "frame"), plural(result.num_objects, "object")
            note = "" if result.note is None else f" ({result.note})"
            console.print(f"{name}: {frames}, {objects}{note}", soft_wrap=True)
        elif not writes_lines:
            pairs = zip(result.detections.class_names, result.detections.scores.tolist(), strict=True)
            listed = ", ".join(f"{printable(label)} {score:.2f}" for label, score in pairs)
            console.print(f"{name}: {listed or 'nothing above the threshold'}", soft_wrap=True)

    return print_result


def _print_summary(result: "PredictResult") -> None:
    from detrkit._internal.text import plural
    from detrkit.cli.console import get_console

    console = get_console()
    if result.process.world_size > 1:
        console.print(
            f"partition {result.process.rank}/{result.process.world_size}: {plural(result.num_inputs, 'input')}"
        )
    if result.num_resumed:
        console.print(f"resumed: {plural(result.num_resumed, 'image')} already done")
    if result.num_earlier_errors:
        console.print(
            f"{plural(result.num_earlier_errors, 'image')} could not be read by an earlier call; remove their lines to "
            "try them again"
        )
    if result.lines is None:
        if result.num_predicted:
            console.print(f"written to {result.output}", soft_wrap=True)
        return
    console.print(f"{plural(result.num_predicted, 'input')} predicted, {plural(result.num_objects, 'object')} detected")
    if result.stopped_by is not None:
        console.print("stopped; the same command resumes")
        return
    for path in filter(None, (result.table, result.lines)):
        console.print(f"written: {path}", soft_wrap=True)
