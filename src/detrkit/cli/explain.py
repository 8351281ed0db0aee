"""`detrkit explain`."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from detrkit._internal.provenance import refuse_foreign_overwrite
from detrkit._internal.text import plural, printable
from detrkit.checkpoints.path_kinds import DATASET, IMAGES, MODEL, check_kinds
from detrkit.checkpoints.sources import check_source
from detrkit.cli.console import get_console
from detrkit.distributed.devices import check_device_name
from detrkit.errors import ConfigError, DatasetError, arg
from detrkit.inference.options import parse_threshold

if TYPE_CHECKING:
    from detrkit.explain.explanation import Explanation

_PAGE_SUFFIXES = (".html", ".htm")
_FIGURE_SUFFIXES = (".svg", ".png", ".pdf")
_POINT = re.compile(r"(\d+(?:\.\d+)?),(\d+(?:\.\d+)?)")


def explain(
    source: str,
    image: Path,
    /,
    *,
    annotations: Path | None = None,
    output: Annotated[Path | None, Parameter(name=["--output", "-o"])] = None,
    threshold: str = "0.5",
    figure: Literal["encoder", "decoder", "layers", "distributions", "selection", "matching"] | None = None,
    points: Annotated[list[str] | None, Parameter(consume_multiple=True, negative="")] = None,
    queries: Annotated[list[int] | None, Parameter(consume_multiple=True, negative="")] = None,
    layer: int | None = None,
    head: int | None = None,
    device: str = "auto",
    model: str | None = None,
    state_dict_key: str | None = None,
) -> None:
    """Explain a prediction: attention maps, boxes after every decoder layer, matching and losses, tensor shapes.

    Writes one HTML page that opens without a network; with --annotations, it also shows which objects were missed, and why.
    With --figure, writes a figure for print instead.

    Example: `detrkit explain runs/first photo.jpg --annotations photos`

    Parameters
    ----------
    source
        Run folder, weights file, Hugging Face folder or id, or preset.
    image
        Image to explain.
    annotations
        Ground truth: COCO JSON, or dataset folder in any format, that contains the image.
    output
        File to write: .html (explained.html by default); for a figure .svg, .png or .pdf.
    threshold
        Minimum score of a detection, 0 to 1; `auto`: the thresholds per class stored by evaluation. The page has a slider.
    figure
        Figure to write: encoder attention of points; decoder attention of detections; sampling points, reference and box of
        one query in all decoder layers; distributions of the edges of its box (D-FINE); selection of cells as queries
        (two-stage models); or the matching.
    points
        Points of the encoder figure, as x,y in pixels; the centers of the detections by default.
    queries
        Queries whose attention must be included, or that the figure shows, counted from 0.
    layer
        Layer of the figure, counted from 1; the last one by default.
    head
        Head of the figure, counted from 1; the mean of all heads by default.
    device
        `cpu`, `cuda`, `cuda:1`; `auto` takes a GPU if there is one.
    model
        Preset, or config.yaml of a run, of weights that do not describe their model, such as a saved state_dict().
    state_dict_key
        Entry of a .pth file that holds the weights, such as ema_model; default: the moving average if there is one.
    """
    check_kinds({"source": (source, MODEL), "image": (image, IMAGES), "annotations": (annotations, DATASET)})
    path = _output_path(output, figure, image)
    min_score = parse_threshold(threshold)
    if figure == "matching" and annotations is None:
        raise ConfigError(f"{arg('figure', figure)} needs the ground truth; pass {arg('annotations')}.")
    if points and figure != "encoder":
        raise ConfigError(f"{arg('points')} is for {arg('figure', 'encoder')}; on the page, click the image instead.")
    if layer is not None:
        _check_figure("layer", figure, ("encoder", "decoder"))
    if head is not None:
        _check_figure("head", figure, ("encoder", "decoder", "layers"))
    for file in (image, annotations):
        if file is not None and not file.exists():
            raise DatasetError(f"{file} does not exist; check the path.")
    check_source(source)
    check_device_name(device)
    coordinates = [_parse_point(point) for point in points or ()]

    from detrkit.explain.explain import explain as explain_image

    with get_console(stderr=True).status(printable(f"explaining {image.name}")):
        explanation = explain_image(
            source,
            image,
            annotations=annotations,
            threshold=min_score,
            device=device,
            model=model,
            state_dict_key=state_dict_key,
        )
        if figure is None:
            explanation.to_html(path, queries=queries or ())
        else:
            kind: Literal["encoder", "decoder_cross"] = "encoder" if figure == "encoder" else "decoder_cross"
            num_layers = len(explanation.attention.layers[kind])
            explanation.save_figure(
                figure,
                path,
                points=coordinates,
                queries=queries or (),
                layer=-1 if layer is None else _from_one("layer", layer, num_layers),
                head=None if head is None else _from_one("head", head, explanation.config.num_heads),
            )
    _print_summary(explanation, path)


def _output_path(output: Path | None, figure: str | None, image: Path) -> Path:
    """Return the file to write.

    Raises:
        ConfigError: it is a folder, the image itself, or has the wrong suffix, or was not written by detrkit.
    """
    path = output or Path(f"{figure}.svg" if figure else "explained.html")
    if path.exists() and image.exists() and path.samefile(image):
        raise ConfigError(f"{arg('output', path)} is the image and would be overwritten; choose another name.")
    refuse_foreign_overwrite(path)
    suffixes = _FIGURE_SUFFIXES if figure else _PAGE_SUFFIXES
    if path.suffix.lower() not in suffixes:
        hint = "" if figure else f"; for a figure, pass {arg('figure')}"
        raise ConfigError(f"{arg('output', path)} has the wrong suffix; expected {', '.join(suffixes)}{hint}.")
    return path


def _check_figure(option: str, figure: str | None, figures: tuple[str, ...]) -> None:
    """Refuse an option that the figure or the page does not have."""
    if figure not in figures:
        instead = "the page has a slider instead" if figure is None else f"omit it for {arg('figure', figure)}"
        names = "".join(f", {name}" for name in figures[1:-1]) + f" or {figures[-1]}"
        raise ConfigError(f"{arg(option)} is for {arg('figure', figures[0])}{names}; {instead}.")


def _parse_point(text: str) -> tuple[float, float]:
    match = _POINT.fullmatch(text)
    if match is None:
        raise ConfigError(f"{arg('points', text)} is not a point; expected x,y in pixels, for example 120,80.")
    return float(match[1]), float(match[2])


def _from_one(name: str, number: int, count: int) -> int:
    """Convert a number counted from 1 to one counted from 0."""
    if not 1 <= number <= count:
        raise ConfigError(f"{arg(name, number)} is out of range; expected 1 to {count}.")
    return number - 1


def _print_summary(explanation: "Explanation", path: Path) -> None:
    console = get_console()
    num_queries, num_detected = len(explanation.scores), len(explanation.detected_queries())
    detections, threshold = plural(num_detected, "detection"), explanation.given_threshold
    console.print(f"{detections} from {num_queries} queries at threshold {threshold}")
    if explanation.matching is not None:
        outcomes, missed = explanation.matching.outcomes, explanation.missed_objects()
        console.print(f"{len(outcomes) - len(missed)} of {plural(len(outcomes), 'object')} detected")
        for outcome in missed:
            name = printable(explanation.categories.names[outcome.label])
            reason = outcome.reason_at(explanation.threshold_of(outcome.label))
            console.print(f"missed object {outcome.object} ({name}): {reason}", soft_wrap=True)
    console.print(f"written: {path}", soft_wrap=True)
