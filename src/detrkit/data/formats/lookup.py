"""Annotations of one image file, looked up in a COCO JSON or a dataset folder of any format."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from detrkit.data.dataset import Split
from detrkit.data.formats.coco import read_coco_file
from detrkit.data.formats.coco_json import read_json
from detrkit.data.formats.context import ReadContext
from detrkit.data.formats.locate import name_key, path_parts
from detrkit.data.formats.panoptic import is_panoptic_file, read_panoptic_file
from detrkit.data.records import Records
from detrkit.data.splits import load_dataset
from detrkit.errors import DatasetError, arg


def find_record(image: Path, annotations: Path) -> Split:
    """Find the annotations of an image: those of the same file, or else of the only image with its name.

    Errors in the annotations of other images are ignored.

    Returns:
        A split of one image.

    Raises:
        DatasetError: the annotations cannot be read, or do not contain the image.
    """
    if not image.is_file():
        raise DatasetError(f"{image}: no such file, expected an image; check the path")
    if annotations.suffix.lower() == ".json":
        is_panoptic = is_panoptic_file(annotations)
        splits = [
            read_panoptic_file(annotations, ReadContext(_ignore)) if is_panoptic else _read_coco(image, annotations)
        ]
    else:
        splits = list(load_dataset(annotations, on_error=_ignore).splits.values())
    named = [
        (split, index)
        for split in splits
        for index in range(len(split.records))
        if name_key(split.records.path(index).name) == name_key(image.name)
    ]
    same = [(split, index) for split, index in named if _is_same(split.records.path(index), image)]
    found = same or named
    if not found:
        raise DatasetError(
            f"{annotations}: found no image named {image.name}; pass the file or folder with its annotations, or "
            f"leave out {arg('annotations')}"
        )
    if len(found) > 1 and not same:
        raise DatasetError(
            f"{annotations}: {len(found)} images are named {image.name}; pass the one inside the dataset"
        )
    split, index = found[0]
    # the record may be of a shard or of a copy: the given image is the one to be read
    record = replace(split.records[index], path=image.absolute(), span=None)
    return replace(split, records=Records.of([record]))


def _read_coco(image: Path, file: Path) -> Split:
    """Read a COCO JSON; only the given image has to exist."""
    content = read_json(file)
    images = content.get("images") if isinstance(content, dict) else None
    entries = [one for one in images if isinstance(one, dict)] if isinstance(images, list) else []
    names = [one["file_name"] for one in entries if isinstance(one.get("file_name"), str)]
    folder = image.absolute().parent
    for name in names:
        parts = path_parts(name)
        if parts and _keys(parts) == _keys(image.absolute().parts[-len(parts) :]):
            folder = image.absolute().parents[len(parts) - 1]
            break
    return read_coco_file(file, folder, ReadContext(_ignore))


def _keys(parts: Sequence[str]) -> list[str]:
    return [name_key(part) for part in parts]


def _ignore(_error: DatasetError) -> None:
    """Ignore errors of other images."""


def _is_same(path: Path, image: Path) -> bool:
    return path.exists() and path.samefile(image)
