"""COCO instances JSON (cocodataset.org, "data format") -> records.

Category ids may be any integers: they are kept, and mapped to labels 0 .. K-1 in rising order.
"""

import json
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from detrkit._internal.files import is_file
from detrkit.data.categories import Categories
from detrkit.data.dataset import Split
from detrkit.data.records import ErrorHandler, Record, Records, SplitName, raise_error
from detrkit.data.segmentation import check_segmentation
from detrkit.errors import DatasetError, short

LAYOUT = "annotations/instances_train*.json and instances_val*.json beside folders of photos with the same names"


def read_coco_split(
    root: Path | str, split: SplitName, on_error: ErrorHandler = raise_error, *, masks: bool = False
) -> Split:
    """Read one split of a folder in the COCO 2017 layout.

    Args:
        root: a folder with `annotations/instances_<split>NAME.json` and photos in `<split>NAME/`.
        split: which one.
        on_error: called with every image and annotation that is malformed and left out; by default the first is raised.
        masks: keep the outlines of the objects, too.

    Raises:
        DatasetError: the folder or file is missing, ambiguous or malformed.
    """
    root = Path(root)
    if not root.is_dir():
        raise DatasetError(
            f"{root}: found {'a file' if root.exists() else 'nothing'}, expected a dataset folder; check the path"
        )
    found = sorted(root.glob(f"annotations/instances_{split}*.json"))
    if len(found) != 1:
        what = f"{len(found)} files" if found else "no file"
        raise DatasetError(
            f"{root}: found {what} annotations/instances_{split}*.json, expected one; a COCO dataset holds {LAYOUT}"
        )
    photos = root / found[0].stem.removeprefix("instances_")
    return read_coco_file(found[0], photos, on_error, masks=masks)


def read_coco_file(
    path: Path | str, photos: Path | str, on_error: ErrorHandler = raise_error, *, masks: bool = False
) -> Split:
    """Read an instances JSON.

    Args:
        path: the JSON file.
        photos: the folder that its file names are relative to.
        on_error: called with every image and annotation that is malformed and left out; by default the first is raised.
        masks: keep the outlines of the objects, too; objects without any are faults.

    Raises:
        DatasetError: the file or the folder is missing, or the file is malformed; the message names the first fault.
    """
    path, photos = Path(path), Path(photos)
    if not photos.is_dir():
        raise DatasetError(f"{photos}: found no such folder, expected the photos of {path.name} in it")
    content = read_json(path)
    if not isinstance(content, dict) or not all(isinstance(content.get(k), list) for k in ("images", "categories")):
        raise DatasetError(
            f"{path}: expected a COCO instances file with lists 'images', 'annotations' and 'categories'"
        )
    if not isinstance(content.get("annotations"), list):
        raise DatasetError(
            f"{path}: found no list 'annotations'; to predict photos without annotations, use detrkit predict"
        )
    if any(isinstance(entry, dict) and "segments_info" in entry for entry in content["annotations"][:1]):
        raise DatasetError(
            f"{path}: is a panoptic file, whose objects are segments; expected an instances file with boxes, or --format "
            "panoptic"
        )
    categories = read_categories(content["categories"], path)
    of_image = _read_annotations(content["annotations"], categories, path, on_error, masks)
    records = Records.of(read_images(content["images"], of_image, photos, path, on_error, masks=masks))
    if not records:
        raise DatasetError(f"{path}: found no images, expected at least one")
    if of_image:
        on_error(
            DatasetError(
                f"{path}: {len(of_image)} image ids have annotations and no entry in 'images', first "
                f"{next(iter(of_image))!r}; add the images or drop the annotations"
            )
        )
    return Split(records, categories, path)


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        DatasetError: it is missing or malformed.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise DatasetError(f"{path}: found nothing, expected a JSON file; check the path") from None
    except (ValueError, RecursionError, OSError) as error:
        raise DatasetError(f"{path}: not readable as JSON ({str(error).splitlines()[0][:100]})") from None


def read_categories(entries: list[Any], path: Path) -> Categories:
    """Read ids and names, in rising order of the ids.

    Raises:
        DatasetError: there are none, or one is malformed.
    """
    named: dict[int, str] = {}
    for index, entry in enumerate(entries):
        where = f"{path}: categories[{index}]"
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
            raise DatasetError(f"{where}: found {short(entry)}, expected an object with 'id' and 'name'")
        number = integer(entry.get("id"), f"{where}.id")
        if number in named:
            raise DatasetError(f"{where}: category id {number} stands twice; give every category its own id")
        named[number] = entry["name"]
    if not named:
        raise DatasetError(f"{path}: found no categories, expected at least one")
    ids = tuple(sorted(named))
    return Categories(ids, tuple(named[number] for number in ids))


def _read_annotations(
    entries: list[Any], categories: Categories, path: Path, on_error: ErrorHandler, masks: bool
) -> dict[int, list[tuple[Any, ...]]]:
    """Collect (xyxy, label, is_crowd, outline or None) by image id."""
    label_of = {number: label for label, number in enumerate(categories.ids)}
    of_image: dict[int, list[tuple[Any, ...]]] = defaultdict(list)
    for index, entry in enumerate(entries):
        try:
            image_id, annotation = _read_annotation(entry, label_of, f"{path}: annotations[{index}]", masks)
        except DatasetError as error:
            on_error(error)
        else:
            of_image[image_id].append(annotation)
    return of_image


def _read_annotation(entry: Any, label_of: dict[int, int], where: str, masks: bool) -> tuple[int, tuple[Any, ...]]:
    if not isinstance(entry, dict):
        raise DatasetError(f"{where}: found {short(entry)}, expected an object")
    where += f" (id {short(entry.get('id'))})"
    label = read_label(entry, label_of, where)
    box = read_box(entry.get("bbox"), where)
    image_id = integer(entry.get("image_id"), f"{where}.image_id")
    outline = check_segmentation(entry.get("segmentation"), where) if masks else None
    return image_id, (box, label, is_crowd(entry), outline)


def read_label(entry: dict[str, Any], label_of: dict[int, int], where: str) -> int:
    """Read which of the categories an object has.

    Raises:
        DatasetError: it is none of them.
    """
    category = integer(entry.get("category_id"), f"{where}.category_id")
    if category not in label_of:
        raise DatasetError(
            f"{where}: category_id {category} is not in 'categories'; add it there or drop the annotation"
        )
    return label_of[category]


def read_box(box: Any, where: str) -> tuple[float, float, float, float]:
    """Read x, y, width, height as xyxy.

    Raises:
        DatasetError: it is none.
    """
    if not isinstance(box, list) or len(box) != 4 or not all(_is_number(value) for value in box):
        raise DatasetError(f"{where}.bbox: found {short(box)}, expected [x, y, width, height] in pixels")
    x, y, width, height = box
    if width < 0 or height < 0:
        raise DatasetError(f"{where}.bbox: found {box} with a negative size, expected [x, y, width, height] in pixels")
    return x, y, x + width, y + height


def is_crowd(entry: dict[str, Any]) -> bool:
    """Whether an annotation is of many objects that nobody told apart."""
    return entry.get("iscrowd", 0) not in (0, False, None)


def read_images(
    entries: list[Any],
    of_image: dict[int, list[tuple[Any, ...]]],
    photos: Path,
    path: Path,
    on_error: ErrorHandler,
    *,
    masks: bool = False,
) -> Iterator[Record]:
    """Read the images and take their annotations out of `of_image`."""
    seen: set[int] = set()
    for index, entry in enumerate(entries):
        where = f"{path}: images[{index}]"
        try:
            image_id, photo, size = _read_image(entry, photos, where)
            if image_id in seen:
                raise DatasetError(f"{where}: image id {image_id} stands twice; give every image its own id")
        except DatasetError as error:
            if isinstance(entry, dict) and isinstance(entry.get("id"), int) and entry["id"] not in seen:
                of_image.pop(entry["id"], None)  # the image is left out, and they with it
            on_error(error)
            continue
        seen.add(image_id)
        annotations = of_image.pop(image_id, [])
        yield Record(
            image_id=image_id,
            path=photo,
            size=size,
            boxes=np.array([one[0] for one in annotations], dtype=np.float32).reshape(-1, 4),
            labels=np.array([one[1] for one in annotations], dtype=np.int64),
            is_crowd=np.array([one[2] for one in annotations], dtype=bool),
            segmentations=tuple(one[3] for one in annotations) if masks else None,
        )


def _read_image(entry: Any, photos: Path, where: str) -> tuple[int, Path, tuple[int, int]]:
    if not isinstance(entry, dict) or not isinstance(entry.get("file_name"), str):
        raise DatasetError(
            f"{where}: found {short(entry)}, expected an object with 'id', 'file_name', 'height', 'width'"
        )
    image_id = integer(entry.get("id"), f"{where}.id")
    photo = inside(photos, entry["file_name"], where)
    if not is_file(photo):
        raise DatasetError(f"{where}: found no photo {photo}; complete the folder, or drop the image from the file")
    height, width = (integer(entry.get(side), f"{where}.{side}") for side in ("height", "width"))
    if min(height, width) < 1:
        raise DatasetError(f"{where}: found height {height} and width {width}, expected at least 1 pixel each")
    return image_id, photo, (height, width)


def inside(root: Path, file_name: str, where: str) -> Path:
    """Find a file below its folder and nowhere else; links that lie there may point where their owner wants.

    Raises:
        DatasetError: its name is no path, or leads out.
    """
    root = Path(os.path.abspath(root))  # noqa: PTH100  (resolve() would follow links)
    if "\0" in file_name:
        raise DatasetError(f"{where}: file_name {short(file_name)} is no path")
    photo = Path(os.path.abspath(root / file_name))  # noqa: PTH100
    if not photo.is_relative_to(root):
        raise DatasetError(f"{where}: file_name {short(file_name)} leads out of {root}; only files below it are read")
    return photo


def folder_with(entries: Any, folders: Iterable[Path]) -> Path | None:
    """Find which folder the file names of entries are relative to: the first that holds one of the first hundred.

    Names that lead out of a folder find nothing there: what is found must not depend on what lies elsewhere.
    """
    entries = entries[:100] if isinstance(entries, list) else []
    there = [folder for folder in folders if folder.is_dir()]
    names = [entry.get("file_name") for entry in entries if isinstance(entry, dict)]
    for name in (one for one in names if isinstance(one, str)):
        for folder in there:
            with suppress(DatasetError):
                if is_file(inside(folder, name, "")):
                    return folder
    return None


def integer(value: Any, where: str) -> int:
    """Take a number that has to be whole.

    Raises:
        DatasetError: it is not, or is too large to be an id.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise DatasetError(f"{where}: found {short(value)}, expected an integer")
    if not -(2**63) <= value < 2**63:
        raise DatasetError(f"{where}: found {short(value)}, expected an integer of at most 64 bits")
    return value


def _is_number(value: Any) -> bool:
    # compared before it is converted: an integer may have more digits than a float can hold
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e9 < value < 1e9
