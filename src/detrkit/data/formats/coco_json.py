"""Parts of COCO JSON files that several formats have: categories, images, boxes, flags."""

import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from detrkit._internal.documents import parse_json
from detrkit._internal.files import read_text
from detrkit.data.categories import Categories
from detrkit.data.findings import Location
from detrkit.data.formats.context import ReadContext
from detrkit.data.formats.locate import ImageFinder
from detrkit.data.formats.values import flag, integer, is_integer, number
from detrkit.data.image_structure import MAX_PIXELS
from detrkit.data.images import read_image_size
from detrkit.data.records import ImageError, Masks, ObjectError, Record, SegmentationError
from detrkit.data.segmentation import find_misfit, repair_segmentation
from detrkit.errors import DatasetError, short

ImageKey = int | str  # id of an image as it is in the file
# a box as xyxy, the label, whether it is a crowd, its segmentation if masks are read, and where it is, for messages
Annotation = tuple[tuple[float, float, float, float], int, bool, bytes | None, str]


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        DatasetError: it is missing or malformed.
    """
    try:
        return parse_json(read_text(path, "utf-8-sig"))
    except FileNotFoundError:
        raise DatasetError(f"{path}: no such file, expected a JSON file; check the path") from None
    except (ValueError, OSError) as error:
        raise DatasetError(f"{path}: not readable as JSON ({str(error).splitlines()[0][:100]})") from None


def read_categories(entries: list[Any], path: Path) -> Categories:
    """Read ids and names, in ascending order of the ids.

    Raises:
        DatasetError: there are none, or one is malformed.
    """
    named: dict[int, str] = {}
    for index, entry in enumerate(entries):
        where = f"{path}: categories[{index}]"
        # a name that a converter has passed through YAML may be a number or a truth value
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str | int | float):
            raise DatasetError(f"{where}: found {short(entry)}, expected an object with 'id' and 'name'")
        category = integer(entry.get("id"), f"{where}.id")
        if category in named:
            raise DatasetError(f"{where}: category id {category} occurs twice; give every category its own id")
        name = entry["name"]
        named[category] = name if isinstance(name, str) else json.dumps(name)
    if not named:
        raise DatasetError(f"{path}: found no categories, expected at least one")
    ids = tuple(sorted(named))
    return Categories(ids, tuple(named[category] for category in ids))


def read_label(entry: dict[str, Any], label_of: dict[int, int], where: str) -> int:
    """Read the label of an annotation.

    Raises:
        DatasetError: its category is not defined.
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
        DatasetError: it is not a box.
    """
    values = [number(value) for value in box] if isinstance(box, list) else []
    known = [value for value in values if value is not None]
    if len(values) != 4 or len(known) != 4:
        raise DatasetError(f"{where}.bbox: found {short(box)}, expected [x, y, width, height] in pixels")
    x, y, width, height = known
    if width < 0 or height < 0:
        raise DatasetError(f"{where}.bbox: found {box} with a negative size, expected [x, y, width, height] in pixels")
    return x, y, x + width, y + height


def read_crowd(entry: dict[str, Any], where: str, context: ReadContext) -> bool:
    """Return whether an annotation is of a group of objects that are not annotated one by one.

    Raises:
        DatasetError: `iscrowd` is neither true nor false.
    """
    found = flag(entry.get("iscrowd"), f"{where}.iscrowd")
    if found is None:
        context.warn("crowd flags without a value", "they are read as 0: single objects", Location(f"{where}.iscrowd"))
    return bool(found)


def check_area(entry: dict[str, Any], where: str, context: ReadContext) -> None:
    """Report an area that is not one; areas are computed from the boxes and masks, whatever the file says."""
    area = entry.get("area")
    value = 0 if area is None else number(area)
    if value is None or math.isnan(value) or value < 0:
        context.warn(
            "areas that are negative or no numbers", "they are computed anew", Location(f"{where}.area: {short(area)}")
        )


def image_key(value: Any, where: str) -> ImageKey:
    """Read the id of an image: an integer, also as text or as a float; or other text.

    Raises:
        DatasetError: it is neither.
    """
    return value if isinstance(value, str) and value.strip() and not is_integer(value) else integer(value, where)


def has_text_ids(images: Sequence[Any]) -> bool:
    """Return whether ids of images are text, so that images are numbered from 1 in the order of the file."""
    return _text_id(images) is not None


def _text_id(images: Sequence[Any]) -> str | None:
    ids = (entry.get("id") for entry in images if isinstance(entry, dict))
    return next((one for one in ids if isinstance(one, str) and not is_integer(one)), None)


@dataclass(frozen=True)
class ImageReader:
    """Reads the images of a file.

    Attributes:
        path: the file, for messages.
        finder: of the image files.
        context: collects errors and findings.
    """

    path: Path
    finder: ImageFinder
    context: ReadContext

    def read(
        self, entries: list[Any], of_image: dict[ImageKey, list[Annotation | None]], *, masks: Masks = False
    ) -> Iterator[tuple[ImageKey, Record]]:
        """Yield the id and the record of every image, and remove its annotations from `of_image`.

        Ids that are text are numbered from 1 in the order of the file.
        """
        has_text_ids = self._note_text_ids(entries)
        seen: set[ImageKey] = set()
        for index, entry in enumerate(entries):
            where = f"{self.path}: images[{index}]"
            try:
                key, image, size = self._read_image(entry, where)
                if key in seen:
                    raise DatasetError(f"{where}: image id {key} occurs twice; give every image its own id")
            except DatasetError as error:
                self._leave_out(entry, seen, of_image)
                self.context.error(ImageError(error.message))
                continue
            seen.add(key)
            if self.context.leave_out_undecodable(image):
                of_image.pop(key, None)
                continue
            found = of_image.pop(key, [])  # None stands for a malformed object
            annotations = [one for one in found if one is not None]
            if masks:
                fitting = (self._with_fitting_segmentation(one, size, masks) for one in annotations)
                annotations = [one for one in fitting if one is not None]
            record = _to_record(index + 1 if has_text_ids else int(key), image, size, annotations, masks=bool(masks))
            yield key, replace(record, num_faults=len(found) - len(annotations))

    def _with_fitting_segmentation(
        self, annotation: Annotation, size: tuple[int, int], masks: Masks
    ) -> Annotation | None:
        """Check that run lengths fit their image; others are repaired or left out if boxes suffice."""
        box, label, crowd, segmentation, where = annotation
        if segmentation is None:
            return annotation
        fault = find_misfit(segmentation, size)
        if fault is None:
            return annotation
        message = f"{where}.segmentation: found {fault}; correct it or leave it out"
        if masks == "available":
            self.context.error(SegmentationError(message))
            return box, label, crowd, repair_segmentation(segmentation, size, box), where
        self.context.error(ObjectError(message))
        return None

    def _note_text_ids(self, entries: list[Any]) -> bool:
        text = _text_id(entries)
        if text is not None:
            self.context.notes.append(
                f"image ids of {self.path.name} are text, such as {short(text)}: images are numbered in their order"
            )
        return text is not None

    @staticmethod
    def _leave_out(entry: Any, seen: set[ImageKey], of_image: dict[ImageKey, list[Annotation | None]]) -> None:
        """Leave the annotations out with their image."""
        try:
            key = image_key(entry["id"], "")
        except (DatasetError, KeyError, TypeError):
            return
        if key not in seen:
            of_image.pop(key, None)

    def _read_image(self, entry: Any, where: str) -> tuple[ImageKey, Path, tuple[int, int]]:
        if not isinstance(entry, dict) or not isinstance(entry.get("file_name"), str):
            raise DatasetError(
                f"{where}: found {short(entry)}, expected an object with 'id', 'file_name', 'height', 'width'"
            )
        key = image_key(entry.get("id"), f"{where}.id")
        image = self.finder.find(entry["file_name"])
        if image is None:
            raise DatasetError(f"{where}: {describe_missing(entry['file_name'], self.finder)}")
        return key, image, self._read_size(entry, image, where)

    def _read_size(self, entry: dict[str, Any], image: Path, where: str) -> tuple[int, int]:
        if entry.get("height") in (None, 0) and entry.get("width") in (None, 0):
            self.context.inform(
                "images without a size in the annotations", "it is read from the images", Location(where, image)
            )
            return read_image_size(image)
        height, width = (integer(entry.get(side), f"{where}.{side}") for side in ("height", "width"))
        if min(height, width) < 1:
            raise DatasetError(f"{where}: found height {height} and width {width}, expected at least 1 pixel each")
        if height * width > MAX_PIXELS:
            raise DatasetError(
                f"{where}: found height {height} and width {width}, which is more than the maximum of {MAX_PIXELS} pixels; "
                "split the image into tiles"
            )
        return height, width


def _to_record(
    image_id: int, path: Path, size: tuple[int, int], annotations: list[Annotation], *, masks: bool
) -> Record:
    return Record(
        image_id=image_id,
        path=path,
        size=size,
        boxes=np.array([one[0] for one in annotations], dtype=np.float32).reshape(-1, 4),
        labels=np.array([one[1] for one in annotations], dtype=np.int64),
        is_crowd=np.array([one[2] for one in annotations], dtype=bool),
        segmentations=tuple(one[3] for one in annotations) if masks else None,
    )


def describe_missing(file_name: str, finder: ImageFinder, what: str = "image") -> str:
    """Describe a file that was looked for in vain."""
    if ".." in file_name.replace("\\", "/").split("/"):
        root = finder.tree.root
        return f"file_name {short(file_name)} leads out of {root}, or to no {what}; only files below it are read"
    return (
        f"no such {what} {short(file_name)} in {finder.expected} or the folders around it; complete the folder, or drop "
        "the image from the file"
    )


def resolve_inside(root: Path, file_name: str, where: str) -> Path:
    """Resolve a file name below a folder; symbolic links in the folder may point anywhere.

    Raises:
        DatasetError: the name is not a path, or leads out of the folder.
    """
    root = Path(os.path.abspath(root))  # noqa: PTH100  (resolve() would follow links)
    if "\0" in file_name:
        raise DatasetError(f"{where}: file_name {short(file_name)} is not a path")
    path = Path(os.path.abspath(root / file_name))  # noqa: PTH100
    if not path.is_relative_to(root):
        raise DatasetError(f"{where}: file_name {short(file_name)} leads out of {root}; only files below it are read")
    return path


def box_xywh(box: list[float]) -> tuple[float, ...]:
    """Convert a box from xyxy to xywh, rounded to 0.001 px."""
    x1, y1, x2, y2 = box
    return tuple(round(value, 3) for value in (x1, y1, x2 - x1, y2 - y1))
