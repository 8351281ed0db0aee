"""`detrkit doctor`."""

import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from detrkit._internal.files import refuse_overwrite
from detrkit._internal.provenance import refuse_foreign_overwrite
from detrkit.checkpoints.path_kinds import DATASET, check_kinds
from detrkit.cli.console import get_console, progress_bar
from detrkit.cli.next_commands import detrkit_command, train_command, unused_name
from detrkit.data.formats.registry import FormatName, check_dataset_path
from detrkit.errors import ConfigError, arg, check_minimum
from detrkit.models.presets import preset_config

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from detrkit.data.checks.annotations import ClassCount
    from detrkit.data.checks.examine import DatasetReport
    from detrkit.data.records import SplitName

_MODEL = "detrkit-s"  # that is trained by default
_MAX_LOCATIONS = 3  # of a finding; --json and --html have all
_MAX_CLASSES = 30
_COLORS = {"error": "bold red", "warning": "yellow", "note": "cyan"}


def doctor(
    data: Path,
    /,
    *,
    split: Literal["train", "val", "test"] | None = None,
    format: FormatName | None = None,
    model: str = _MODEL,
    image_size: int | None = None,
    workers: int = 2,
    json: Annotated[Path | None, Parameter(name="--json")] = None,
    html: Path | None = None,
    fix: Path | None = None,
    follow_links: bool = False,
    cache: bool = True,
) -> None:
    """Check a dataset for errors before training on it.

    Reads all annotations and decodes all images. Prints the findings, most severe first, and the number of objects per
    class. Exit code 1 if training would fail or go wrong; with --fix, if it would on the copy.

    Example: `detrkit doctor photos --json findings.json`

    Parameters
    ----------
    data
        Dataset folder: COCO, COCO panoptic, YOLO, Pascal VOC or shards.
    split
        Check this split only; the images of others may be missing.
    format
        Annotation format; detected from the folder if omitted.
    model
        Preset to be trained: its number of queries and its stride are compared with the objects.
    image_size
        Shorter side that images will be resized to, pixels; the default of the model if omitted.
    workers
        Processes that decode images; 0 decodes in the main process.
    json
        JSON file to write with all findings.
    html
        HTML page to write with all findings and pictures of the first ones.
    fix
        Folder to create with a copy without the errors: unusable images and objects are left out, boxes are clipped. The
        copy is checked as well. The original is never changed.
    follow_links
        With --fix, copy what links in the folder point to outside of it, and what a data.yaml names there.
    cache
        Skip images that were decoded before and have not changed since, so that a large dataset can be checked in several
        runs.
    """
    check_kinds({"data": (data, DATASET)})
    check_dataset_path(data)
    check_minimum("workers", workers, 0)
    config = preset_config(model)
    if json is not None:
        refuse_foreign_overwrite(json, "json")
    if html is not None:
        refuse_foreign_overwrite(html, "html")
    _check_fix(fix, split, follow_links=follow_links)

    from detrkit._internal.files import write_text
    from detrkit.config.run import RunConfig
    from detrkit.data.checks.examine import examine
    from detrkit.training.planner import plan_model

    if image_size is None:
        image_size = plan_model(RunConfig(data=str(data), model=model)).training.image_size
    check = partial(
        examine,
        format=format,
        num_queries=config.num_queries,
        image_size=image_size,
        stride=config.stride,
        masks=config.mask_head,
        workers=workers,
    )
    with progress_bar("decoding images") as progress:
        report = check(data, split=split, cache=cache, progress=progress)
    console = get_console()
    _print_report(report, console)
    if json is not None:
        write_text(json, report.to_json())
    if html is not None:
        from detrkit.visualization.dataset_page import write_dataset_page

        write_dataset_page(html, report)
        console.print(f"page: {html}", soft_wrap=True)
    if fix is not None:
        report = _fix(report, fix, check, console, follow_links=follow_links)
    options = [] if format is None or fix is not None else ["--format", format]
    options += [] if model == _MODEL else ["--model", model]
    if line := _next_command(report, fix or data, options):
        console.print(line, soft_wrap=True)
    if report.num_errors:
        sys.exit(1)


def _next_command(report: "DatasetReport", data: Path, options: Sequence[str]) -> str:
    """Return what to run next: training on a dataset without errors, or a copy without them; "" if it is neither."""
    if not report.num_errors:
        return (
            f"see settings and duration with: {train_command(data, *options, '--dry-run')}" if not report.split else ""
        )
    if any(one.severity == "error" and one.locations for one in report.findings):
        copy = data.with_name(f"{data.stem if data.is_file() else data.name}-fixed")
        copy = unused_name(copy) if copy.exists() else copy
        return f"make a copy without these errors with: {detrkit_command('doctor', data, '--fix', copy)}"
    return ""


def _check_fix(fix: Path | None, split: "SplitName | None", *, follow_links: bool) -> None:
    """Check the arguments of a copy.

    Raises:
        ConfigError: they do not go together.
        DatasetError: the folder is not empty.
    """
    if fix is None:
        if follow_links:
            raise ConfigError(f"{arg('follow_links', True)} is for copies, which only {arg('fix')} makes; leave it out")
        return
    refuse_overwrite(fix)
    if split is not None:
        raise ConfigError(f"{arg('fix', fix)} copies the whole dataset; leave out {arg('split', split)}")


def _print_report(report: "DatasetReport", console: "Console") -> None:
    from rich.text import Text

    from detrkit._internal.text import printable

    counts = ", ".join(f"{count} {name}" for name, count in report.num_images.items())
    console.print(f"{report.format} dataset, images: {counts}")
    for note in report.notes:
        console.print(note)
    for finding in report.findings:
        count = f" ({len(finding.locations)})" if finding.locations else ""
        heading = Text.assemble("\n", (f"{finding.severity}: ", _COLORS[finding.severity]))
        console.print(heading + printable(f"{finding.title}{count}: {finding.advice}"))
        for location in finding.locations[:_MAX_LOCATIONS]:
            text = location.text.replace(f"{report.source.resolve()}/", "").removeprefix(f"{report.source}/")
            console.print("  " + printable(text), soft_wrap=True)
        if len(finding.locations) > _MAX_LOCATIONS:
            console.print(f"  ... and {len(finding.locations) - _MAX_LOCATIONS} more")
    console.print()
    console.print(class_table(report.classes, report.num_images))
    console.print(report.summary)


def class_table(classes: "Iterable[ClassCount]", splits: "Collection[SplitName]") -> "Table":
    """Build a table of the number of objects of each class in each split, and of crowds if there are any."""
    from rich.table import Table
    from rich.text import Text

    from detrkit._internal.text import printable

    classes = list(classes)
    crowds = ["crowds"] if any(any(one.crowds.values()) for one in classes) else []
    table = Table()
    table.add_column("class", overflow="fold")
    for heading in ("id", *splits, *crowds):
        table.add_column(heading, justify="right")
    for one in classes[:_MAX_CLASSES]:
        counts = [*one.objects.values(), *(sum(one.crowds.values()) for _ in crowds)]
        table.add_row(Text(printable(one.name)), str(one.category_id), *map(str, counts))
    if len(classes) > _MAX_CLASSES:
        table.add_row(f"... {len(classes) - _MAX_CLASSES} more", *[""] * (1 + len(splits) + len(crowds)))
    return table


def _fix(
    report: "DatasetReport",
    output: Path,
    check: "Callable[..., DatasetReport]",
    console: "Console",
    *,
    follow_links: bool,
) -> "DatasetReport":
    """Write the copy, print what was changed, and check it."""
    from detrkit.cli.convert_data import print_written
    from detrkit.data.checks.fix import fix_dataset

    with progress_bar("copying images") as progress:
        result = fix_dataset(report, output, follow_links=follow_links, progress=progress)
    with progress_bar("decoding images of the copy") as progress:
        copy = check(output, cache=False, progress=progress)
    console.print()
    print_written(output, result.dataset, console)
    changes = (
        (result.num_images_dropped, "images left out that cannot be used"),
        (result.num_background_dropped, "images left out because none of their objects can be used"),
        (result.num_objects_dropped, "objects left out that cannot be read"),
        (result.num_empty_boxes_dropped, "boxes left out that have no area"),
        (result.num_duplicates_dropped, "objects left out that are annotated twice"),
        (result.num_boxes_clipped, "boxes clipped to their image"),
        (result.num_segmentations_changed, "segmentations repaired, or left out and the box kept"),
        (result.num_segmentations_lost, "segmentations replaced by their boxes, which the format cannot express"),
    )
    for count, what in changes:
        if count:
            console.print(f"  {what}: {count}", soft_wrap=True)
    for finding in copy.findings:
        if finding.severity == "error":
            console.print(finding.line, soft_wrap=True)
    console.print(f"the copy: {copy.summary}", soft_wrap=True)
    return copy
