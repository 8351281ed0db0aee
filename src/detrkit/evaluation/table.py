"""Scores as a table on the terminal."""

import math

from rich.console import Console
from rich.table import Table

from detrkit.evaluation.coco import BoxScores

_MOST_CLASSES = 20


def print_scores(scores: BoxScores, console: Console) -> None:
    """Print the 12 numbers and AP per class; of many classes, the best and the worst."""
    numbers = Table(title=f"{scores.num_photos} photos, {scores.num_objects} objects", title_justify="left")
    for heading in ("", "AP", "AP50", "AP75", "small", "medium", "large"):
        numbers.add_column(heading, justify="left" if not heading else "right")
    value = scores.numbers
    numbers.add_row("precision", *(_shown(value[name]) for name in ("AP", "AP50", "AP75", "APs", "APm", "APl")))
    numbers.add_section()
    numbers.add_row("", "AR1", "AR10", "AR100", "small", "medium", "large", style="bold")
    numbers.add_row("recall", *(_shown(value[name]) for name in ("AR1", "AR10", "AR100", "ARs", "ARm", "ARl")))
    console.print(numbers)

    classes = Table()
    for heading in ("class", "objects", "AP", "AP50"):
        classes.add_column(heading, justify="left" if heading == "class" else "right", overflow="fold")
    rows = sorted(scores.per_class, key=lambda score: -1 if math.isnan(score.ap) else score.ap, reverse=True)
    hidden = len(rows) - _MOST_CLASSES
    for index, score in enumerate(rows):
        if hidden > 0 and index == _MOST_CLASSES // 2:
            classes.add_row(f"... {hidden} more ...", "", "", "")
        if hidden <= 0 or index < _MOST_CLASSES // 2 or index >= len(rows) - _MOST_CLASSES // 2:
            classes.add_row(score.name, str(score.num_objects), _shown(score.ap), _shown(score.ap50))
    console.print(classes)


def _shown(value: float) -> str:
    return "-" if math.isnan(value) or value < 0 else f"{value:.3f}"
