"""A dataset rewritten: in another form, or without its faults."""

from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from detrkit._internal.files import refuse_overwrite
from detrkit._internal.text import plain_console, plural
from detrkit.data.dataset import DatasetSplits
from detrkit.data.formats.folder import Format
from detrkit.data.formats.write import write_dataset
from detrkit.data.splits import load_dataset
from detrkit.errors import DatasetError


def convert_dataset(source: Path, output: Path, format: Format, source_format: Format | None = None) -> DatasetSplits:
    """Read a dataset and write it in another form.

    Raises:
        DatasetError: the source cannot be read, or the output exists.
    """
    refuse_overwrite(output)
    console = plain_console()
    folder = load_dataset(source, source_format)
    if format == folder.format == "coco":
        try:
            folder = load_dataset(source, "coco", masks=True)
        except DatasetError as error:
            console.print(f"outlines are left out: {error}", soft_wrap=True)
    return write_copy(folder, output, format, console)


def write_copy(folder: DatasetSplits, output: Path, format: Format, console: Console) -> DatasetSplits:
    """Write a dataset, read it back, and say what was written."""
    splits = folder.splits
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("copying photos", total=None)
        left_out = write_dataset(
            splits, output, format, lambda done, total: bar.update(task, completed=done, total=total)
        )
    for note in folder.notes:
        console.print(note)
    if left_out:
        console.print(f"left out: {plural(left_out, 'crowd')}, which {format.upper()} cannot express")
    written = load_dataset(output, format)
    counts = ", ".join(f"{len(content.records)} {name}" for name, content in written.splits.items())
    console.print(
        f"{output}: {format.upper()}, {plural(len(written.train.categories), 'class', 'classes')}, photos: {counts}",
    )
    return written
