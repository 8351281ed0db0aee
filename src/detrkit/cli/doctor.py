"""`detrkit doctor`."""

import sys
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter


def doctor(
    data: Path,
    /,
    *,
    format: Literal["coco", "panoptic", "yolo", "voc", "shards"] | None = None,
    model: str = "detrkit-s",
    image_size: int | None = None,
    workers: int = 2,
    json: Annotated[Path | None, Parameter(name="--json")] = None,
    html: Path | None = None,
    fix: Path | None = None,
    fresh: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Find what is wrong with a dataset, before anything is learned from it.

    Reads every file and decodes every photo; prints the findings, worst first, the table of classes, and what training
    would do. Exit code 1 when training would go wrong.

    Example: `detrkit doctor photos --json findings.json`

    Parameters
    ----------
    data
        Dataset folder: COCO, COCO panoptic, YOLO, Pascal VOC or shards.
    format
        How the dataset is written down; looked at when not given.
    model
        Preset that is to be trained: its queries and its stride are compared with the objects.
    image_size
        Shorter side to which photos will be resized, pixels; the model's usual one when not given.
    workers
        Processes that decode photos.
    json
        File for all findings.
    html
        File for a page with all findings and pictures of the worst.
    fresh
        Decode every photo again. Otherwise photos that were decoded before, and have not changed since, are not; so a large
        set can be examined in several goes.
    fix
        Folder for a copy without the faults: what cannot be used is left out, boxes are cut at the edge. The original is
        never touched.
    """
    from detrkit.visualization.dataset_page import diagnose

    diagnosis = diagnose(
        data,
        format,
        model,
        image_size=image_size,
        workers=workers,
        json_file=json,
        html_file=html,
        fix=fix,
        fresh=fresh,
    )
    if not diagnosis.is_fit:
        sys.exit(1)
