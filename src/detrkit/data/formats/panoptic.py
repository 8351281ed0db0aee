"""COCO panoptic JSON and its PNGs (cocodataset.org, "data format") -> records whose objects are segments.

Every photo has a PNG of segment ids, and the JSON names the category of each id. Boxes stand in the JSON; where they do
not, they are taken from the PNG. PNGs are not opened otherwise before their photo is: `detrkit doctor` opens all.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from detrkit._internal.files import is_file
from detrkit.data.categories import Categories
from detrkit.data.dataset import Split
from detrkit.data.formats.coco import (
    folder_with,
    inside,
    integer,
    is_crowd,
    read_box,
    read_categories,
    read_images,
    read_json,
    read_label,
)
from detrkit.data.records import ErrorHandler, Record, Records, SplitName, raise_error
from detrkit.data.segment_png import read_ids
from detrkit.data.segmentation import segment_ids
from detrkit.errors import DatasetError, short
from detrkit.ops.segments import LARGEST_ID, VOID, ids_to_masks, masks_to_boxes

_PREFIX = "panoptic_"
_LISTS = ("images", "annotations", "categories")


def panoptic_files(root: Path, split: SplitName | str = "") -> list[Path]:
    """The panoptic JSONs of a folder, by their names: those of a split, or all."""
    return sorted([*root.glob(f"annotations/{_PREFIX}{split}*.json"), *root.glob(f"{_PREFIX}{split}*.json")])


def is_panoptic_file(path: Path) -> bool:
    """Whether a JSON speaks of segments; looked for as text, for files are large."""
    if path.name.startswith(_PREFIX):
        return True
    wanted, previous = b'"segments_info"', b""
    try:
        with path.open("rb") as file:
            while part := file.read(2**22):
                if wanted in previous + part:
                    return True
                previous = part[-len(wanted) :]
    except OSError:
        pass  # whoever reads it will say so
    return False


def read_panoptic_split(root: Path, split: SplitName, on_error: ErrorHandler = raise_error) -> Split | None:
    """Read one split of a folder: `annotations/panoptic_<split>NAME.json`, or the JSON right in the folder.

    Args:
        root: the folder.
        split: which one.
        on_error: called with everything that is malformed and left out; by default the first is raised.

    Returns:
        The split; None where the folder has none.

    Raises:
        DatasetError: there are several, or it is malformed.
    """
    found = panoptic_files(root, split)
    if not found:
        return None
    if len(found) > 1:
        names = ", ".join(file.name for file in found)
        raise DatasetError(
            f"{root}: found {len(found)} panoptic files for {split} ({names}), expected one; keep one of them"
        )
    return read_panoptic_file(found[0], on_error)


def read_panoptic_file(path: Path, on_error: ErrorHandler = raise_error) -> Split:
    """Read a panoptic JSON; its photos and PNGs are looked for in the folders around it.

    Args:
        path: the JSON file.
        on_error: called with every image and segment that is malformed and left out; by default the first is raised.

    Raises:
        DatasetError: it is missing or malformed, or there is no folder of photos or PNGs.
    """
    content = read_json(path)
    if not isinstance(content, dict) or not all(isinstance(content.get(name), list) for name in _LISTS):
        raise DatasetError(f"{path}: expected a COCO panoptic file with lists 'images', 'annotations' and 'categories'")
    categories = _with_things(read_categories(content["categories"], path), content["categories"], path)
    reader = _Reader(path, _folder_of_pngs(path, content["annotations"]), categories, on_error)
    photos = _folder_of_photos(path, content["images"])
    records = Records.of(reader.read(content["images"], content["annotations"], photos))
    if not records:
        raise DatasetError(f"{path}: found no photo with a PNG of segments, expected at least one")
    return Split(records, categories, path)


@dataclass(frozen=True)
class _Reader:
    """Reads the images and annotations of one file."""

    path: Path
    pngs: Path
    categories: Categories
    on_error: ErrorHandler

    def read(self, images: list[Any], annotations: list[Any], photos: Path) -> Iterator[Record]:
        segments: dict[int, list[tuple[Any, ...]]] = {}
        files: dict[int, Path] = {}
        told: set[Any] = set()  # ids of images whose annotation is malformed
        for index, entry in enumerate(annotations):
            try:
                image_id, file, found = self._annotation(entry, f"{self.path}: annotations[{index}]")
                if image_id in files:
                    raise DatasetError(
                        f"{self.path}: annotations[{index}]: image id {image_id} is annotated twice; keep one"
                    )
            except DatasetError as error:
                self.on_error(error)
                told |= _image_id_of(entry)
            else:
                files[image_id], segments[image_id] = file, found
        for record in read_images(images, segments, photos, self.path, self.on_error, masks=True):
            if record.image_id not in files:
                if record.image_id not in told:
                    missing = f"image id {record.image_id} has no PNG of segments; add it or drop the image"
                    self.on_error(DatasetError(f"{self.path}: {missing}"))
                continue
            try:
                yield _with_boxes(replace(record, mask_file=files[record.image_id]))
            except DatasetError as error:
                self.on_error(error)
        if segments:
            first = next(iter(segments))
            self.on_error(
                DatasetError(
                    f"{self.path}: {len(segments)} image ids have annotations and no entry in 'images', first {first}; add "
                    "the images or drop the annotations"
                )
            )

    def _annotation(self, entry: Any, where: str) -> tuple[int, Path, list[tuple[Any, ...]]]:
        is_entry = isinstance(entry, dict) and isinstance(entry.get("file_name"), str)
        if not is_entry or not isinstance(entry.get("segments_info"), list):
            raise DatasetError(f"{where}: found {short(entry)}, expected 'image_id', 'file_name' and 'segments_info'")
        image_id = integer(entry.get("image_id"), f"{where}.image_id")
        file = inside(self.pngs, entry["file_name"], where)
        if not is_file(file):
            raise DatasetError(f"{where}: found no PNG {file}; complete the folder, or drop the image {image_id}")
        label_of = {number: label for label, number in enumerate(self.categories.ids)}
        found: dict[int, tuple[Any, ...]] = {}
        for number, segment in enumerate(entry["segments_info"]):
            try:
                segment_id, read = _segment(segment, label_of, f"{where}.segments_info[{number}]")
                if segment_id in found:
                    raise DatasetError(
                        f"{where}.segments_info[{number}]: segment id {segment_id} stands twice; keep one of them"
                    )
            except DatasetError as error:
                self.on_error(error)
            else:
                found[segment_id] = read
        return image_id, file, list(found.values())


def _image_id_of(entry: Any) -> set[int]:
    number = entry.get("image_id") if isinstance(entry, dict) else None
    return {number} if isinstance(number, int) else set()


_UNKNOWN_BOX = (float("nan"),) * 4


def _segment(entry: Any, label_of: dict[int, int], where: str) -> tuple[int, tuple[Any, ...]]:
    """Read (xyxy, label, is_crowd, id as text) of a segment."""
    if not isinstance(entry, dict):
        raise DatasetError(f"{where}: found {short(entry)}, expected an object")
    segment_id = integer(entry.get("id"), f"{where}.id")
    if not VOID < segment_id <= LARGEST_ID:
        raise DatasetError(f"{where}.id: found {segment_id}, expected 1 to {LARGEST_ID}, which three bytes can hold")
    label = read_label(entry, label_of, where)
    try:
        box = read_box(entry.get("bbox"), where)
    except DatasetError:
        box = _UNKNOWN_BOX  # the PNG knows
    return segment_id, (box, label, is_crowd(entry), str(segment_id).encode())


def _with_boxes(record: Record) -> Record:
    """Take boxes that the JSON does not have from the PNG."""
    unknown = np.isnan(record.boxes).any(1)
    if not unknown.any():
        return record
    assert record.segmentations is not None
    assert record.mask_file is not None
    ids = read_ids(record.mask_file, record.size)
    wanted = segment_ids([record.segmentations[index] for index in unknown.nonzero()[0].tolist()])
    boxes = record.boxes.copy()
    boxes[unknown] = masks_to_boxes(ids_to_masks(ids, wanted)).numpy()
    return replace(record, boxes=boxes)


def _with_things(categories: Categories, entries: list[dict[str, Any]], path: Path) -> Categories:
    """Read which categories are things; None where no entry says."""
    given = {entry["id"]: entry.get("isthing") for entry in entries}
    if all(value is None for value in given.values()):
        return categories
    for number, value in given.items():
        if value not in (0, 1):
            raise DatasetError(
                f"{path}: category {number} has isthing {short(value)}, expected 1 for things or 0 for stuff in every one"
            )
    return replace(categories, is_thing=tuple(bool(given[number]) for number in categories.ids))


def _folder_of_pngs(path: Path, annotations: list[Any]) -> Path:
    names = [path.stem, "panoptic", "png", "masks"]
    folders = [place / name for place in (path.parent, path.parent.parent) for name in names]
    return _found_or_usual(annotations, [*folders, path.parent], path, "the PNGs of segments", path.parent / path.stem)


def _folder_of_photos(path: Path, images: list[Any]) -> Path:
    names = [path.stem.removeprefix(_PREFIX), "images", path.stem]
    folders = [place / name for place in (path.parent.parent, path.parent) for name in names]
    usual = path.parent.parent / path.stem.removeprefix(_PREFIX)
    return _found_or_usual(images, [*folders, path.parent, path.parent.parent], path, "the photos", usual)


def _found_or_usual(entries: list[Any], folders: Sequence[Path], path: Path, what: str, usual: Path) -> Path:
    """Find the folder with the first file that entries name; or else the usual one, of which faults will tell.

    Raises:
        DatasetError: there is none.
    """
    found = folder_with(entries, folders)
    if found:
        return found
    there = [folder for folder in folders[:-1] if folder.is_dir()]
    if not there:
        raise DatasetError(f"{usual}: found no such folder, expected {what} of {path.name} in it")
    return usual if usual.is_dir() else there[0]
