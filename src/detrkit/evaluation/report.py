"""A run on one page: scores, curves and pictures, in a single HTML file that opens from disk and fetches nothing."""

import base64
import html
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from detrkit.evaluation.coco import BoxScores
from detrkit.evaluation.table import shown
from detrkit.files import write_text

_STYLE = """
:root { color-scheme: light dark; --ink: #1d2433; --soft: #5b6577; --ground: #fff; --line: #d9dee7; --bar: #3b6fd4 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ef; --soft: #9aa4b5; --ground: #14181f; --line: #2c3442; --bar: #6d9bf1 }
}
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--ground);
  max-width: 68rem; margin: 0 auto; padding: 1.5rem 1rem 4rem }
h1 { font-size: 1.5rem; margin: 0 }
h2 { font-size: 1.1rem; margin: 2rem 0 .5rem }
p { color: var(--soft); margin: .3rem 0 }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(8rem, 1fr)); gap: .5rem; margin: 0 }
dl div { border: 1px solid var(--line); border-radius: .4rem; padding: .4rem .6rem }
dt { color: var(--soft); font-size: .85rem } dd { margin: 0; font-size: 1.25rem; font-variant-numeric: tabular-nums }
.wide { overflow-x: auto } table { border-collapse: collapse; width: 100% }
th, td { text-align: right; padding: .25rem .6rem; border-bottom: 1px solid var(--line) }
td { font-variant-numeric: tabular-nums }
th:first-child, td:first-child { text-align: left } td.bar { width: 35% }
td.bar span { display: block; height: .6rem; background: var(--bar); border-radius: .2rem }
img { max-width: 100%; border-radius: .3rem } .curves { background: #fff; padding: .3rem }
.photos { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: .8rem }
figure { margin: 0 } figure img { width: 100% } figcaption { color: var(--soft); font-size: .85rem }
"""
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
        body += ["<h2>Training</h2>", f'<img class="curves" alt="loss and AP over the steps" src="{_png(curves)}">']
    if gallery:
        figures = "".join(
            f'<figure><img alt="{html.escape(one.caption)}" src="{_photo(one.picture)}">'
            f"<figcaption>{html.escape(one.caption)}</figcaption></figure>"
            for one in gallery
        )
        body += ["<h2>What it finds</h2>", f'<div class="photos">{figures}</div>']
    body += ["<h2>By class</h2>", _classes(scores)]
    page = (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style>{''.join(body)}</html>"
    )
    write_text(path, page)


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


def _png(content: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(content).decode()


def _photo(picture: Image.Image) -> str:
    small = picture.copy()
    small.thumbnail((480, 480))
    buffer = io.BytesIO()
    small.convert("RGB").save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
