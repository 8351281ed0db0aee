"""`detrkit shard`."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter


def shard(
    data: Path,
    output: Path,
    /,
    *,
    format: Literal["coco", "panoptic", "yolo", "voc", "shards"] | None = None,
    photos: Annotated[int, Parameter(help="Photos of one shard.")] = 1000,
    seed: Annotated[int, Parameter(help="Of their order, and of the photos set aside where no split exists.")] = 42,
) -> None:
    """Pack a dataset into tar files with an index, for sets too large for a folder of single files.

    The folder is a dataset like any other: `detrkit train OUTPUT`. Each process then goes through shards of its own, one
    after the other, which network disks like. The photos' files are packed as they are. Stopped, the same command goes on.

    Example: `detrkit shard coco coco-shards`

    Parameters
    ----------
    data
        Dataset folder: COCO, COCO panoptic, YOLO, Pascal VOC or shards.
    output
        Folder to create.
    format
        How the dataset is written down; looked at when not given.
    """
    from detrkit.data.shard import shard_dataset

    shard_dataset(data, output, format, images_per_shard=photos, seed=seed)
