"""`detrkit evaluate`."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter


def evaluate(
    source: str,
    data: str,
    /,
    *,
    split: Literal["val", "train", "test"] = "val",
    format: Literal["coco", "yolo", "voc", "shards"] | None = None,  # noqa: A002
    batch_size: int = 1,
    device: str = "auto",
    workers: int = 2,
    output: Annotated[Path | None, Parameter(name=["--output", "-o"])] = None,
) -> None:
    """Score a model on a dataset: the 12 COCO numbers, and AP per class.

    Example: `detrkit evaluate runs/first coco --output results.json`

    Parameters
    ----------
    source
        Run folder, weights file, exported file, Hugging Face folder or id, or preset.
    data
        Dataset folder: COCO, YOLO or Pascal VOC.
    split
        Which part of the dataset.
    format
        How the dataset is written down; looked at when not given.
    batch_size
        Photos at a time; does not change the numbers.
    device
        `cpu`, `cuda`, `cuda:1`; `auto` takes a GPU if there is one.
    workers
        Processes that read photos.
    output
        File for the detections, as COCO results JSON.
    """
    from detrkit.recipes.evaluate import evaluate_source

    evaluate_source(
        source, data, split, form=format, batch_size=batch_size, device=device, workers=workers, output=output
    )
