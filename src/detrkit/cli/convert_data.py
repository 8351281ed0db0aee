"""`detrkit convert-data`."""

from pathlib import Path
from typing import Literal


def convert_data(
    source: Path,
    output: Path,
    /,
    *,
    to: Literal["coco", "panoptic", "yolo", "voc"],
    format: Literal["coco", "panoptic", "yolo", "voc", "shards"] | None = None,
) -> None:
    """Rewrite a dataset in another form, photos copied.

    Category ids, names and boxes are kept; crowds are lost in YOLO, which cannot express them, and are difficult objects
    in VOC. Panoptic data are made of panoptic data only; in other forms their segments become boxes.

    Example: `detrkit convert-data blood-cells blood-cells-coco --to coco`

    Parameters
    ----------
    source
        Dataset folder: COCO, COCO panoptic, YOLO or Pascal VOC.
    output
        Folder to create.
    to
        The other form.
    format
        How the source is written down; looked at when not given.
    """
    from detrkit.data.convert import convert_dataset

    convert_dataset(source, output, to, format)
