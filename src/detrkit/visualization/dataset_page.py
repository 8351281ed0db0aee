"""A dataset examined: what was found on the terminal, and all of it as JSON."""

import html
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from PIL import Image
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from detrkit._internal.files import refuse_overwrite, write_text
from detrkit._internal.provenance import refuse_foreign_overwrite
from detrkit._internal.text import plain_console, plural, printable
from detrkit.config.run import RunConfig
from detrkit.data.checks.annotations import ClassCount, Finding, Location
from detrkit.data.checks.decode_cache import cache_path
from detrkit.data.checks.examine import DatasetReport, examine
from detrkit.data.checks.fix import fix_dataset
from detrkit.data.convert import write_copy
from detrkit.data.formats.folder import Format
from detrkit.data.images import open_image
from detrkit.data.records import Record, SplitName
from detrkit.errors import ConfigError, DatasetError
from detrkit.models.presets import preset_config
from detrkit.training.planner import plan_model
from detrkit.visualization.draw import draw_boxes
from detrkit.visualization.page import html_page, image_gallery

_FORMAT = "detrkit-findings-1"
_MAX_PLACES = 3  # of a finding on the terminal; the JSON has them all
_MAX_CLASSES = 30
_MAX_LISTED = 1000  # places of a finding on the page
_MAX_PICTURES = 8
_PICTURE_SIDE = 480  # pixels
_COLOURS = {"error": "bold red", "warning": "yellow", "note": "cyan"}


def diagnose(
    data: Path,
    format: Format | None,
    model: str,
    *,
    image_size: int | None,
    workers: int,
    json_file: Path | None,
    html_file: Path | None,
    fix: Path | None,
    fresh: bool = False,
) -> DatasetReport:
    """Examine a dataset for a model, print the findings, and write them, or a mended copy, if asked.

    Raises:
        DetrkitError: the folder cannot be understood at all, or no such model.
    """
    if image_size is None:
        image_size = plan_model(RunConfig(data=str(data), model=model)).training.image_size
    _check_wishes(image_size, workers, json_file, html_file, fix)
    config = preset_config(model)
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("decoding photos", total=None)
        diagnosis = examine(
            data,
            format,
            num_queries=config.num_queries,
            image_size=image_size,
            stride=config.stride,
            workers=workers,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
            memory=None if fresh else cache_path(data),
        )
    console = plain_console()
    print_diagnosis(diagnosis, data, console)
    if json_file is not None:
        write_text(json_file, json.dumps(_as_json(diagnosis), indent=1, ensure_ascii=False))
    if html_file is not None:
        write_page(html_file, diagnosis, data)
        console.print(f"page: {html_file}", soft_wrap=True)
    if fix is not None:
        mended, counts = fix_dataset(diagnosis.folder, diagnosis.unusable)
        write_copy(mended, fix, cast("Format", diagnosis.format), console)
        if diagnosis.format == "coco":
            console.print("outlines of objects, where there were some, are not in the copy")
        console.print(
            f"left out: {plural(counts.photos, 'photo')}, {plural(counts.flat, 'box', 'boxes')} without an area, "
            f"{plural(counts.copies, 'repeated object')}; cut at the edge: {plural(counts.cut, 'box', 'boxes')}; malformed "
            "entries are gone as well",
        )
    return diagnosis


def _check_wishes(
    image_size: int, workers: int, json_file: Path | None, html_file: Path | None, fix: Path | None
) -> None:
    """See, before every photo is decoded, that the numbers make sense and nothing would be overwritten."""
    if not 32 <= image_size <= 10_000:
        raise ConfigError(f"--image-size: found {image_size}, expected 32 to 10000 pixels of a photo's shorter side")
    if workers < 1:
        raise ConfigError(f"--workers: found {workers}, expected at least 1")
    if json_file is not None:
        refuse_foreign_overwrite(json_file, "json")
    if html_file is not None:
        refuse_foreign_overwrite(html_file, "html")
    if fix is not None:
        refuse_overwrite(fix)


def _as_json(diagnosis: DatasetReport) -> dict[str, Any]:
    return {
        "version": _FORMAT,
        "is_fit": diagnosis.is_fit,
        "format": diagnosis.format,
        "num_images": diagnosis.num_images,
        "max_objects": diagnosis.max_objects,
        "notes": diagnosis.notes,
        "findings": [
            {
                **asdict(finding),
                "places": [
                    {"text": one.text, "photo": str(one.photo) if one.photo else None, "box": one.box}
                    for one in finding.places
                ],
            }
            for finding in diagnosis.findings
        ],
        "classes": [asdict(one) for one in diagnosis.classes],
    }


def write_page(path: Path, diagnosis: DatasetReport, data: Path) -> None:
    """Write all findings on one page, with pictures of the first places of each."""
    photos = ", ".join(f"{count} {name}" for name, count in diagnosis.num_images.items())
    body = [
        f"<h1>{html.escape(str(data))}</h1><p>{str(diagnosis.format).upper()} dataset, photos: {photos}</p>",
        *(f"<p>{html.escape(note)}</p>" for note in diagnosis.notes),
        f"<p>{html.escape(_what_training_will_do(diagnosis))}</p>",
    ]
    shown = {place.photo for finding in diagnosis.findings for place in finding.places[:_MAX_PICTURES]}
    splits_of_folder = diagnosis.folder.splits.values()
    records = {record.path: record for split in splits_of_folder for record in split.records if record.path in shown}
    for finding in diagnosis.findings:
        count = f" ({len(finding.places)})" if finding.places else ""
        texts = [html.escape(_from_folder_on(place, data)) for place in finding.places[:_MAX_LISTED]]
        body += [
            f"<h2>{finding.severity}: {html.escape(finding.what)}{count}</h2><p>{html.escape(finding.advice)}</p>",
            image_gallery(list(_pictures(finding, records))),
            f"<details><summary>places</summary><p>{'<br>'.join(texts)}</p></details>" if texts else "",
        ]
    splits = list(diagnosis.num_images)
    head = "".join(f"<th>{html.escape(heading)}</th>" for heading in ("class", "id", *splits))
    rows = "".join(
        f"<tr><td>{html.escape(one.name)}</td><td>{one.category_id}</td>"
        + "".join(f"<td>{one.objects[split]}</td>" for split in splits)
        + "</tr>"
        for one in diagnosis.classes
    )
    body.append(f'<h2>Classes</h2><div class="wide"><table><tr>{head}</tr>{rows}</table></div>')
    write_text(path, html_page(f"doctor: {data.name}", body))


def _pictures(finding: Finding, records: Mapping[Path, Record]) -> Iterator[tuple[Image.Image, str]]:
    """The first photos of a finding, with the box at fault."""
    for place in finding.places[:_MAX_PICTURES]:
        if place.photo is None or place.photo not in records:
            continue
        record = records[place.photo]
        try:
            photo = open_image(record.path, record.size, record.span)
        except DatasetError:
            continue
        scale = min(1.0, _PICTURE_SIDE / max(photo.size))
        photo = photo.resize((max(1, round(photo.width * scale)), max(1, round(photo.height * scale))))
        if place.box is not None:
            photo = draw_boxes(photo, [_visible([value * scale for value in place.box])], [0], [()])
        yield photo, place.photo.name


def _from_folder_on(place: Location, data: Path) -> str:
    """Shorten paths below the dataset folder, which readers may have resolved."""
    return place.text.replace(f"{data.resolve()}/", "").removeprefix(f"{data}/")


def _visible(box: list[float]) -> list[float]:
    """A frame around a box that is too small to be seen."""
    left, top, right, bottom = box
    margin = 12.0 if min(right - left, bottom - top) < 8 else 0.0
    return [left - margin, top - margin, right + margin, bottom + margin]


def print_diagnosis(diagnosis: DatasetReport, data: Path, console: Console) -> None:
    """Print findings, worst first, the classes, and what training would do; places are shown from the folder on."""
    photos = ", ".join(f"{count} {name}" for name, count in diagnosis.num_images.items())
    console.print(f"{str(diagnosis.format).upper()} dataset, photos: {photos}")
    for note in diagnosis.notes:
        console.print(note)
    for finding in diagnosis.findings:
        count = f" ({len(finding.places)})" if finding.places else ""
        heading = Text.assemble("\n", (f"{finding.severity}: ", _COLOURS[finding.severity]))
        console.print(heading + printable(f"{finding.what}{count}: {finding.advice}"))
        for place in finding.places[:_MAX_PLACES]:
            console.print("  " + printable(_from_folder_on(place, data)), soft_wrap=True)
        if len(finding.places) > _MAX_PLACES:
            console.print(f"  ... and {len(finding.places) - _MAX_PLACES} more")
    console.print()
    console.print(class_table(diagnosis.classes, diagnosis.num_images))
    console.print(_what_training_will_do(diagnosis))


def class_table(classes: Iterable[ClassCount], splits: Collection[SplitName]) -> Table:
    """Lay out how many objects of each class the splits hold."""
    classes = list(classes)
    table = Table()
    table.add_column("class", overflow="fold")
    for heading in ("id", *splits):
        table.add_column(heading, justify="right")
    for one in classes[:_MAX_CLASSES]:
        table.add_row(Text(printable(one.name)), str(one.category_id), *(str(count) for count in one.objects.values()))
    if len(classes) > _MAX_CLASSES:
        table.add_row(f"... {len(classes) - _MAX_CLASSES} more", *[""] * (1 + len(splits)))
    return table


def _what_training_will_do(diagnosis: DatasetReport) -> str:
    num_errors = sum(finding.severity == "error" for finding in diagnosis.findings)
    if num_errors:
        return (
            "training would go wrong: of the findings above, "
            f"{plural(num_errors, 'is an error', 'are errors')}, to be mended first"
        )
    objects = sum(one.objects["train"] for one in diagnosis.classes)
    return (
        f"training will learn {plural(len(diagnosis.classes), 'class', 'classes')} from {plural(objects, 'object')} on "
        f"{plural(diagnosis.num_images['train'], 'photo')}, and be judged on {diagnosis.num_images['val']}; the fullest "
        f"photo has {plural(diagnosis.max_objects, 'object')}"
    )
