"""Tables of metrics on the console."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from detrkit._internal.text import plural, printable
from detrkit.cli.console import build_table

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from detrkit.evaluation.coco import CocoMetrics
    from detrkit.evaluation.metrics import EvalMetrics
    from detrkit.evaluation.panoptic import PanopticMetrics

_MAX_CLASSES = 20


def print_metrics(metrics: "EvalMetrics", console: "Console") -> None:
    """Print tables of the metrics of boxes, masks and panoptic segments, whichever there are."""
    if metrics.boxes is not None:
        print_coco_metrics(metrics.boxes, console, "" if metrics.primary == "ap" else "boxes")
    if metrics.masks is not None:
        print_coco_metrics(metrics.masks, console, "masks")
    if metrics.panoptic is not None:
        print_panoptic_metrics(metrics.panoptic, console)


def print_coco_metrics(metrics: "CocoMetrics", console: "Console", kind: str = "") -> None:
    """Print the 12 COCO metrics, and AP by class; of many classes the best and the worst.

    Args:
        metrics: of boxes or masks.
        console: to print on.
        kind: "boxes" or "masks", if there are metrics of both.
    """
    from detrkit.evaluation.metrics import format_metric

    title = (
        f"{kind + ': ' if kind else ''}{plural(metrics.num_images, 'image')}, {plural(metrics.num_objects, 'object')}"
    )
    precision, recall = list(metrics.values.items())[:6], list(metrics.values.items())[6:]
    rows = [["precision", *(format_metric(value) for _, value in precision)]]
    table = build_table(title, ("", "AP", "AP50", "AP75", "small", "medium", "large"), rows)
    table.add_section()
    table.add_row("", *(name.upper() for name, _ in recall[:3]), "small", "medium", "large", style="bold")
    table.add_row("recall", *(format_metric(value) for _, value in recall))
    console.print(table)

    present = [one for one in metrics.per_class if not math.isnan(one.ap)]
    class_rows = [
        (one.name, str(one.num_objects), format_metric(one.ap), format_metric(one.ap50))
        for one in sorted(present, key=lambda one: one.ap, reverse=True)
    ]
    console.print(_class_table(("class", "objects", "AP", "AP50"), class_rows))
    if absent := len(metrics.per_class) - len(present):
        console.print(f"classes without an object in these images: {absent}", highlight=False)


def print_panoptic_metrics(metrics: "PanopticMetrics", console: "Console") -> None:
    """Print PQ, SQ and RQ of all classes, things and stuff, and by class; of many classes the best and the worst."""
    from detrkit.evaluation.metrics import format_metric

    title = f"panoptic quality: {plural(metrics.num_images, 'image')}, {plural(metrics.num_segments, 'segment')}"
    rows = [
        (name, *(format_metric(value) for value in (one.pq, one.sq, one.rq)), str(one.num_classes))
        for name, one in metrics.groups.items()
    ]
    console.print(build_table(title, ("", "PQ", "SQ", "RQ", "classes"), rows))
    present = [one for one in metrics.per_class if not math.isnan(one.pq)]
    class_rows = [
        (one.name, str(one.num_segments), *(format_metric(value) for value in (one.pq, one.sq, one.rq)))
        for one in sorted(present, key=lambda one: one.pq, reverse=True)
    ]
    console.print(_class_table(("class", "segments", "PQ", "SQ", "RQ"), class_rows))
    if absent := len(metrics.per_class) - len(present):
        console.print(f"classes that neither occur nor are predicted: {absent}", highlight=False)


def _class_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> "Table":
    """Build a table with a row per class, best first; of many classes the first and the last ones."""
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "class" else "right", overflow="fold")
    half = _MAX_CLASSES // 2
    is_long = len(rows) > _MAX_CLASSES
    for row in rows[:half] if is_long else rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    if is_long:
        table.add_row(f"... {len(rows) - 2 * half} more ...", *[""] * (len(headings) - 1))
        for row in rows[-half:]:
            table.add_row(*(Text(printable(cell)) for cell in row))
    return table
