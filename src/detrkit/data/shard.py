"""A dataset packed into shards."""

from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from detrkit._internal.text import plain_console, plural
from detrkit.data.formats.folder import Format
from detrkit.data.formats.shards import check_place, write_shards
from detrkit.data.splits import load_dataset
from detrkit.errors import ConfigError


def shard_dataset(data: Path, output: Path, format: Format | None, *, images_per_shard: int, seed: int) -> None:
    """Read a dataset and write it as shards.

    Raises:
        DetrkitError: it cannot be read, or the output is taken.
    """
    if images_per_shard < 1 or seed < 0:
        raise ConfigError(f"found --photos {images_per_shard} and --seed {seed}, expected at least 1 and at least 0")
    console = plain_console()
    folder = load_dataset(data, format, seed=seed)
    for note in folder.notes:
        console.print(note)
    splits = folder.splits
    check_place(splits, output, images_per_shard=images_per_shard, seed=seed)
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("packing photos", total=None)
        found = write_shards(
            splits,
            output,
            images_per_shard=images_per_shard,
            seed=seed,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    counts = ", ".join(f"{len(split.records)} {name}" for name, split in splits.items())
    already = f"; there already: {plural(found, 'shard')}" if found else ""
    console.print(f"{output}: shards of {plural(images_per_shard, 'photo')}, {counts}{already}", soft_wrap=True)
