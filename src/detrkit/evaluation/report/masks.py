"""The parts of the report that speak of masks: their AP beside that of boxes, and panoptic quality. Output: HTML."""

import html
import math
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from detrkit._internal.files import write_text
from detrkit._internal.text import plural
from detrkit.evaluation.coco import CocoMetrics
from detrkit.evaluation.metrics import format_metric, metric_label
from detrkit.evaluation.panoptic import ClassQuality, PanopticScores
from detrkit.visualization.page import gallery_of, html_page, table_of

_EXPLAINED = {
    "ap": "IoU 0.50 to 0.95",
    "ap50": "IoU 0.50",
    "ap75": "IoU 0.75",
    "ap_small": "small objects, area < 32² px",
    "ap_medium": "medium objects",
    "ap_large": "large objects, area > 96² px",
    "ar1": "recall, 1 detection",
    "ar10": "recall, 10 detections",
    "ar_small": "recall, small",
    "ar_medium": "recall, medium",
    "ar_large": "recall, large",
}


def number_cells(scores: CocoMetrics) -> str:
    """The 12 numbers, each with what it is."""

    def explained(name: str) -> str:
        return _EXPLAINED.get(name, f"recall, {scores.max_detections} detections")

    cells = (
        f'<div title="{explained(name)}"><dt>{metric_label(name)}</dt><dd>{format_metric(value)}</dd>'
        f"<dt>{explained(name)}</dt></div>"
        for name, value in scores.values.items()
    )
    return f"<dl>{''.join(cells)}</dl>"


def masks_section(masks: CocoMetrics, boxes: CocoMetrics | None = None) -> list[str]:
    """The 12 numbers of masks, and AP class by class beside that of boxes."""
    of_boxes = {} if boxes is None else {one.name: one.ap for one in boxes.per_class}
    headings = ("class", "objects", "", "mask AP", "AP50", "AP75", "small", "medium", "large", "recall", "box AP")
    rows = []
    for one in masks.per_class:
        if math.isnan(one.ap):
            continue
        numbers = (one.ap, one.ap50, one.ap75, one.ap_small, one.ap_medium, one.ap_large, one.ar)
        box_ap = format_metric(of_boxes.get(one.name, float("nan")))
        rows.append(
            [html.escape(one.name), str(one.num_objects), _bar(one.ap), *(format_metric(n) for n in numbers), box_ap]
        )
    said = (
        "The same numbers as of boxes, by intersection over union of masks: outlines have to fit, not only their frames. "
        "Small, medium and large are told by a mask's area."
    )
    return ["<h2>Masks</h2>", f"<p>{said}</p>", number_cells(masks), table_of(headings, rows)]


def panoptic_section(scores: PanopticScores) -> list[str]:
    """Panoptic quality of all, things and stuff, and class by class, best first."""
    groups = [
        [name, str(quality.num_classes), *(format_metric(value) for value in (quality.pq, quality.sq, quality.rq))]
        for name, quality in scores.groups.items()
    ]
    known = [one for one in scores.per_class if not math.isnan(one.pq)]
    rows = [
        [
            html.escape(one.name),
            _kind(one),
            str(one.num_segments),
            _bar(one.pq),
            *(format_metric(number) for number in (one.pq, one.sq, one.rq)),
            *(str(count) for count in (one.num_right, one.num_false, one.num_segments - one.num_right)),
        ]
        for one in sorted(known, key=lambda one: one.pq, reverse=True)
    ]
    absent = len(scores.per_class) - len(known)
    said = (
        f"{plural(scores.num_images, 'photo')}, {plural(scores.num_segments, 'segment')}. PQ = SQ x RQ of each class: "
        "a segment is found when one of its class overlaps it by more than half; void pixels and crowds are "
        "neither right nor false. SQ: how well found segments fit; RQ: F1 of finding."
    )
    if absent:
        said += f" Neither in the photos nor predicted, and left out: {plural(absent, 'class', 'classes')}."
    overview = table_of(("mean over", "classes", "PQ", "SQ", "RQ"), groups)
    headings = ("class", "kind", "segments", "", "PQ", "SQ", "RQ", "found", "false", "missed")
    return [
        "<h2>Panoptic quality</h2>",
        f"<p>{said}</p>",
        overview,
        "<h2>Segments by class</h2>",
        table_of(headings, rows),
    ]


def write_panoptic_report(
    path: Path,
    *,
    title: str,
    subtitle: str,
    scores: PanopticScores,
    gallery: Sequence[tuple[Image.Image, str]] = (),
) -> None:
    """Write a page of panoptic quality alone, where there are no detections to be looked at closer.

    Args:
        path: HTML file.
        title: first line.
        subtitle: a sentence on what was judged on what.
        scores: of the test photos.
        gallery: pictures and captions.
    """
    body = [f"<h1>{html.escape(title)}</h1><p>{html.escape(subtitle)}</p>", *panoptic_section(scores)]
    if gallery:
        body += ["<h2>What it finds</h2>", gallery_of(gallery)]
    write_text(path, html_page(title, body))


def _kind(one: ClassQuality) -> str:
    return "-" if one.is_thing is None else "thing" if one.is_thing else "stuff"


def _bar(share: float) -> str:
    return f'<span class="bar"><span style="width:{100 * share:.1f}%"></span></span>'
