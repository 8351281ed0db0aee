"""The part of the report that shows what goes wrong: kinds of mistakes, confusions, the worst photos. Output: HTML."""

import html
from collections.abc import Sequence

from PIL import Image

from detrkit._internal.text import plural
from detrkit.evaluation.analysis import Analysis
from detrkit.evaluation.confusion import Confusion
from detrkit.evaluation.tide import TIDE_NAMES
from detrkit.visualization.draw import ERROR_CAPTIONS, ERROR_COLORS
from detrkit.visualization.page import gallery_of, legend_of, table_of

_RULES = {
    "badly placed": "IoU 0.1 to 0.5 with an object of its class. Train longer, at a larger photo size; look whether boxes "
    "are drawn alike in all photos.",
    "wrong class": "IoU of 0.5 or more with an object of another class. See the confusions; more photos of these classes, "
    "or labels that disagree.",
    "duplicate": "IoU of 0.5 or more with an object that a better detection answers for. Train longer: the decoder learns "
    "to keep its queries apart last.",
    "background": "IoU below 0.1 with every object. Photos without objects in training help; or the object is there and "
    "was not annotated.",
    "wrong class and badly placed": "IoU 0.1 to 0.5 with an object of another class, and with none of its own.",
    "missed": "objects that no detection means. Lower the threshold, or add photos with such objects; small ones need "
    "larger photos.",
}
_MAX_CLASSES = 25  # rows of the matrix
_MAX_CONFUSIONS = 10


def errors_section(analysis: Analysis) -> list[str]:
    """How many mistakes there are of each kind, and what each costs."""
    errors, gains = analysis.errors, analysis.evaluation.gains
    rows = []
    for kind, count in errors.counts.items():
        gain = gains.get(TIDE_NAMES[kind])
        rows.append([kind, str(count), "-" if gain is None else f"+{gain:.3f}", html.escape(_RULES[kind])])
    false = int((errors.kind_of >= 0).sum())
    said = (
        f"Threshold {errors.threshold:.2f}: of the detections, {errors.num_right} right and {false} false; of the objects, "
        f"{int(errors.is_unanswered.sum())} not found. Every false detection has one kind, the first that fits "
        "from the top; an object is missed if no false detection of the first two kinds means it. AP50 gained: what "
        "mending the kind alone would add, over all detections (TIDE)."
    )
    table = table_of(("kind", "how many", "AP50 gained", "what it is, and what may help"), rows, "kinds")
    return ["<h2>Kinds of mistakes</h2>", f"<p>{said}</p>", table]


def confusions_section(confusion: Confusion) -> list[str]:
    """Which class is taken for which: the most frequent in words, then the matrix."""
    frequent = confusion.most_frequent(_MAX_CONFUSIONS)
    said = (
        f"Threshold {confusion.threshold:.2f}, IoU 0.50. Rows: what it is; columns: what was said. Background: in its "
        "column objects that were not found, in its row detections of nothing."
    )
    words = "; ".join(
        f"{html.escape(name)} taken for {html.escape(other)} {plural(count, 'time')} ({share:.0%})"
        for name, other, count, share in frequent
    )
    body = ["<h2>Confusions</h2>", f"<p>{said}</p>"]
    body.append(f"<p>Most frequent: {words}.</p>" if words else "<p>No class was taken for another.</p>")
    return [*body, _matrix(confusion.folded(_MAX_CLASSES))]


def _matrix(confusion: Confusion) -> str:
    names = [*confusion.names, "background"]
    head = "".join(f"<th><span>{html.escape(name)}</span></th>" for name in names)
    rows = []
    for label, (name, counts) in enumerate(zip(names, confusion.counts.tolist(), strict=True)):
        total = max(sum(counts), 1)
        cells = "".join(_cell(count, count / total, is_right=label == column) for column, count in enumerate(counts))
        rows.append(f"<tr><th>{html.escape(name)}</th>{cells}</tr>")
    return (
        f'<div class="wide"><table class="matrix"><thead><tr><th></th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _cell(count: int, share: float, *, is_right: bool) -> str:
    colour = "60, 180, 110" if is_right else "230, 120, 50"
    ground = f' style="background:rgba({colour}, {0.15 + 0.65 * share:.2f})"' if count else ""
    return f"<td{ground}>{count or '·'}</td>"


def worst_section(pictures: Sequence[tuple[Image.Image, str]]) -> list[str]:
    """Photos with most mistakes, and what the colours on them mean."""
    if not pictures:
        return []
    legend = legend_of(
        [
            (ERROR_COLORS[kind], f"{word}: {kind}" if word not in ("", kind) else kind)
            for kind, word in ERROR_CAPTIONS.items()
        ]
    )
    return ["<h2>Photos with most mistakes</h2>", legend, gallery_of(pictures, "photos large")]
