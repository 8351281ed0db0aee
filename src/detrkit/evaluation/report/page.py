"""Evaluation report: a self-contained HTML page with metrics, curves, errors and images."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from detrkit._internal.files import write_text
from detrkit.evaluation.analysis import Analysis
from detrkit.evaluation.coco import PUBLISHED_MAX_DETECTIONS, CocoMetrics
from detrkit.evaluation.metrics import EvalMetrics
from detrkit.evaluation.panoptic import PanopticMetrics
from detrkit.evaluation.report.images import ReportImage
from detrkit.evaluation.report.section import Section, render_report_template
from detrkit.visualization.draw import ERROR_CAPTIONS, ERROR_COLORS
from detrkit.visualization.page import embed_image, embed_png


@dataclass(frozen=True)
class ReportFigure:
    """A figure of the report: heading, explanation, PNG, and SVG unless it has too many points."""

    heading: str
    text: str
    png: bytes
    svg: str | None = None


def write_report(
    path: Path,
    *,
    title: str,
    subtitle: str,
    metrics: EvalMetrics,
    analysis: Analysis | None,
    dataset: str = "",
    training_curves: bytes | None = None,
    predictions: Sequence[ReportImage] = (),
    predictions_text: str = "",
    worst_images: Sequence[ReportImage] = (),
    figures: Sequence[ReportFigure] = (),
) -> None:
    """Write the report.

    Args:
        path: of the HTML file.
        title: heading.
        subtitle: what was evaluated.
        metrics: of boxes, masks and segments.
        analysis: of the detections; None for panoptic results, which have none.
        dataset: description of the images, such as "not seen in training".
        training_curves: PNG.
        predictions: images with predictions.
        predictions_text: what is drawn on them.
        worst_images: images with the most errors.
        figures: further figures.
    """
    sections = [
        *_metric_sections(metrics, dataset),
        *([_figure("Training", "Loss and AP by step", training_curves)] if training_curves else []),
        *([_gallery("Predictions", predictions, text=predictions_text)] if predictions else []),
        *([_panoptic(metrics.panoptic)] if metrics.panoptic else []),
        *([_classes(analysis)] if analysis else []),
        *([_masks(metrics.masks, metrics.boxes)] if metrics.masks else []),
        *([section for one in analysis.results.values() if (section := one.to_section())] if analysis else []),
        *([_worst_images(worst_images)] if worst_images else []),
        *(_figure(figure.heading, figure.text, figure.png, figure.svg) for figure in figures),
    ]
    write_text(path, render_report_template("report.html", title=title, subtitle=subtitle, sections=sections))


def max_detections_note(metrics: CocoMetrics) -> str:
    """Say how many detections count, and whether the metrics compare with published ones."""
    limit = metrics.max_detections
    if limit == PUBLISHED_MAX_DETECTIONS:
        return f"At most {limit} detections per image and class are evaluated, as in published results."
    return (
        f"At most {limit} detections per image and class are evaluated, as many as the model returns; published results "
        f"use {PUBLISHED_MAX_DETECTIONS}."
    )


def _metric_sections(metrics: EvalMetrics, dataset: str) -> list[Section]:
    if metrics.boxes is None:
        return []
    note = max_detections_note(metrics.boxes)
    context = {"metrics": metrics.boxes, "dataset": dataset, "max_detections_note": note}
    return [Section.render("Metrics", "boxes.html", **context)]


def _classes(analysis: Analysis) -> Section:
    classes = list(zip(analysis.metrics.per_class, analysis.best.per_class, strict=True))
    return Section.render("Per class", "classes.html", classes=classes)


def _masks(masks: CocoMetrics, boxes: CocoMetrics | None) -> Section:
    box_ap = {} if boxes is None else {one.name: one.ap for one in boxes.per_class}
    classes = [(one, box_ap.get(one.name, float("nan"))) for one in masks.per_class if not math.isnan(one.ap)]
    return Section.render("Masks", "masks.html", metrics=masks, classes=classes)


def _panoptic(panoptic: PanopticMetrics) -> Section:
    classes = sorted((one for one in panoptic.per_class if not math.isnan(one.pq)), key=lambda one: -one.pq)
    context = {"classes": classes, "num_absent": len(panoptic.per_class) - len(classes)}
    return Section.render("Panoptic quality", "panoptic.html", panoptic=panoptic, **context)


def _gallery(heading: str, images: Sequence[ReportImage], css_class: str = "gallery", **context: object) -> Section:
    embedded = [(embed_image(one.image), one.caption) for one in images]
    return Section.render(
        heading, "gallery.html", **{"legend": (), "text": "", "images": embedded, "css_class": css_class, **context}
    )


def _worst_images(images: Sequence[ReportImage]) -> Section:
    legend = [
        (ERROR_COLORS[error], f"{caption}: {error}" if caption not in ("", error) else error)
        for error, caption in ERROR_CAPTIONS.items()
    ]
    return _gallery("Images with most errors", images, "gallery large", legend=legend)


def _figure(heading: str, text: str, png: bytes, svg: str | None = None) -> Section:
    context = {"heading": heading, "text": text, "png": embed_png(png), "svg": svg}
    return Section.render(heading, "figure.html", **context)
