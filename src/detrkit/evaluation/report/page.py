"""An evaluation on one page: scores, curves, pictures, in a single HTML file that opens from disk and fetches nothing."""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from detrkit._internal.files import write_text
from detrkit._internal.text import plural
from detrkit.evaluation.analysis import Analysis
from detrkit.evaluation.coco import PUBLISHED_MAX_DETECTIONS, CocoMetrics
from detrkit.evaluation.metrics import format_metric
from detrkit.evaluation.panoptic import PanopticScores
from detrkit.evaluation.report.masks import masks_section, number_cells, panoptic_section
from detrkit.evaluation.report.mistakes import confusions_section, errors_section, worst_section
from detrkit.evaluation.thresholds import MIN_OBJECTS
from detrkit.visualization.charts import as_svg, draw_precision_recall, draw_reliability, draw_threshold_curves
from detrkit.visualization.page import charts_of, embedded_png, gallery_of, html_page, table_of


@dataclass(frozen=True)
class ReportPicture:
    """A picture of the gallery, and what to say below it."""

    picture: Image.Image
    caption: str


@dataclass(frozen=True)
class ReportChart:
    """One of the paper's analyses: a heading, what it shows, and a picture: PNG, and SVG unless it has too many points."""

    heading: str
    text: str
    png: bytes
    svg: str | None = None


def write_report(
    path: Path,
    *,
    title: str,
    subtitle: str,
    analysis: Analysis,
    judged_by: str,
    curves: bytes | None = None,
    gallery: Sequence[ReportPicture] = (),
    worst: Sequence[ReportPicture] = (),
    charts: Sequence[ReportChart] = (),
    masks: CocoMetrics | None = None,
    panoptic: PanopticScores | None = None,
) -> None:
    """Write the page.

    Args:
        path: HTML file.
        title: first line.
        subtitle: a sentence on what was judged on what.
        analysis: of the detections of the test photos.
        judged_by: what photos these are, as in "never seen in training".
        curves: PNG of the training curves.
        gallery: photos with what the model found in them.
        worst: photos with most mistakes, drawn.
        charts: further analyses.
        masks: scores of the masks, where there are any.
        panoptic: scores of the segments, where there are any.
    """
    scores = analysis.scores
    body = [
        f"<h1>{html.escape(title)}</h1><p>{html.escape(subtitle)}</p>",
        "<h2>Scores</h2>",
        f"<p>{plural(scores.num_images, 'photo')}, {plural(scores.num_objects, 'object')}, {html.escape(judged_by)}. "
        f"{html.escape(counted(scores))}</p>",
        number_cells(scores),
    ]
    if curves is not None:
        body += [
            "<h2>Training</h2>",
            f'<img class="curves" alt="loss and AP over the steps" src="{embedded_png(curves)}">',
        ]
    if gallery:
        body += ["<h2>What it finds</h2>", gallery_of([(one.picture, one.caption) for one in gallery])]
    if panoptic is not None:
        body += panoptic_section(panoptic)
    body += ["<h2>By class</h2>", _classes(analysis)]
    if masks is not None:
        body += masks_section(masks, scores)
    body += _thresholds_section(analysis)
    body += errors_section(analysis) + confusions_section(analysis.confusion)
    body += worst_section([(one.picture, one.caption) for one in worst])
    for chart in charts:
        body.append(f"<h2>{html.escape(chart.heading)}</h2>")
        if chart.svg is not None:
            body.append(charts_of([(chart.svg, chart.text)]))
        else:
            picture = f'<img class="curves" alt="{html.escape(chart.heading)}" src="{embedded_png(chart.png)}">'
            body += [f"<p>{html.escape(chart.text)}</p>", picture]
    write_text(path, html_page(title, body))


def counted(scores: CocoMetrics) -> str:
    """Say how many detections counted, and whether the numbers compare with published ones."""
    most = scores.max_detections
    if most == PUBLISHED_MAX_DETECTIONS:
        return f"At most {most} detections of a class count on a photo, as in published numbers."
    return (
        f"At most {most} detections of a class count on a photo, as many as the model has queries; published numbers "
        f"count {PUBLISHED_MAX_DETECTIONS}."
    )


def _classes(analysis: Analysis) -> str:
    rows = []
    for score, best in zip(analysis.scores.per_class, analysis.best.per_class, strict=True):
        numbers = (score.ap, score.ap50, score.ap75, score.ap_small, score.ap_medium, score.ap_large, score.ar)
        own = ("-", "-") if best is None else (f"{best.threshold:.2f}", f"{best.f1:.2f}")
        width = 0 if math.isnan(score.ap) else 100 * score.ap
        bar = f'<span class="bar"><span style="width:{width:.1f}%"></span></span>'
        rows.append(
            [html.escape(score.name), str(score.num_objects), bar, *(format_metric(one) for one in numbers), *own]
        )
    headings = ("class", "objects", "", "AP", "AP50", "AP75", "small", "medium", "large", "recall", "threshold", "F1")
    return table_of(headings, rows)


def _thresholds_section(analysis: Analysis) -> list[str]:
    best, curves, bins = analysis.best.overall, analysis.curves, analysis.calibration.bins
    if best is None:
        said = "Nothing right was found at any threshold; below, 0.5 is used."
    else:
        said = (
            f"F1 is best at a score of {best.threshold:.2f}: {best.precision:.0%} of what is shown is right, and "
            f"{best.recall:.0%} of the objects are found. <code>detrkit predict --threshold auto</code> uses it once it is "
            f"stored in the checkpoint, and for classes with at least {MIN_OBJECTS} objects their own. "
            "Thresholds change what is shown, never AP."
        )
    calibration = analysis.calibration
    charts = [
        (
            as_svg(draw_precision_recall(analysis.evaluation.precision)),
            "Precision against recall: the area below the curve is AP, the mean over classes; thin lines: each class at "
            "IoU 0.50.",
        ),
        (
            as_svg(
                draw_threshold_curves(
                    curves.thresholds,
                    {"precision": curves.precision, "recall": curves.recall, "F1": curves.f1},
                    None if best is None else (best.threshold, best.f1),
                )
            ),
            "Precision, recall and F1 at every threshold, all classes together, IoU 0.50.",
        ),
        (
            as_svg(
                draw_reliability(
                    [one.mean_score for one in bins], [one.share_right for one in bins], [one.count for one in bins]
                )
            ),
            "Calibration: below the dashed line, scores promise too much. Expected calibration error "
            f"{format_metric(calibration.error)}, of shown detections {format_metric(calibration.error_shown)}; "
            "numbers: detections.",
        ),
    ]
    return ["<h2>Thresholds and curves</h2>", f"<p>{said}</p>", charts_of(charts)]
