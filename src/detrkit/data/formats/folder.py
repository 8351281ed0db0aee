"""Whatever folder a person has -> its splits. The format is told by what lies in the folder."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

from detrkit._internal.provenance import is_written_by_detrkit
from detrkit.data.categories import Categories
from detrkit.data.dataset import Split
from detrkit.data.formats.coco import folder_with, read_coco_file, read_coco_split, read_json
from detrkit.data.formats.panoptic import is_panoptic_file, panoptic_files, read_panoptic_file, read_panoptic_split
from detrkit.data.formats.shards import PLAN_FILE, read_shards
from detrkit.data.formats.voc import read_voc
from detrkit.data.formats.yolo import read_yolo
from detrkit.data.records import SPLIT_FOLDERS, ErrorHandler, Records, SplitName
from detrkit.errors import DatasetError

Format = Literal["coco", "panoptic", "yolo", "voc", "shards"]
LAYOUTS = (
    "COCO: annotations/instances_train*.json beside folders of photos, train/_annotations.coco.json, or one JSON beside "
    "the photos; COCO panoptic: annotations/panoptic_train*.json and folders of PNGs; YOLO: data.yaml; Pascal VOC: "
    "Annotations/*.xml; shards: train-*.tar"
)


def read_splits(
    path: Path, format: Format | None, on_error: ErrorHandler, masks: bool
) -> tuple[Format, dict[SplitName, Split]]:
    """Read the splits of a dataset.

    Args:
        path: its folder; or its data.yaml, or its COCO JSON, which is the training split.
        format: of the annotations; None detects it.
        on_error: called with every malformed entry, which is then left out.
        masks: keep what masks are made of.

    Returns:
        The format, and at least one split.

    Raises:
        DatasetError: nothing is there, the format is not known or has no masks, or a file is malformed.
    """
    if not path.exists():
        raise DatasetError(f"{path}: found nothing, expected a dataset folder; check the path")
    format = format or detect_format(path)
    splits = _read_format(path, format, on_error, masks)
    if not splits:
        raise DatasetError(f"{path}: found no images in this {format.upper()} dataset; expected {LAYOUTS}")
    return format, splits


def _read_format(path: Path, format: Format, on_error: ErrorHandler, masks: bool) -> dict[SplitName, Split]:
    if format == "coco":
        return _read_coco(path, on_error, masks)
    if format == "panoptic":
        return _read_panoptic(path, on_error)
    if masks:
        raise DatasetError(
            f"{path}: detrkit reads no masks from {format.upper()} data, expected a COCO instances or panoptic dataset; "
            "train a model without masks, or give the annotations in one of these forms"
        )
    return {"yolo": _read_yolo, "voc": _read_voc, "shards": _read_shards}[format](path, on_error)


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
        f"{LAYOUTS}"
    )


def _form_of_file(path: Path) -> Format:
    if path.suffix in (".yaml", ".yml"):
        return "yolo"
    if path.suffix == ".json":
        return "panoptic" if is_panoptic_file(path) else "coco"
    raise DatasetError(f"{path}: found a file, expected a dataset folder, a data.yaml or a COCO JSON")


def _read_coco(path: Path, on_error: ErrorHandler, masks: bool) -> dict[SplitName, Split]:
    if path.is_file():
        return {"train": read_coco_file(path, images_next_to(path), on_error, masks=masks)}
    official = {
        split: read_coco_split(path, split, on_error, masks=masks)
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
            {split: read_coco_file(file, file.parent, on_error, masks=masks) for split, file in exported.items()}
        )
    single = _single_json(path)
    if single is None:
        raise DatasetError(f"{path}: found no COCO annotations, expected {LAYOUTS}")
    return {"train": read_coco_file(single, images_next_to(single), on_error, masks=masks)}


def _read_panoptic(path: Path, on_error: ErrorHandler) -> dict[SplitName, Split]:
    if path.is_file():
        return {"train": read_panoptic_file(path, on_error)}
    found = {split: read_panoptic_split(path, split, on_error) for split in SPLIT_FOLDERS}
    single = _single_json(path)
    if not any(found.values()) and single is not None:
        return {"train": read_panoptic_file(single, on_error)}
    return {split: records for split, records in found.items() if records is not None}


def _read_yolo(path: Path, on_error: ErrorHandler) -> dict[SplitName, Split]:
    file = path if path.is_file() else _yaml_of(path)
    if file is None:
        raise DatasetError(f"{path}: found no data.yaml, expected one in a YOLO dataset")
    found = {split: read_yolo(file, split, on_error) for split in SPLIT_FOLDERS}
    return {split: records for split, records in found.items() if records is not None}


def _read_voc(path: Path, on_error: ErrorHandler) -> dict[SplitName, Split]:
    nested = sorted(path.glob("VOC*/Annotations"))
    if not (path / "Annotations").is_dir() and len(nested) == 1:
        path = nested[0].parent
    return read_voc(path, on_error)


def _read_shards(path: Path, on_error: ErrorHandler) -> dict[SplitName, Split]:
    found = {split: read_shards(path, split, on_error) for split in SPLIT_FOLDERS}
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
