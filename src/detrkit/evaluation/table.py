"""Scores as a table on the terminal."""

import math

from rich.console import Console
from rich.table import Table

from detrkit.evaluation.coco import BoxScores

_MOST_CLASSES = 20


def print_scores(scores: BoxScores, console: Console) -> None:
    """Print the 12 numbers and AP per class that occurs; of many, the best and the worst."""
    most = f"AR{scores.max_detections}"
    numbers = Table(title=f"{scores.num_photos} photos, {scores.num_objects} objects", title_justify="left")
    for heading in ("", "AP", "AP50", "AP75", "small", "medium", "large"):
        numbers.add_column(heading, justify="left" if not heading else "right")
    value = scores.numbers
    numbers.add_row("precision", *(shown(value[name]) for name in ("AP", "AP50", "AP75", "APs", "APm", "APl")))
    numbers.add_section()
    numbers.add_row("", "AR1", "AR10", most, "small", "medium", "large", style="bold")
    numbers.add_row("recall", *(shown(value[name]) for name in ("AR1", "AR10", most, "ARs", "ARm", "ARl")))
    console.print(numbers)

    classes = Table()
    for heading in ("class", "objects", "AP", "AP50"):
        classes.add_column(heading, justify="left" if heading == "class" else "right", overflow="fold")
    present = [score for score in scores.per_class if not math.isnan(score.ap)]
    rows = [
        (score.name, str(score.num_objects), shown(score.ap), shown(score.ap50))
        for score in sorted(present, key=lambda score: score.ap, reverse=True)
    ]
    if len(rows) > _MOST_CLASSES:
        half = _MOST_CLASSES // 2
        rows[half:-half] = [(f"... {len(rows) - 2 * half} between ...", "", "", "")]
    for row in rows:
        classes.add_row(*row)
    console.print(classes)
    if absent := len(scores.per_class) - len(present):
        console.print(f"classes without an object in these photos: {absent}", highlight=False)


def shown(value: float) -> str:
    """Write a score with three digits; a dash where there was nothing to score."""
    return "-" if math.isnan(value) or value < 0 else f"{value:.3f}"
