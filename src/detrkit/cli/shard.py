"""`detrkit shard`."""

from pathlib import Path

from detrkit.checkpoints.path_kinds import DATASET, NEW, check_kinds
from detrkit.cli.console import get_console, progress_bar
from detrkit.data.formats.registry import FormatName, check_dataset_path
from detrkit.errors import check_minimum


def shard(
    data: Path,
    output: Path,
    /,
    *,
    format: FormatName | None = None,
    images_per_shard: int = 1000,
    seed: int = 42,
    follow_links: bool = False,
) -> None:
    """Pack a dataset into tar shards with an index, for datasets too large for single files.

    The folder is a dataset like any other: `detrkit train OUTPUT`. Each process reads its own shards one after the other,
    which suits network disks. Image files are packed as they are. If interrupted, the same command resumes.

    Example: `detrkit shard coco coco-shards`

    Parameters
    ----------
    data
        Dataset folder: COCO, COCO panoptic, YOLO, Pascal VOC or shards.
    output
        Folder to create.
    format
        Annotation format; detected from the folder if omitted.
    images_per_shard
        Images in a shard.
    seed
        Seed of the order of the images, and of the validation images if there is no validation split.
    follow_links
        Pack what links in the folder point to outside of it, and what a data.yaml names there; only images are packed.
    """
    check_kinds({"data": (data, DATASET), "output": (output, NEW)})
    check_dataset_path(data)
    check_minimum("images_per_shard", images_per_shard, 1)
    check_minimum("seed", seed, 0)

    from detrkit._internal.text import plural
    from detrkit.data.convert import shard_dataset

    console = get_console()
    with progress_bar("packing images") as progress:
        result = shard_dataset(
            data,
            output,
            format=format,
            images_per_shard=images_per_shard,
            seed=seed,
            follow_links=follow_links,
            progress=progress,
        )
    for note in result.notes:
        console.print(note)
    counts = ", ".join(f"{count} {name}" for name, count in result.num_images.items())
    existing = f"; existing: {plural(result.num_existing_shards, 'shard')}" if result.num_existing_shards else ""
    console.print(
        f"{output}: shards of {plural(images_per_shard, 'image')}, {counts}{existing}",
        soft_wrap=True,
    )
