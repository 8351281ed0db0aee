"""YOLO: `data.yaml`, and one text file of rows per image.

hotcoco reads label folders, but no splits, no polygons and no folders that do not resolve, and its errors name no row.
Category ids are the class numbers of the rows.
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import yaml

from detrkit._internal.files import is_file, read_names, write_text
from detrkit.data.categories import Categories
from detrkit.data.dataset import Split
from detrkit.data.formats.context import ReadContext
from detrkit.data.formats.writing import NamedRecord, Progress, copy_images
from detrkit.data.images import read_image_size
from detrkit.data.records import (
    SPLIT_FOLDERS,
    ErrorHandler,
    ImageError,
    ObjectError,
    Record,
    Records,
    SplitName,
    raise_error,
)
from detrkit.data.suffixes import IMAGE_SUFFIXES
from detrkit.errors import DatasetError, short

LAYOUT = "data.yaml with 'train', 'val' and 'names', images/ and labels/"
HAS_MASKS = False
_MAX_OUTSIDE = 0.01  # fraction of the image by which a box may exceed it, for rounding


def detect(path: Path) -> float:
    """Return the confidence that a folder or file is a YOLO dataset."""
    if path.is_file():
        return 1.0 if path.suffix in (".yaml", ".yml") else 0.0
    return 0.7 if _find_yaml(path) is not None else 0.0


def read(path: Path, context: ReadContext) -> dict[SplitName, Split]:
    """Read a folder with a `data.yaml`, or the file.

    Raises:
        DatasetError: a file is missing or malformed.
    """
    file = path if path.is_file() else _find_yaml(path)
    if file is None:
        raise DatasetError(f"{path}: found no data.yaml, expected one in a YOLO dataset")
    found = {split: read_yolo(file, split, context.error) for split in SPLIT_FOLDERS if context.wants(split)}
    return {name: split for name, split in found.items() if split is not None}


def write(splits: dict[SplitName, Split], output: Path, progress: Progress | None = None) -> int:
    """Write a folder with a `data.yaml`; classes keep their numbers, boxes are clipped to the image.

    Returns:
        Number of crowds, which YOLO cannot express.
    """
    num_crowds = 0
    for name, records in copy_images(splits, output, "{split}/images", progress).items():
        num_crowds += sum(int(one.record.is_crowd.sum()) for one in records)
        for one in records:
            file = output / (splits[name].folder or name) / "labels" / Path(one.file_name).with_suffix(".txt")
            write_text(file, _rows(one, splits[name].categories))
    categories = next(iter(splits.values())).categories
    content: dict[str, object] = {name: f"{split.folder or name}/images" for name, split in splits.items()}
    content["nc"] = len(categories)
    content["names"] = dict(zip(categories.ids, categories.names, strict=True))
    write_text(output / "data.yaml", yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
    return num_crowds


def _rows(one: NamedRecord, categories: Categories) -> str:
    height, width = one.record.size
    clipped = one.record.boxes.clip(0, np.array([width, height, width, height], np.float32))
    inside = replace(one, record=replace(one.record, boxes=clipped))
    return "".join(
        f"{categories.ids[label]} {(x1 + x2) / 2 / width:.9f} {(y1 + y2) / 2 / height:.9f} "
        f"{(x2 - x1) / width:.9f} {(y2 - y1) / height:.9f}\n"
        for (x1, y1, x2, y2), label, crowd in inside.objects
        if not crowd
    )


def _find_yaml(folder: Path) -> Path | None:
    """Find the settings file of a folder: by its name, or the only one."""
    found = [folder / name for name in ("data.yaml", "data.yml", "dataset.yaml") if (folder / name).is_file()]
    others = sorted(folder.glob("*.yaml"))
    return found[0] if found else others[0] if len(others) == 1 else None


def read_yolo(path: Path, split: SplitName, on_error: ErrorHandler = raise_error) -> Split | None:
    """Read one split.

    Args:
        path: the `data.yaml`.
        split: name of the split.
        on_error: called with every image and row that is malformed and left out; by default the first is raised.

    Returns:
        The split, or None if the file does not name it and no folder has its name.

    Raises:
        DatasetError: the file, a folder or a label is malformed; the message names the first error.
    """
    content = _read_yaml(path)
    categories = _read_names(content, path)
    value = next((content[key] for key in SPLIT_FOLDERS[split] if content.get(key)), None)
    if value is None:
        value = next(
            (f"{name}/images" for name in SPLIT_FOLDERS[split] if (path.parent / name / "images").is_dir()), None
        )
    if value is None:
        return None
    root = _root(path, content)
    entries = value if isinstance(value, list) else [value]
    images = list(dict.fromkeys(image for one in entries for image in _list_images(root, one, f"{path}: {split}")))
    records = Records.of(_read_records(images, categories, _pose_columns(content, path), on_error))
    if not records:
        raise DatasetError(f"{path}: {split}: found no images in {short(value)}, expected at least one")
    return Split(records, categories, path)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise DatasetError(f"{path}: no such file, expected a data.yaml; check the path") from None
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise DatasetError(f"{path}: not readable as YAML ({' '.join(str(error).split())[:120]})") from None
    if not isinstance(content, dict):
        raise DatasetError(f"{path}: found no settings, expected at least 'train' and 'names'")
    return content


def _read_names(content: dict[str, Any], path: Path) -> Categories:
    names = content.get("names")
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not names or not all(type(number) is int for number in names):
        raise DatasetError(f"{path}: names: found {short(names)}, expected a list of class names, or NUMBER: NAME")
    count = content.get("nc")
    if isinstance(count, int) and count != len(names):
        raise DatasetError(f"{path}: nc is {count}, but names has {len(names)} classes; correct one of the two")
    for number, name in names.items():
        if not isinstance(name, str | int | float):
            raise DatasetError(f"{path}: names: found {short(name)} for class {number}, expected its name")
    ids = tuple(sorted(names))
    return Categories(ids, tuple(str(names[number]) for number in ids))


def _root(path: Path, content: dict[str, Any]) -> Path:
    """Return the folder that the splits are relative to: the file's own, or its parent if `path` is ".."."""
    own = path.parent.resolve()
    named = content.get("path")
    if isinstance(named, str) and PurePosixPath(named) == PurePosixPath(".."):
        return own.parent
    if isinstance(named, str) and (own / named).is_dir() and (own / named).resolve().is_relative_to(own):
        return (own / named).resolve()
    return own


def _list_images(root: Path, entry: Any, where: str) -> list[Path]:
    """List the images of a folder or of a text file of paths.

    Exports contain paths of the machine they were made on, or lead out of the folder (`../train/images`): the longest
    suffix of the path that exists below `root` is used.
    """
    if not isinstance(entry, str):
        raise DatasetError(f"{where}: found {short(entry)}, expected a folder or a list of folders")
    found = _find_below(root, entry)
    if found is None:
        raise DatasetError(f"{where}: no such folder {entry!r} below {root}, expected the images in it")
    if found.is_dir():
        return sorted(one for one in found.rglob("*") if one.suffix.lower() in IMAGE_SUFFIXES and one.is_file())
    images = []
    for name in read_names(found):
        image = _find_below(root, name)
        if image is None:
            raise DatasetError(f"{found}: no such image {name!r} below {root}")
        images.append(image)
    return images


def _find_below(root: Path, name: str) -> Path | None:
    parts = [part for part in PurePosixPath(name.replace("\\", "/")).parts if part not in ("..", ".", "/")]
    for start in range(len(parts)):
        candidate = root.joinpath(*parts[start:])
        if (is_file(candidate) or candidate.is_dir()) and candidate.resolve().is_relative_to(root):
            return candidate
    return None


def _pose_columns(content: dict[str, Any], path: Path) -> int | None:
    """Return the number of columns of rows with key points, which follow the box; None without key points."""
    shape = content.get("kpt_shape")
    if shape is None:
        return None
    if not (
        isinstance(shape, list) and len(shape) == 2 and all(type(one) is int and 0 < one < 10_000 for one in shape)
    ):
        raise DatasetError(f"{path}: kpt_shape: found {short(shape)}, expected [NUMBER OF POINTS, 2 or 3]")
    return 5 + shape[0] * shape[1]


def _read_records(
    images: list[Path], categories: Categories, pose_columns: int | None, on_error: ErrorHandler
) -> Iterator[Record]:
    for index, image in enumerate(images):
        try:
            size = read_image_size(image)
        except DatasetError as error:
            on_error(ImageError(error.message))
            continue
        faults: list[DatasetError] = []

        def report(error: DatasetError, faults: list[DatasetError] = faults) -> None:
            faults.append(error)
            on_error(ObjectError(error.message))

        boxes, labels = _read_labels(_label_file(image), categories, size, pose_columns, report)
        is_crowd = np.zeros(len(labels), dtype=bool)
        yield Record(index + 1, image, size, boxes, labels, is_crowd, num_faults=len(faults))


def _label_file(image: Path) -> Path:
    """`.../images/a.jpg` -> `.../labels/a.txt`, for the last folder called images; or next to the image."""
    parts = list(image.parts)
    folders = [index for index, part in enumerate(parts[:-1]) if part == "images"]
    if folders:
        parts[folders[-1]] = "labels"
        in_labels = Path(*parts).with_suffix(".txt")
        if in_labels.exists():
            return in_labels
    return image.with_suffix(".txt")


def _read_labels(
    path: Path, categories: Categories, size: tuple[int, int], pose_columns: int | None, on_error: ErrorHandler
) -> tuple[np.ndarray, np.ndarray]:
    """Read the boxes in pixels and labels of one image; an image without a file has no objects."""
    label_of = {number: label for label, number in enumerate(categories.ids)}
    height, width = size
    rows: dict[tuple[float, ...], None] = {}  # repeated rows are one object
    for number, line in enumerate(_lines_of(path, on_error), start=1):
        if not line.strip():
            continue
        try:
            category, box = _read_row(line, f"{path}: line {number}", pose_columns)
            if category not in label_of:
                known = ", ".join(map(str, categories.ids[:10]))
                raise DatasetError(f"{path}: line {number}: class {category} is not in data.yaml, which names {known}")
        except DatasetError as error:
            on_error(error)
        else:
            rows[(label_of[category], *box)] = None
    table = np.array(list(rows), dtype=np.float64).reshape(-1, 5)
    boxes = table[:, 1:] * [width, height, width, height]
    return boxes.astype(np.float32), table[:, 0].astype(np.int64)


def _lines_of(path: Path, on_error: ErrorHandler) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").splitlines() if path.exists() else []
    except (OSError, ValueError) as error:
        on_error(DatasetError(f"{path}: not readable as text ({error}); save it in UTF-8"))
        return []


def _read_row(line: str, where: str, pose_columns: int | None = None) -> tuple[int, tuple[float, float, float, float]]:
    """Read a row: CLASS CX CY WIDTH HEIGHT, or CLASS and a polygon X Y X Y X Y ..., relative to the image.

    Key points, if data.yaml declares them, follow the box and are not read.
    """
    try:
        numbers = [float(word) for word in line.split()]
    except ValueError:
        raise DatasetError(f"{where}: found {line.strip()[:60]!r}, expected numbers separated by spaces") from None
    if len(numbers) == pose_columns:
        numbers = numbers[:5]
    is_box, is_polygon = len(numbers) == 5, len(numbers) >= 7 and len(numbers) % 2 == 1
    if not (is_box or is_polygon) or not all(math.isfinite(number) for number in numbers):
        raise DatasetError(
            f"{where}: found {len(numbers)} columns, expected CLASS CX CY WIDTH HEIGHT or CLASS X Y X Y X Y ..., finite"
        )
    category, values = numbers[0], numbers[1:]
    if category != int(category):
        raise DatasetError(f"{where}: found class {category}, expected an integer")
    if is_box:
        cx, cy, width, height = values
        if width < 0 or height < 0:
            raise DatasetError(f"{where}: found a box of width {width} and height {height}, expected no negative size")
        box = (cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2)
    else:
        box = (min(values[0::2]), min(values[1::2]), max(values[0::2]), max(values[1::2]))
    if max(values) > 2:
        raise DatasetError(
            f"{where}: found {max(values):g}, expected fractions of the image, 0 to 1; are these pixels?"
        )
    if min(box) < -_MAX_OUTSIDE or max(box) > 1 + _MAX_OUTSIDE:
        raise DatasetError(
            f"{where}: the box reaches from {box[0]:.3f} {box[1]:.3f} to {box[2]:.3f} {box[3]:.3f}, expected fractions of "
            "the image, 0 to 1"
        )
    return int(category), box
