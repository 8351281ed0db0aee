"""What is known about one photo: its record, looked for in whatever describes it.

Input: a photo on disk and a COCO JSON or a dataset folder of any form. Output: a `Split` of one record.
"""

from dataclasses import replace
from pathlib import Path

from detrkit.data.dataset import Split
from detrkit.data.formats.coco import read_coco_file, read_json
from detrkit.data.formats.panoptic import is_panoptic_file, read_panoptic_file
from detrkit.data.records import Records
from detrkit.data.splits import load_dataset
from detrkit.errors import DatasetError


def find_record(photo: Path, annotations: Path) -> Split:
    """Find a photo's record: the one of this very file, or else the only one with its name.

    Faults elsewhere in the annotations do not matter here.

    Raises:
        DatasetError: the annotations cannot be read, or do not speak of this photo.
    """
    if not photo.is_file():
        raise DatasetError(f"{photo}: found nothing, expected a photo; check the path")
    if annotations.suffix.lower() == ".json":
        is_panoptic = is_panoptic_file(annotations)
        splits = [read_panoptic_file(annotations, _pass_over) if is_panoptic else _read_beside(photo, annotations)]
    else:
        splits = list(load_dataset(annotations, on_error=_pass_over).splits.values())
    named = [
        (split, index)
        for split in splits
        for index in range(len(split.records))
        if split.records.path(index).name == photo.name
    ]
    same = [(split, index) for split, index in named if _is_same(split.records.path(index), photo)]
    found = same or named
    if not found:
        raise DatasetError(
            f"{annotations}: says nothing of a photo named {photo.name}, expected its annotations; name the file or "
            "folder that describes it, or leave out --annotations"
        )
    if len(found) > 1 and not same:
        raise DatasetError(
            f"{annotations}: {len(found)} photos are named {photo.name}; give the one inside of the dataset"
        )
    split, index = found[0]
    # the record of a shard, or of a copy: the photo that was given is the one to be opened
    record = replace(split.records[index], path=photo.absolute(), span=None)
    return replace(split, records=Records.of([record]))


def _read_beside(photo: Path, file: Path) -> Split:
    """Read a COCO JSON; its photos may lie anywhere, for only the given one has to be there."""
    content = read_json(file)
    images = content.get("images") if isinstance(content, dict) else None
    entries = [one for one in images if isinstance(one, dict)] if isinstance(images, list) else []
    names = [one["file_name"] for one in entries if isinstance(one.get("file_name"), str)]
    folder = photo.absolute().parent
    for name in names:
        parts = Path(name).parts
        if parts and parts[-1] == photo.name and photo.absolute().parts[-len(parts) :] == parts:
            folder = photo.absolute().parents[len(parts) - 1]
            break
    return read_coco_file(file, folder, _pass_over)


def _pass_over(_fault: DatasetError) -> None:
    """Faults of other photos."""


def _is_same(path: Path, photo: Path) -> bool:
    return path.exists() and path.samefile(photo)
