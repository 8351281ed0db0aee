"""Whatever folder a person has -> its splits. The format is told by what lies in the folder."""

import random
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from detrkit._internal.provenance import is_written_by_detrkit
from detrkit._internal.text import plural
from detrkit.data.categories import Categories
from detrkit.data.formats.coco import folder_with, read_coco_file, read_coco_split, read_json
from detrkit.data.formats.panoptic import is_panoptic_file, panoptic_files, read_panoptic_file, read_panoptic_split
from detrkit.data.formats.shards import PLAN_FILE, read_shards
from detrkit.data.formats.voc import read_voc
from detrkit.data.formats.yolo import read_yolo
from detrkit.data.records import SPLIT_FOLDERS, FaultHandler, Records, Split, SplitName, raise_fault
from detrkit.errors import DatasetError

Format = Literal["coco", "panoptic", "yolo", "voc", "shards"]
VALIDATION_SHARE = 0.2  # of the photos, where no validation split exists
_LAYOUTS = (
    "COCO: annotations/instances_train*.json beside folders of photos, train/_annotations.coco.json, or one JSON beside "
    "the photos; COCO panoptic: annotations/panoptic_train*.json and folders of PNGs; YOLO: data.yaml; Pascal VOC: "
    "Annotations/*.xml; shards: train-*.tar"
)


@dataclass(frozen=True)
class DatasetFolder:
    """The splits of a dataset.

    Attributes:
        format: how it is written down.
        train: what to learn from.
        val: what to be judged by while learning.
        test: kept for the end; None where there is none.
        notes: what was decided on the way, a sentence each.
    """

    format: Format
    train: Split
    val: Split
    test: Split | None
    notes: tuple[str, ...]

    @property
    def splits(self) -> dict[SplitName, Split]:
        """The splits that there are, training first."""
        splits: dict[SplitName, Split] = {"train": self.train, "val": self.val}
        if self.test is not None:
            splits["test"] = self.test
        return splits


def read_dataset(
    path: Path | str,
    format: Format | None = None,
    seed: int = 42,
    fault: FaultHandler = raise_fault,
    *,
    masks: bool = False,
) -> DatasetFolder:
    """Read a dataset.

    Args:
        path: its folder; or its data.yaml, or its COCO JSON.
        format: how it is written down; None looks.
        seed: of the photos that are set aside for validation, where no split exists.
        fault: told of everything that is malformed and left out; by default the first fault is raised.
        masks: keep what masks are made of; objects without it are faults.

    Raises:
        DatasetError: nothing is there, the format is not known or has no masks, or a file is malformed.
    """
    path = Path(path)
    format, splits = _read_splits(path, format, fault, masks)
    return _completed(path, format, splits, seed)


def read_split(
    path: Path | str, split: SplitName, format: Format | None = None, seed: int | None = None, *, masks: bool = False
) -> tuple[Split | None, tuple[str, ...]]:
    """Read one part of a dataset for those who only judge by it: there may be no photos to learn from.

    Args:
        path: its folder; or its data.yaml; or a COCO JSON, of which all photos are meant.
        split: which part.
        format: how it is written down; None looks.
        seed: with which a run on it set validation photos aside, where no split exists; None: no run did.
        masks: keep what masks are made of.

    Returns:
        The part, None if there is none, and what was decided on the way.

    Raises:
        DatasetError: as `read_dataset`.
    """
    path = Path(path)
    format, splits = _read_splits(path, format, raise_fault, masks)
    if "train" not in splits:
        return splits.get(split), ()
    if seed is None and path.suffix == ".json" and path.is_file():
        return splits["train"], (f"all of {path.name}: {plural(len(splits['train'].records), 'photo')}",)
    folder = _completed(path, format, splits, 42 if seed is None else seed)
    return folder.splits.get(split), folder.notes


def _read_splits(
    path: Path, format: Format | None, fault: FaultHandler, masks: bool
) -> tuple[Format, dict[SplitName, Split]]:
    """Read what there is."""
    if not path.exists():
        raise DatasetError(f"{path}: found nothing, expected a dataset folder; check the path")
    format = format or detect_format(path)
    if format == "coco":
        return format, _read_coco(path, fault, masks)
    if format == "panoptic":
        return format, _read_panoptic(path, fault)
    if masks:
        raise DatasetError(
            f"{path}: detrkit reads no masks from {format.upper()} data, expected a COCO instances or panoptic dataset; "
            "train a model without masks, or give the annotations in one of these forms"
        )
    return format, {"yolo": _read_yolo, "voc": _read_voc, "shards": _read_shards}[format](path, fault)


def _completed(path: Path, format: Format, splits: dict[SplitName, Split], seed: int) -> DatasetFolder:
    """See that there is something to learn from, and to be judged by."""
    train, val = splits.get("train"), splits.get("val")
    if train is None:
        raise DatasetError(f"{path}: found no training photos in this {format.upper()} dataset; expected {_LAYOUTS}")
    notes: list[str] = []
    if val is None:
        train, val = _set_aside(train, seed)
        notes.append(
            f"no validation split: {len(val.records)} of {len(train.records) + len(val.records)} photos were set aside "
            f"at random (seed {seed})"
        )
    for other in (val, splits.get("test")):
        if other is not None and other.categories != train.categories:
            raise DatasetError(
                f"{other.source}: its categories differ from those of the training split; give all the same list"
            )
    return DatasetFolder(format, train, val, splits.get("test"), tuple(notes))


def detect_format(path: Path) -> Format:
    """Tell the format by what lies in the folder.

    Raises:
        DatasetError: nothing known lies there.
    """
    if path.is_file():
        return _form_of_file(path)
    if (path / PLAN_FILE).is_file():
        return "shards"
    if list(path.glob("annotations/instances_*.json")) or list(path.glob("*/_annotations.coco.json")):
        return "coco"
    if panoptic_files(path):
        return "panoptic"
    if _yaml_of(path) is not None:
        return "yolo"
    if (path / "Annotations").is_dir() or any(path.glob("*.xml")) or any(path.glob("*/*.xml")):
        return "voc"
    if any(path.glob("VOC*/Annotations")):
        return "voc"
    single = _single_json(path)
    if single is not None:
        return _form_of_file(single)
    raise DatasetError(
        f"{path}: found no file annotations/instances_train*.json, data.yaml or Annotations/*.xml, expected one of "
        f"{_LAYOUTS}"
    )


def _form_of_file(path: Path) -> Format:
    if path.suffix in (".yaml", ".yml"):
        return "yolo"
    if path.suffix == ".json":
        return "panoptic" if is_panoptic_file(path) else "coco"
    raise DatasetError(f"{path}: found a file, expected a dataset folder, a data.yaml or a COCO JSON")


def _read_coco(path: Path, fault: FaultHandler, masks: bool) -> dict[SplitName, Split]:
    if path.is_file():
        return {"train": read_coco_file(path, images_next_to(path), fault, masks=masks)}
    official = {
        split: read_coco_split(path, split, fault, masks=masks)
        for split in SPLIT_FOLDERS
        if any(path.glob(f"annotations/instances_{split}*.json"))
    }
    if official:
        return official
    exported = {
        split: path / name / "_annotations.coco.json"
        for split, names in SPLIT_FOLDERS.items()
        for name in names
        if (path / name / "_annotations.coco.json").is_file()
    }
    if exported:
        return _without_groups(
            {split: read_coco_file(file, file.parent, fault, masks=masks) for split, file in exported.items()}
        )
    single = _single_json(path)
    if single is None:
        raise DatasetError(f"{path}: found no COCO annotations, expected {_LAYOUTS}")
    return {"train": read_coco_file(single, images_next_to(single), fault, masks=masks)}


def _read_panoptic(path: Path, fault: FaultHandler) -> dict[SplitName, Split]:
    if path.is_file():
        return {"train": read_panoptic_file(path, fault)}
    found = {split: read_panoptic_split(path, split, fault) for split in SPLIT_FOLDERS}
    single = _single_json(path)
    if not any(found.values()) and single is not None:
        return {"train": read_panoptic_file(single, fault)}
    return {split: records for split, records in found.items() if records is not None}


def _read_yolo(path: Path, fault: FaultHandler) -> dict[SplitName, Split]:
    file = path if path.is_file() else _yaml_of(path)
    if file is None:
        raise DatasetError(f"{path}: found no data.yaml, expected one in a YOLO dataset")
    found = {split: read_yolo(file, split, fault) for split in SPLIT_FOLDERS}
    return {split: records for split, records in found.items() if records is not None}


def _read_voc(path: Path, fault: FaultHandler) -> dict[SplitName, Split]:
    nested = sorted(path.glob("VOC*/Annotations"))
    if not (path / "Annotations").is_dir() and len(nested) == 1:
        path = nested[0].parent
    return read_voc(path, fault)


def _read_shards(path: Path, fault: FaultHandler) -> dict[SplitName, Split]:
    found = {split: read_shards(path, split, fault) for split in SPLIT_FOLDERS}
    return {split: records for split, records in found.items() if records is not None}


def _yaml_of(folder: Path) -> Path | None:
    found = [folder / name for name in ("data.yaml", "data.yml", "dataset.yaml") if (folder / name).is_file()]
    others = sorted(folder.glob("*.yaml"))
    return found[0] if found else others[0] if len(others) == 1 else None


def _single_json(folder: Path) -> Path | None:
    """The annotations, where one JSON holds all of them; what detrkit found, and lists of other things, are none."""
    found = [*sorted(folder.glob("*.json")), *sorted(folder.glob("annotations/*.json"))]
    if len(found) > 1:
        found = [file for file in found if not is_written_by_detrkit(file) and _names_photos(file)]
    return found[0] if len(found) == 1 else None


def _names_photos(file: Path) -> bool:
    try:
        content = read_json(file)
    except DatasetError:
        return True  # whoever reads it says what is wrong
    return isinstance(content, dict) and "images" in content


def images_next_to(file: Path) -> Path:
    """The folder that the file names of a single JSON are relative to: where its photos lie."""
    content = read_json(file)
    folders = (
        file.parent / "images",
        file.parent / file.stem,
        file.parent,
        file.parent.parent / "images",
        file.parent.parent / file.stem.removeprefix("instances_"),
        file.parent.parent,
    )
    found = folder_with(content.get("images") if isinstance(content, dict) else None, folders)
    return found or (file.parent / "images" if (file.parent / "images").is_dir() else file.parent)


def _without_groups(splits: dict[SplitName, Split]) -> dict[SplitName, Split]:
    """Drop the category that Roboflow adds as a group of the others: number 0, which no object has.

    A model would otherwise have a class that it never sees.
    """
    first = next(iter(splits.values())).categories
    used = {label for split in splits.values() for record in split.records for label in record.labels.tolist()}
    if any(split.categories != first for split in splits.values()) or first.ids[0] != 0 or 0 in used or len(first) < 2:
        return splits
    is_thing = None if first.is_thing is None else first.is_thing[1:]
    categories = Categories(first.ids[1:], first.names[1:], is_thing)
    return {
        name: Split(
            Records.of(replace(record, labels=record.labels - 1) for record in split.records), categories, split.source
        )
        for name, split in splits.items()
    }


def _set_aside(split: Split, seed: int) -> tuple[Split, Split]:
    """Divide by photo, at random, the same way for the same seed; training keeps an example of every class if it can."""
    if len(split.records) < 2:
        return split, split
    order = list(range(len(split.records)))
    random.Random(seed).shuffle(order)
    classes = [set(record.labels[~record.is_crowd].tolist()) for record in split.records]
    photos_left = Counter(label for labels in classes for label in labels)
    wanted = max(1, round(VALIDATION_SHARE * len(order)))
    chosen: set[int] = set()
    for index in order:
        if len(chosen) < wanted and all(photos_left[label] > 1 for label in classes[index]):
            chosen.add(index)
            photos_left.subtract(classes[index])
    chosen = chosen or {order[0]}
    val = split.records.select(sorted(chosen))
    train = split.records.select(index for index in range(len(order)) if index not in chosen)
    return replace(split, records=train), replace(split, records=val)
