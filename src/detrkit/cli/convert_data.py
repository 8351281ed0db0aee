"""`detrkit convert-data`."""

from pathlib import Path
from typing import TYPE_CHECKING

from detrkit._internal.files import refuse_overwrite
from detrkit.checkpoints.path_kinds import DATASET, NEW, check_kinds
from detrkit.cli.console import get_console, progress_bar
from detrkit.data.formats.registry import FormatName, check_dataset_path

if TYPE_CHECKING:
    from rich.console import Console

    from detrkit.data.dataset import DatasetSplits


def convert_data(
    source: Path,
    output: Path,
    /,
    *,
    to: FormatName,
    format: FormatName | None = None,
    follow_links: bool = False,
) -> None:
    """Convert a dataset to another format; images are copied.

    Category ids, names and boxes are kept, and in COCO the segmentations of the objects that have one; in YOLO, polygons
    of images whose objects all have one. Crowds are dropped in YOLO, and become difficult objects in Pascal VOC. Panoptic
    annotations can only be written from panoptic ones; in COCO their segments become run lengths, in other formats boxes.
    The copy has the splits of the folder. After an error nothing is left of the output.

    Example: `detrkit convert-data blood-cells blood-cells-coco --to coco`

    Parameters
    ----------
    source
        Dataset folder: COCO, COCO panoptic, YOLO, Pascal VOC or shards.
    output
        Folder to create.
    to
        Format of the new annotations.
    format
        Format of the source; detected from the folder if omitted.
    follow_links
        Copy what links in the folder point to outside of it, and what a data.yaml names there; only images are copied.
    """
    check_kinds({"source": (source, DATASET), "output": (output, NEW)})
    check_dataset_path(source)
    refuse_overwrite(output)

    from detrkit.data.convert import convert_dataset

    console = get_console()
    with progress_bar("copying images") as progress:
        result = convert_dataset(source, output, to, source_format=format, follow_links=follow_links, progress=progress)
    for note in result.notes:
        console.print(note, soft_wrap=True)
    print_written(output, result.dataset, console)


def print_written(output: Path, dataset: "DatasetSplits", console: "Console") -> None:
    """Print the folder, format and size of a dataset that was written."""
    from detrkit._internal.text import plural

    counts = ", ".join(f"{len(split)} {name}" for name, split in dataset.splits.items())
    classes = plural(len(dataset.categories), "class", "classes")
    console.print(f"{output}: {dataset.format}, {classes}, images: {counts}", soft_wrap=True)
