"""COCO instances JSON (cocodataset.org, "data format") -> records.

Category ids may be any integers: they are kept, and mapped to labels 0 .. K-1 in rising order.
"""

import json
import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from detrkit.data.categories import Categories
from detrkit.data.records import FaultHandler, Record, Records, Split, SplitName, raise_fault
from detrkit.errors import DataError

LAYOUT = "annotations/instances_train*.json and instances_val*.json beside folders of photos with the same names"


def read_coco_split(root: Path | str, split: SplitName, fault: FaultHandler = raise_fault) -> Split:
    """Read one split of a folder in the COCO 2017 layout.

    Args:
        root: a folder with `annotations/instances_<split>NAME.json` and photos in `<split>NAME/`.
        split: which one.
        fault: told of every image and annotation that is malformed and left out; by default the first is raised.

    Raises:
        DataError: the folder or file is missing, ambiguous or malformed.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(
            f"{root}: found {'a file' if root.exists() else 'nothing'}, expected a dataset folder; check the path"
        )
    found = sorted(root.glob(f"annotations/instances_{split}*.json"))
    if len(found) != 1:
        what = f"{len(found)} files" if found else "no file"
        raise DataError(
            f"{root}: found {what} annotations/instances_{split}*.json, expected one; a COCO dataset holds {LAYOUT}"
        )
    photos = root / found[0].stem.removeprefix("instances_")
    return read_coco_file(found[0], photos, fault)


def read_coco_file(path: Path | str, photos: Path | str, fault: FaultHandler = raise_fault) -> Split:
    """Read an instances JSON.

    Args:
        path: the JSON file.
        photos: the folder that its file names are relative to.
        fault: told of every image and annotation that is malformed and left out; by default the first is raised.

    Raises:
        DataError: the file or the folder is missing, or the file is malformed; the message names the first fault.
    """
    path, photos = Path(path), Path(photos)
    if not photos.is_dir():
        raise DataError(f"{photos}: found no such folder, expected the photos of {path.name} in it")
    content = read_json(path)
    if not isinstance(content, dict) or not all(isinstance(content.get(k), list) for k in ("images", "categories")):
        raise DataError(f"{path}: expected a COCO instances file with lists 'images', 'annotations' and 'categories'")
    if not isinstance(content.get("annotations"), list):
        raise DataError(
            f"{path}: found no list 'annotations'; to predict photos without annotations, use detrkit predict"
        )
    if any(isinstance(entry, dict) and "segments_info" in entry for entry in content["annotations"][:1]):
        raise DataError(
            f"{path}: is a panoptic file, whose objects are segments; expected an instances file with boxes"
        )
    categories = _read_categories(content["categories"], path)
    of_image = _read_annotations(content["annotations"], categories, path, fault)
    records = Records.of(read_images(content["images"], of_image, photos, path, fault))
    if not records:
        raise DataError(f"{path}: found no images, expected at least one")
    if of_image:
        fault(
            DataError(
                f"{path}: {len(of_image)} image ids have annotations and no entry in 'images', first "
                f"{next(iter(of_image))!r}; add the images or drop the annotations"
            )
        )
    return Split(records, categories, path)


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        DataError: it is missing or malformed.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise DataError(f"{path}: found nothing, expected a JSON file; check the path") from None
    except (ValueError, RecursionError, OSError) as error:
        raise DataError(f"{path}: not readable as JSON ({str(error).splitlines()[0][:100]})") from None


def _read_categories(entries: list[Any], path: Path) -> Categories:
    named: dict[int, str] = {}
    for index, entry in enumerate(entries):
        where = f"{path}: categories[{index}]"
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
            raise DataError(f"{where}: found {_short(entry)}, expected an object with 'id' and 'name'")
        number = _integer(entry.get("id"), f"{where}.id")
        if number in named:
            raise DataError(f"{where}: category id {number} stands twice; give every category its own id")
        named[number] = entry["name"]
    if not named:
        raise DataError(f"{path}: found no categories, expected at least one")
    ids = tuple(sorted(named))
    return Categories(ids, tuple(named[number] for number in ids))


def _read_annotations(
    entries: list[Any], categories: Categories, path: Path, fault: FaultHandler
) -> dict[int, list[tuple[Any, ...]]]:
    """Collect (xyxy, label, is_crowd) by image id."""
    label_of = {number: label for label, number in enumerate(categories.ids)}
    of_image: dict[int, list[tuple[Any, ...]]] = defaultdict(list)
    for index, entry in enumerate(entries):
        try:
            image_id, annotation = _read_annotation(entry, label_of, f"{path}: annotations[{index}]")
        except DataError as error:
            fault(error)
        else:
            of_image[image_id].append(annotation)
    return of_image


def _read_annotation(entry: Any, label_of: dict[int, int], where: str) -> tuple[int, tuple[Any, ...]]:
    if not isinstance(entry, dict):
        raise DataError(f"{where}: found {_short(entry)}, expected an object")
    where += f" (id {_short(entry.get('id'))})"
    category = _integer(entry.get("category_id"), f"{where}.category_id")
    if category not in label_of:
        raise DataError(f"{where}: category_id {category} is not in 'categories'; add it there or drop the annotation")
    box = entry.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(_is_number(value) for value in box):
        raise DataError(f"{where}.bbox: found {_short(box)}, expected [x, y, width, height] in pixels")
    x, y, width, height = box
    if width < 0 or height < 0:
        raise DataError(f"{where}.bbox: found {box} with a negative size, expected [x, y, width, height] in pixels")
    is_crowd = entry.get("iscrowd", 0) not in (0, False, None)
    image_id = _integer(entry.get("image_id"), f"{where}.image_id")
    return image_id, ((x, y, x + width, y + height), label_of[category], is_crowd)


def read_images(
    entries: list[Any], of_image: dict[int, list[tuple[Any, ...]]], photos: Path, path: Path, fault: FaultHandler
) -> Iterator[Record]:
    """Read the images and take their annotations out of `of_image`."""
    seen: set[int] = set()
    root = Path(os.path.abspath(photos))  # noqa: PTH100  (resolve() would follow links)
    for index, entry in enumerate(entries):
        where = f"{path}: images[{index}]"
        try:
            image_id, photo, size = _read_image(entry, root, where)
            if image_id in seen:
                raise DataError(f"{where}: image id {image_id} stands twice; give every image its own id")
        except DataError as error:
            if isinstance(entry, dict) and isinstance(entry.get("id"), int) and entry["id"] not in seen:
                of_image.pop(entry["id"], None)  # the image is left out, and they with it
            fault(error)
            continue
        seen.add(image_id)
        annotations = of_image.pop(image_id, [])
        yield Record(
            image_id=image_id,
            path=photo,
            size=size,
            boxes=np.array([box for box, _, _ in annotations], dtype=np.float32).reshape(-1, 4),
            labels=np.array([label for _, label, _ in annotations], dtype=np.int64),
            is_crowd=np.array([crowd for _, _, crowd in annotations], dtype=bool),
        )


def _read_image(entry: Any, root: Path, where: str) -> tuple[int, Path, tuple[int, int]]:
    if not isinstance(entry, dict) or not isinstance(entry.get("file_name"), str):
        raise DataError(f"{where}: found {_short(entry)}, expected an object with 'id', 'file_name', 'height', 'width'")
    image_id = _integer(entry.get("id"), f"{where}.id")
    photo = _inside(root, entry["file_name"], where)
    if not photo.is_file():
        raise DataError(f"{where}: found no photo {photo}; complete the folder, or drop the image from the file")
    height, width = (_integer(entry.get(side), f"{where}.{side}") for side in ("height", "width"))
    if min(height, width) < 1:
        raise DataError(f"{where}: found height {height} and width {width}, expected at least 1 pixel each")
    return image_id, photo, (height, width)


def _inside(root: Path, file_name: str, where: str) -> Path:
    """Find a photo below its folder and nowhere else; links that lie there may point where their owner wants."""
    if "\0" in file_name:
        raise DataError(f"{where}: file_name {_short(file_name)} is no path")
    photo = Path(os.path.abspath(root / file_name))  # noqa: PTH100
    if not photo.is_relative_to(root):
        raise DataError(f"{where}: file_name {_short(file_name)} leads out of {root}; only photos below it are read")
    return photo


def _integer(value: Any, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise DataError(f"{where}: found {_short(value)}, expected an integer")
    if not -(2**63) <= value < 2**63:
        raise DataError(f"{where}: found {_short(value)}, expected an integer of at most 64 bits")
    return value


def _is_number(value: Any) -> bool:
    # compared before it is converted: an integer may have more digits than a float can hold
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e9 < value < 1e9


def _short(value: Any) -> str:
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
