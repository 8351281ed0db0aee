"""YOLO: `data.yaml`, and one text file of rows beside each photo -> records.

hotcoco reads label folders, but neither splits nor polygons nor folders that do not resolve, and names no row at fault.
Category ids are the class numbers of the rows.
"""

import math
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import yaml

from detrkit._internal.files import is_file, read_names
from detrkit.data.categories import Categories
from detrkit.data.dataset import Split
from detrkit.data.images import read_image_size
from detrkit.data.records import SPLIT_FOLDERS, ErrorHandler, Record, Records, SplitName, raise_error
from detrkit.data.suffixes import IMAGE_SUFFIXES
from detrkit.errors import DatasetError, short

_MAX_BEYOND = 0.01  # share of the photo by which a box may pass its edge: rounding, not a mistake


def read_yolo(path: Path, split: SplitName, on_error: ErrorHandler = raise_error) -> Split | None:
    """Read one split.

    Args:
        path: the `data.yaml`.
        split: which one.
        on_error: called with every photo and row that is malformed and left out; by default the first is raised.

    Returns:
        The split; None when the file names none and no folder has its name.

    Raises:
        DatasetError: the file, a folder or a label is malformed; the message names the first fault.
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
    places = value if isinstance(value, list) else [value]
    photos = list(dict.fromkeys(photo for place in places for photo in _photos_of(root, place, f"{path}: {split}")))
    records = Records.of(_read_records(photos, categories, _pose_columns(content, path), on_error))
    if not records:
        raise DatasetError(f"{path}: {split}: found no photos in {short(value)}, expected at least one")
    return Split(records, categories, path)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise DatasetError(f"{path}: found nothing, expected a data.yaml; check the path") from None
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
    """The folder that the splits are relative to: the file's own, or the one above it where `path` says so."""
    own = path.parent.resolve()
    named = content.get("path")
    if isinstance(named, str) and PurePosixPath(named) == PurePosixPath(".."):
        return own.parent
    if isinstance(named, str) and (own / named).is_dir() and (own / named).resolve().is_relative_to(own):
        return (own / named).resolve()
    return own


def _photos_of(root: Path, place: Any, where: str) -> list[Path]:
    """List the photos of a folder or of a text file of paths.

    Exports hold paths of the machine they were made on, or lead out of the folder (`../train/images`): the longest end of
    the path that exists below `root` is meant.
    """
    if not isinstance(place, str):
        raise DatasetError(f"{where}: found {short(place)}, expected a folder or a list of folders")
    found = _find_below(root, place)
    if found is None:
        raise DatasetError(f"{where}: found no folder {place!r} below {root}, expected the photos there")
    if found.is_dir():
        return sorted(one for one in found.rglob("*") if one.suffix.lower() in IMAGE_SUFFIXES and one.is_file())
    photos = []
    for name in read_names(found):
        photo = _find_below(root, name)
        if photo is None:
            raise DatasetError(f"{found}: found no photo {name!r} below {root}")
        photos.append(photo)
    return photos


def _find_below(root: Path, place: str) -> Path | None:
    parts = [part for part in PurePosixPath(place.replace("\\", "/")).parts if part not in ("..", ".", "/")]
    for start in range(len(parts)):
        candidate = root.joinpath(*parts[start:])
        if (is_file(candidate) or candidate.is_dir()) and candidate.resolve().is_relative_to(root):
            return candidate
    return None


def _pose_columns(content: dict[str, Any], path: Path) -> int | None:
    """How many columns rows with key points have, which lie behind the box; None where no key points are told of."""
    shape = content.get("kpt_shape")
    if shape is None:
        return None
    if not (
        isinstance(shape, list) and len(shape) == 2 and all(type(one) is int and 0 < one < 10_000 for one in shape)
    ):
        raise DatasetError(f"{path}: kpt_shape: found {short(shape)}, expected [NUMBER OF POINTS, 2 or 3]")
    return 5 + shape[0] * shape[1]


def _read_records(
    photos: list[Path], categories: Categories, pose_columns: int | None, on_error: ErrorHandler
) -> Iterator[Record]:
    for index, photo in enumerate(photos):
        try:
            size = read_image_size(photo)
        except DatasetError as error:
            on_error(error)
            continue
        boxes, labels = _read_labels(_label_file(photo), categories, size, pose_columns, on_error)
        yield Record(index + 1, photo, size, boxes, labels, np.zeros(len(labels), dtype=bool))


def _label_file(photo: Path) -> Path:
    """`.../images/a.jpg` -> `.../labels/a.txt`, whichever folder called images is the last; or beside the photo."""
    parts = list(photo.parts)
    folders = [index for index, part in enumerate(parts[:-1]) if part == "images"]
    if folders:
        parts[folders[-1]] = "labels"
        beside_images = Path(*parts).with_suffix(".txt")
        if beside_images.exists():
            return beside_images
    return photo.with_suffix(".txt")


def _read_labels(
    path: Path, categories: Categories, size: tuple[int, int], pose_columns: int | None, on_error: ErrorHandler
) -> tuple[np.ndarray, np.ndarray]:
    """Boxes in pixels and labels of one photo; a photo without a file has no objects."""
    label_of = {number: label for label, number in enumerate(categories.ids)}
    height, width = size
    rows: dict[tuple[float, ...], None] = {}  # the same row twice is one object
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
    """A row is CLASS CX CY WIDTH HEIGHT, or CLASS and a polygon X Y X Y X Y ..., all relative to the photo.

    Key points, where data.yaml tells of some, follow the box and are not read.
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
        raise DatasetError(f"{where}: found {max(values):g}, expected shares of the photo, 0 to 1; are these pixels?")
    if min(box) < -_MAX_BEYOND or max(box) > 1 + _MAX_BEYOND:
        raise DatasetError(
            f"{where}: the box reaches from {box[0]:.3f} {box[1]:.3f} to {box[2]:.3f} {box[3]:.3f}, expected shares of the "
            "photo, 0 to 1"
        )
    return int(category), box
