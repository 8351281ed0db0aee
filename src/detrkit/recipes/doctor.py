"""A dataset examined: what was found on the terminal, and all of it as JSON."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from detrkit.data.doctor import Diagnosis, examine
from detrkit.data.formats.folder import Form
from detrkit.data.formats.write import check_is_free
from detrkit.data.repair import repaired
from detrkit.errors import ConfigError
from detrkit.files import write_text
from detrkit.models.presets import preset_config
from detrkit.recipes.convert_data import write_copy

_MOST_PLACES = 3  # of a finding on the terminal; the JSON has them all
_MOST_CLASSES = 30
_COLOURS = {"error": "bold red", "warning": "yellow", "note": "cyan"}


def diagnose(
    data: Path,
    form: Form | None,
    model: str,
    *,
    image_size: int,
    workers: int,
    json_file: Path | None,
    fix: Path | None,
) -> Diagnosis:
    """Examine a dataset for a model, print the findings, and write them, or a mended copy, if asked.

    Raises:
        DetrkitError: the folder cannot be understood at all, or no such model.
    """
    if image_size < 32 or workers < 1:
        raise ConfigError(f"found image size {image_size} and {workers} workers, expected at least 32 and at least 1")
    if fix is not None:
        check_is_free(fix)
    config = preset_config(model)
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("decoding photos", total=None)
        diagnosis = examine(
            data,
            form,
            num_queries=config.num_queries,
            image_size=image_size,
            stride=config.stride,
            workers=workers,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    console = Console()
    print_diagnosis(diagnosis, data, console)
    if json_file is not None:
        write_text(json_file, json.dumps(_as_json(diagnosis), indent=1, ensure_ascii=False))
    if fix is not None:
        mended, counts = repaired(diagnosis.folder, diagnosis.unusable)
        write_copy(mended, fix, diagnosis.form, console)
        console.print(
            f"left out: {counts.photos} photos, {counts.flat} boxes without an area, {counts.copies} repeated objects; "
            f"cut at the edge: {counts.cut} boxes; malformed entries are gone as well",
            highlight=False,
        )
    return diagnosis


def _as_json(diagnosis: Diagnosis) -> dict[str, Any]:
    return {
        "is_fit": diagnosis.is_fit,
        "form": diagnosis.form,
        "num_photos": diagnosis.num_photos,
        "notes": diagnosis.notes,
        "findings": [asdict(finding) for finding in diagnosis.findings],
        "classes": [asdict(one) for one in diagnosis.classes],
    }


def print_diagnosis(diagnosis: Diagnosis, data: Path, console: Console) -> None:
    """Print findings, worst first, the classes, and what training would do; places are shown from the folder on."""
    photos = ", ".join(f"{count} {name}" for name, count in diagnosis.num_photos.items())
    console.print(f"{diagnosis.form.upper()} dataset, photos: {photos}", highlight=False)
    for note in diagnosis.notes:
        console.print(note, markup=False, highlight=False)
    for finding in diagnosis.findings:
        count = f" ({len(finding.places)})" if finding.places else ""
        heading = Text.assemble("\n", (f"{finding.severity}: ", _COLOURS[finding.severity]))
        console.print(heading + f"{finding.what}{count}: {finding.advice}", highlight=False)
        for place in finding.places[:_MOST_PLACES]:
            console.print("  " + place.replace(f"{data}/", ""), markup=False, highlight=False, soft_wrap=True)
        if len(finding.places) > _MOST_PLACES:
            console.print(f"  ... and {len(finding.places) - _MOST_PLACES} more", highlight=False)
    console.print()
    console.print(_class_table(diagnosis))
    console.print(_what_training_will_do(diagnosis), markup=False, highlight=False)


def _class_table(diagnosis: Diagnosis) -> Table:
    table = Table()
    table.add_column("class", overflow="fold")
    for heading in ("id", *diagnosis.num_photos):
        table.add_column(heading, justify="right")
    for one in diagnosis.classes[:_MOST_CLASSES]:
        table.add_row(one.name, str(one.category_id), *(str(count) for count in one.objects.values()))
    if len(diagnosis.classes) > _MOST_CLASSES:
        table.add_row(f"... {len(diagnosis.classes) - _MOST_CLASSES} more", *[""] * (1 + len(diagnosis.num_photos)))
    return table


def _what_training_will_do(diagnosis: Diagnosis) -> str:
    num_errors = sum(finding.severity == "error" for finding in diagnosis.findings)
    if num_errors:
        return f"training would go wrong: {num_errors} kinds of faults above are errors; mend them first"
    objects = sum(one.objects["train"] for one in diagnosis.classes)
    return (
        f"training will learn {len(diagnosis.classes)} classes from {objects} objects on {diagnosis.num_photos['train']} "
        f"photos, and be judged on {diagnosis.num_photos['val']}"
    )
