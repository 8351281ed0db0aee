"""What an evaluation has to do with where the model comes from: its run, its categories, its thresholds."""

from contextlib import nullcontext
from pathlib import Path

from rich.console import Console

from detrkit._internal.files import file_lock
from detrkit._internal.text import plural
from detrkit.checkpoints.load import local_file
from detrkit.checkpoints.native import Thresholds, is_own_file, store_thresholds
from detrkit.config.run import RunConfig, load_run_config
from detrkit.data.categories import Categories
from detrkit.data.records import SplitName
from detrkit.errors import ConfigError, DatasetError, DetrkitError


def run_of(source: str, data: str) -> RunConfig | None:
    """The run that a source is, or lies in, if it learned from this dataset."""
    place = Path(source).absolute()
    # RUN, RUN/best, RUN/best/model.safetensors, or what was exported to RUN
    file = next((found for one in (place, *place.parents[:2]) if (found := one / "config.yaml").is_file()), None)
    if file is None:
        return None
    try:
        config = load_run_config(file)
    except DetrkitError:
        return None  # a config of something else
    return config if Path(config.data).resolve() == Path(data).resolve() else None


def threshold_store_for(source: str, data: str, split: SplitName, wanted: bool | None) -> Path | None:
    """Where the best thresholds are to be stored: if asked to, or if these are the run's own validation photos.

    Raises:
        ConfigError: it was asked for, and the source has no place for them.
    """
    is_own = split == "val" and run_of(source, data) is not None
    if not (is_own if wanted is None else wanted):
        return None
    path = local_file(source)
    if path is None or not is_own_file(path):
        raise ConfigError(
            f"--store-thresholds: {source} has no place for thresholds; detrkit convert {source} OUT.safetensors --to "
            "detrkit makes a file that has"
        )
    return path


def state_of_file(path: Path) -> tuple[int, ...]:
    """What differs once a file was written anew."""
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


def store_thresholds_of(
    path: Path, thresholds: Thresholds | None, console: Console, *, evaluated: tuple[int, ...], wanted: bool
) -> None:
    """Store the best thresholds in a checkpoint of ours, unless its weights are others by now.

    Args:
        path: of the checkpoint.
        thresholds: what was found best.
        console: where to speak.
        evaluated: `state_of_file` of it when it was read.
        wanted: whether somebody asked for it; otherwise a checkpoint that cannot be written to is only told.

    Raises:
        DetrkitError: somebody asked, and it cannot be done.
    """
    if thresholds is None:
        console.print("nothing right was found, so no threshold was stored")
        return
    try:
        run = path.parent.parent
        with file_lock(run) if (run / "config.yaml").is_file() else nullcontext():  # which may still be training
            if state_of_file(path) != evaluated:
                raise ConfigError(f"{path}: was written anew since it was read; evaluate again")
            store_thresholds(path, thresholds)
    except DetrkitError as error:
        if wanted:
            raise
        console.print(f"thresholds were not stored: {error}", soft_wrap=True)
        return
    console.print(
        f"thresholds stored in {path}, {plural(len(thresholds.per_class), 'class', 'classes')} with their own; detrkit "
        "predict --threshold auto uses them",
        soft_wrap=True,
    )


def check_categories(of_model: Categories, of_data: Categories, source: Path, verb: str = "evaluate") -> None:
    """See that a category id means the same to the model and to the data.

    Raises:
        DatasetError: it does not.
    """
    known = dict(zip(of_model.ids, of_model.names, strict=True))
    for number, name in zip(of_data.ids, of_data.names, strict=True):
        if number not in known:
            raise DatasetError(
                f"{source}: category {number} ({name}) is unknown to the model, which knows {len(known)} categories; "
                f"{verb} on data with the categories that it was trained on"
            )
        if known[number] != name and not known[number].startswith("class "):
            raise DatasetError(
                f"{source}: category {number} is {name!r} here and {known[number]!r} to the model; "
                f"{verb} on data with the categories that it was trained on"
            )
