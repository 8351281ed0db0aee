"""Registry of dataset formats. Importing it does not import torch.

To add a format, write a module like those below (see `DatasetFormat`) and add a line to `FORMATS`.
"""

from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from detrkit.errors import ConfigError, DatasetError, arg, did_you_mean

if TYPE_CHECKING:
    from detrkit.data.dataset import Split
    from detrkit.data.formats.context import ReadContext
    from detrkit.data.records import SplitName

FORMATS = {
    "coco": "detrkit.data.formats.coco",
    "panoptic": "detrkit.data.formats.panoptic",
    "yolo": "detrkit.data.formats.yolo",
    "voc": "detrkit.data.formats.voc",
    "shards": "detrkit.data.formats.shards",
}

_MAX_WRAPPERS = 4  # a folder, and those in it that contain nothing but the next one

# choices of the command line
if TYPE_CHECKING:
    FormatName = str
else:
    FormatName = Literal[tuple(FORMATS)]


@runtime_checkable
class DatasetFormat(Protocol):
    """Interface of the module of a dataset format.

    Attributes:
        LAYOUT: files of a dataset in this format, for messages.
        HAS_MASKS: whether masks can be read.
    """

    LAYOUT: str
    HAS_MASKS: bool

    def detect(self, path: Path) -> float:
        """Return the confidence that a folder or file is in this format, 0 .. 1: 1 for a file that no other format has."""

    def read(self, path: Path, context: "ReadContext") -> "dict[SplitName, Split]":
        """Read the splits of a folder or file that `context` asks for; see `read_splits`."""

    def write(self, splits: "dict[SplitName, Split]", output: Path, progress: Callable[[int, int], None] | None) -> int:
        """Write splits to a new folder, and return the number of crowds that the format cannot express."""


def load_format(name: str) -> DatasetFormat:
    """Import the module of a format.

    Raises:
        ConfigError: there is no such format.
    """
    if name not in FORMATS:
        raise ConfigError(f"{arg('format', name)} is not a dataset format; {did_you_mean(name, FORMATS)}")
    module: Any = import_module(FORMATS[name])
    return module


def check_dataset_path(path: str | Path) -> Path:
    """Check that a dataset folder or file exists.

    Raises:
        DatasetError: it does not.
    """
    if not Path(path).exists():
        raise DatasetError(f"{path}: no such file or folder, expected a dataset folder; check the path")
    return Path(path)


def detect_format(path: Path) -> str:
    """Detect the format of a dataset folder or file.

    Raises:
        DatasetError: it is in no known format; one that is not read is named.
    """
    from detrkit.data.formats.recognise import recognise

    _, found = _look_inside(path)
    if found is None:
        other = recognise(path)
        what = "a file that is no dataset" if path.is_file() else "no annotations"
        raise DatasetError(other or f"{path}: found {what}, expected {layouts()}")
    return found


def _look_inside(path: Path) -> tuple[Path, str | None]:
    """Detect a dataset in a folder, or in its only folder, as archives contain it.

    Returns:
        The folder of the dataset and its format; the given folder and None if there is no dataset.
    """
    inner = path
    for _ in range(_MAX_WRAPPERS):
        confidence = {name: load_format(name).detect(inner) for name in FORMATS}
        best = max(confidence, key=confidence.__getitem__)
        if confidence[best] > 0:
            return inner, best
        inside = [] if inner.is_file() else [one for one in inner.iterdir() if one.is_dir()]
        folders = [one for one in inside if not one.name.startswith((".", "__"))]
        if len(folders) != 1:
            break
        inner = folders[0]
    return path, None


def layouts() -> str:
    """Describe the files of all formats, for messages."""
    return "; ".join(f"{name}: {load_format(name).LAYOUT}" for name in FORMATS)


def read_splits(path: Path, format: str | None, context: "ReadContext") -> "tuple[str, dict[SplitName, Split]]":
    """Read the splits of a dataset.

    Args:
        path: its folder; or its data.yaml, or its COCO JSON, which is the training split.
        format: of the annotations; None detects it.
        context: what to read; collects notes and findings.

    Returns:
        The format, and the splits: at least one, unless some were asked for that do not exist.

    Raises:
        DatasetError: nothing is there, the format is not known or has no masks, or a file is malformed.
        ConfigError: there is no such format.
    """
    named = path = check_dataset_path(path)
    context.begin(named)
    name = format
    if name is None:
        path, name = _look_inside(path)
    name = name or detect_format(path)  # raises, with what was found
    module = load_format(name)
    if context.masks is True and not module.HAS_MASKS:
        with_masks = " or ".join(one for one in FORMATS if load_format(one).HAS_MASKS)
        raise DatasetError(
            f"{path}: detrkit reads no masks from {name} data; provide the annotations as {with_masks}, or train a model "
            "without masks"
        )
    splits = module.read(path, context)
    for split in splits.values():
        if split.source.is_file():
            context.opened(split.source)
    splits = {
        split_name: replace(split, read_from=named, outside_annotations=context.outside)
        for split_name, split in splits.items()
    }
    if not splits and context.splits is None:
        raise DatasetError(f"{path}: found no images of this {name} dataset; expected {module.LAYOUT}")
    return name, splits
