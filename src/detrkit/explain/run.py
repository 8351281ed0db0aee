"""Explaining a photo: a model, a photo and perhaps its annotations -> the page, or a picture."""

import re
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from rich.text import Text

from detrkit._internal.files import write_text
from detrkit._internal.provenance import refuse_foreign_overwrite
from detrkit._internal.text import plain_console, plural, printable
from detrkit.checkpoints.load import read_checkpoint
from detrkit.checkpoints.native import Checkpoint
from detrkit.config.model import ModelConfig
from detrkit.config.run import load_run_config
from detrkit.data.categories import Categories
from detrkit.data.dataset import DetectionDataset, unannotated
from detrkit.data.formats.lookup import find_record
from detrkit.data.images import read_image
from detrkit.distributed.devices import choose_device
from detrkit.errors import ConfigError
from detrkit.evaluation.threshold_store import check_categories
from detrkit.explain.document import page_document
from detrkit.explain.explanation import Explanation, explain
from detrkit.explain.figures import SUFFIXES, FigureName, FigureOptions, write_figure
from detrkit.explain.page import build_page
from detrkit.losses.criterion import SetCriterion
from detrkit.postprocess.panoptic import MIN_SCORE
from detrkit.structures import Sample
from detrkit.training.build import loss_for

_PAGES = (".html", ".htm")
_POINT = re.compile(r"(\d+(?:\.\d+)?),(\d+(?:\.\d+)?)")


@dataclass(frozen=True)
class ExplainRequest:
    """What the command line was asked for; layers and heads count from 1 there, as people do."""

    photo: Path
    weights: str
    annotations: Path | None = None
    output: Path | None = None
    threshold: float = 0.5
    figure: FigureName | None = None
    points: tuple[str, ...] = ()
    queries: tuple[int, ...] = ()
    layer: int | None = None
    head: int | None = None
    device: str = "auto"


def explain_file(request: ExplainRequest) -> Path:
    """Write the page of a photo, or one picture, and say what became of its objects.

    Raises:
        DetrkitError: the photo, its annotations or the model cannot be read, or a setting is out of range.
    """
    output = _checked_output(request)
    _check(request)
    checkpoint = read_checkpoint(request.weights)
    wish = _wish(request, checkpoint)
    sample, is_annotated = _read_sample(request.photo, request.annotations, checkpoint)
    device = choose_device(request.device)
    with Console(stderr=True).status(Text(printable(f"looking into {request.photo.name}"))):
        model = checkpoint.build().to(device)
        loss = _loss_of(request.weights, checkpoint.config) if is_annotated else None
        explanation = explain(
            model,
            checkpoint.preprocessing,
            checkpoint.categories,
            sample,
            loss=loss,
            segment_threshold=_segment_threshold(checkpoint),
        )
        wish.check(explanation)
        if request.figure is not None:
            write_figure(request.figure, explanation, output, wish, request.threshold)
        else:
            page = page_document(
                explanation,
                model.config,
                photo_name=request.photo.name,
                model_name=Path(request.weights).name or request.weights,
                threshold=request.threshold,
                queries=wish.queries,
            )
            write_text(output, build_page(page))
    _report(explanation, request.threshold, output)
    return output


def _segment_threshold(checkpoint: Checkpoint) -> float:
    """What evaluation found best, or the published one."""
    found = None if checkpoint.thresholds is None else checkpoint.thresholds.segments
    return MIN_SCORE if found is None else found


def _checked_output(request: ExplainRequest) -> Path:
    """Where to write.

    Raises:
        ConfigError: it is a folder, the photo itself, or has the wrong suffix.
    """
    suffixes = SUFFIXES if request.figure else _PAGES
    output = request.output or Path(f"{request.figure}.svg" if request.figure else "explained.html")
    if output.exists() and request.photo.exists() and output.samefile(request.photo):
        raise ConfigError(f"--output: {output} is the photo and would be overwritten; choose another name")
    refuse_foreign_overwrite(output)
    if output.suffix.lower() not in suffixes:
        what = "a picture" if request.figure else "a page, or --figure for a picture"
        raise ConfigError(f"--output: found {output.name!r}, expected the name of {what}: {', '.join(suffixes)}")
    return output


def _check(request: ExplainRequest) -> None:
    if not 0 <= request.threshold <= 1:
        raise ConfigError(f"--threshold: found {request.threshold}, expected a score between 0 and 1")
    if request.figure == "matching" and request.annotations is None:
        raise ConfigError("--figure matching: shows objects and who answers for them; add --annotations")
    if request.points and request.figure != "encoder":
        raise ConfigError("--points: are for --figure encoder; on the page, click the photo")
    if request.figure not in ("encoder", "decoder") and (request.layer is not None or request.head is not None):
        raise ConfigError("--layer and --head: are for --figure encoder and decoder; the page has sliders")


def _wish(request: ExplainRequest, checkpoint: Checkpoint) -> FigureOptions:
    """Understand points, layer and head.

    Raises:
        ConfigError: they are malformed or do not exist.
    """
    points = []
    for text in request.points:
        match = _POINT.fullmatch(text)
        if match is None:
            raise ConfigError(f"--points: found {text!r}, expected x,y in pixels, for example 120,80")
        points.append((float(match[1]), float(match[2])))
    config = checkpoint.config
    layers = config.encoder_layers if request.figure == "encoder" else config.decoder_layers
    if request.figure == "encoder" and not layers:
        raise ConfigError("--figure encoder: this model has no encoder layers")
    for option, number, count in (("layer", request.layer, layers), ("head", request.head, config.num_heads)):
        if number is not None and not 1 <= number <= count:
            raise ConfigError(f"--{option}: found {number}, expected 1 to {count}")
    for query in request.queries:
        if not 0 <= query < config.num_queries:
            raise ConfigError(f"--queries: found {query}, expected 0 to {config.num_queries - 1}")
    return FigureOptions(
        points=tuple(points),
        queries=request.queries,
        layer=-1 if request.layer is None else request.layer - 1,
        head=None if request.head is None else request.head - 1,
    )


def _read_sample(photo: Path, annotations: Path | None, checkpoint: Checkpoint) -> tuple[Sample, bool]:
    """Read the photo, with its objects if there are annotations."""
    channels = checkpoint.config.in_channels
    if annotations is None:
        return unannotated(read_image(photo, channels=channels)), False
    split = find_record(photo, annotations)
    check_categories(checkpoint.categories, split.categories, split.source, "explain")
    sample = DetectionDataset(split, channels=channels)[0]
    return _with_labels_of(checkpoint.categories, sample, split.categories), True


def _with_labels_of(of_model: Categories, sample: Sample, of_data: Categories) -> Sample:
    """Number the classes as the model does."""
    label_of = {number: label for label, number in enumerate(of_model.ids)}
    labels = [label_of[of_data.ids[label]] for label in sample.annotations.labels.tolist()]
    numbered = torch.tensor(labels, dtype=torch.int64)
    return replace(sample, annotations=replace(sample.annotations, labels=numbered))


def _loss_of(weights: str, model: ModelConfig) -> SetCriterion:
    """The loss of the run that the weights lie in, or else the published one."""
    place = Path(weights).absolute()
    runs = [folder.parent for folder in (place, place.parent) if folder.name in ("best", "last")]
    for config in (folder / "config.yaml" for folder in (place, *runs)):
        if config.is_file():
            return loss_for(model, load_run_config(config).training)
    return SetCriterion(model.num_classes, class_scores=model.class_scores)


def _report(explanation: Explanation, threshold: float, output: Path) -> None:
    console = plain_console()
    scores, _ = explanation.scores_and_labels
    seeing = int((scores >= threshold).sum())
    console.print(f"{seeing} of {len(scores)} queries see{'s' * (seeing == 1)} an object at {threshold:g}")
    if explanation.matching is not None:
        outcomes = explanation.matching.outcomes
        missed = [one for one in outcomes if one.score is None or one.score < threshold]
        console.print(f"{len(outcomes) - len(missed)} of {plural(len(outcomes), 'object')} found")
        for one in missed:
            console.print(
                f"missed object {one.object} ({printable(explanation.categories.names[one.label])}): {one.if_missed}"
            )
    console.print(f"written: {output}", soft_wrap=True)
