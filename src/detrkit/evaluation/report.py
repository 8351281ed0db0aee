"""A run on one page: scores, curves and pictures, in a single HTML file that opens from disk and fetches nothing."""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from detrkit.evaluation.coco import BoxScores
from detrkit.evaluation.table import shown
from detrkit.files import write_text
from detrkit.visualization.page import embedded_png, gallery_of, html_page

_EXPLAINED = {
    "AP": "IoU 0.50 to 0.95",
    "AP50": "IoU 0.50",
    "AP75": "IoU 0.75",
    "APs": "small objects, area < 32² px",
    "APm": "medium objects",
    "APl": "large objects, area > 96² px",
    "AR1": "recall, 1 detection",
    "AR10": "recall, 10 detections",
    "AR100": "recall, 100 detections",
    "ARs": "recall, small",
    "ARm": "recall, medium",
    "ARl": "recall, large",
}


@dataclass(frozen=True)
class ReportPicture:
    """A picture of the gallery, and what to say below it."""

    picture: Image.Image
    caption: str


def write_report(
    path: Path,
    *,
    title: str,
    subtitle: str,
    scores: BoxScores,
    judged_by: str,
    curves: bytes | None,
    gallery: Sequence[ReportPicture],
) -> None:
    """Write the page.

    Args:
        path: HTML file.
        title: first line.
        subtitle: a sentence on what was trained on what.
        scores: of the best checkpoint on the test photos.
        judged_by: what photos these are, as in "never seen in training".
        curves: PNG of the training curves.
        gallery: photos with what the model found in them.
    """
    body = [
        f"<h1>{html.escape(title)}</h1><p>{html.escape(subtitle)}</p>",
        "<h2>Scores</h2>",
        f"<p>{scores.num_photos} photos, {scores.num_objects} objects, {judged_by}.</p>",
        _numbers(scores),
    ]
    if curves is not None:
        body += [
            "<h2>Training</h2>",
            f'<img class="curves" alt="loss and AP over the steps" src="{embedded_png(curves)}">',
        ]
    if gallery:
        body += ["<h2>What it finds</h2>", gallery_of([(one.picture, one.caption) for one in gallery])]
    body += ["<h2>By class</h2>", _classes(scores)]
    write_text(path, html_page(title, body))


def _numbers(scores: BoxScores) -> str:
    cells = (
        f'<div title="{_EXPLAINED[name]}"><dt>{name}</dt><dd>{shown(value)}</dd><dt>{_EXPLAINED[name]}</dt></div>'
        for name, value in scores.numbers.items()
    )
    return f"<dl>{''.join(cells)}</dl>"


def _classes(scores: BoxScores) -> str:
    rows = "".join(
        f"<tr><td>{html.escape(score.name)}</td><td>{score.num_objects}</td><td>{shown(score.ap)}</td>"
        f"<td>{shown(score.ap50)}</td>"
        f'<td class="bar"><span style="width:{0 if math.isnan(score.ap) else 100 * score.ap:.1f}%"></span></td></tr>'
        for score in scores.per_class
    )
    head = "<tr><th>class</th><th>objects</th><th>AP</th><th>AP50</th><th></th></tr>"
    return f'<div class="wide"><table>{head}{rows}</table></div>'
