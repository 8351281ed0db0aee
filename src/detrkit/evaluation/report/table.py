"""Scores as a table on the terminal."""

import math
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from detrkit._internal.text import plural, printable
from detrkit.evaluation.coco import CocoMetrics
from detrkit.evaluation.metrics import format_metric
from detrkit.evaluation.panoptic import PanopticScores

_MAX_CLASSES = 20


def print_scores(scores: CocoMetrics, console: Console, what: str = "") -> None:
    """Print the 12 numbers and AP per class that occurs; of many, the best and the worst.

    Args:
        scores: of boxes or masks.
        console: where to.
        what: has these scores, where it is not boxes alone.
    """
    most = f"ar{scores.max_detections}"
    title = f"{what + ': ' if what else ''}{plural(scores.num_images, 'photo')}, {plural(scores.num_objects, 'object')}"
    numbers = Table(title=title, title_justify="left")
    for heading in ("", "AP", "AP50", "AP75", "small", "medium", "large"):
        numbers.add_column(heading, justify="left" if not heading else "right")
    value = scores.values
    numbers.add_row(
        "precision",
        *(format_metric(value[name]) for name in ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")),
    )
    numbers.add_section()
    numbers.add_row("", "AR1", "AR10", most.upper(), "small", "medium", "large", style="bold")
    numbers.add_row(
        "recall", *(format_metric(value[name]) for name in ("ar1", "ar10", most, "ar_small", "ar_medium", "ar_large"))
    )
    console.print(numbers)

    present = [score for score in scores.per_class if not math.isnan(score.ap)]
    rows = [
        (score.name, str(score.num_objects), format_metric(score.ap), format_metric(score.ap50))
        for score in sorted(present, key=lambda score: score.ap, reverse=True)
    ]
    console.print(_class_table(("class", "objects", "AP", "AP50"), rows))
    if absent := len(scores.per_class) - len(present):
        console.print(f"classes without an object in these photos: {absent}", highlight=False)


def print_panoptic(scores: PanopticScores, console: Console) -> None:
    """Print PQ, SQ and RQ of all, things and stuff, and per class that occurs; of many, the best and the worst."""
    title = f"panoptic quality: {plural(scores.num_images, 'photo')}, {plural(scores.num_segments, 'segment')}"
    groups = Table(title=title, title_justify="left")
    for heading in ("", "PQ", "SQ", "RQ", "classes"):
        groups.add_column(heading, justify="right" if heading else "left")
    for name, quality in scores.groups.items():
        numbers = (quality.pq, quality.sq, quality.rq)
        groups.add_row(name, *(format_metric(number) for number in numbers), str(quality.num_classes))
    console.print(groups)
    present = [one for one in scores.per_class if not math.isnan(one.pq)]
    rows = [
        (one.name, str(one.num_segments), format_metric(one.pq), format_metric(one.sq), format_metric(one.rq))
        for one in sorted(present, key=lambda one: one.pq, reverse=True)
    ]
    console.print(_class_table(("class", "segments", "PQ", "SQ", "RQ"), rows))
    if absent := len(scores.per_class) - len(present):
        console.print(f"classes that neither occur nor are predicted: {absent}", highlight=False)


def _class_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Lay out a row per class, best first; of many, the first and the last."""
    table = Table()
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "class" else "right", overflow="fold")
    half = _MAX_CLASSES // 2
    is_long = len(rows) > _MAX_CLASSES
    for row in rows[:half] if is_long else rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    if is_long:
        table.add_row(f"... {len(rows) - 2 * half} between ...", *[""] * (len(headings) - 1))
        for row in rows[-half:]:
            table.add_row(*(Text(printable(cell)) for cell in row))
    return table
