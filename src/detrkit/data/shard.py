"""A dataset packed into shards."""

from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from detrkit.data.formats.folder import Form, read_dataset
from detrkit.data.formats.shards import check_place, write_shards
from detrkit.errors import ConfigError
from detrkit._internal.text import plain_console, plural


def shard_dataset(data: Path, output: Path, form: Form | None, *, shard_photos: int, seed: int) -> None:
    """Read a dataset and write it as shards.

    Raises:
        DetrkitError: it cannot be read, or the output is taken.
    """
    if shard_photos < 1 or seed < 0:
        raise ConfigError(f"found --photos {shard_photos} and --seed {seed}, expected at least 1 and at least 0")
    console = plain_console()
    folder = read_dataset(data, form, seed)
    for note in folder.notes:
        console.print(note)
    splits = folder.splits
    check_place(splits, output, shard_photos=shard_photos, seed=seed)
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("packing photos", total=None)
        found = write_shards(
            splits,
            output,
            shard_photos=shard_photos,
            seed=seed,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    counts = ", ".join(f"{len(split.records)} {name}" for name, split in splits.items())
    already = f"; there already: {plural(found, 'shard')}" if found else ""
    console.print(f"{output}: shards of {plural(shard_photos, 'photo')}, {counts}{already}", soft_wrap=True)
