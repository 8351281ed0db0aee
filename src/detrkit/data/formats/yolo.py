"""YOLO: one text file of rows per image, and the class names in a `data.yaml`, an `obj.data` or a `classes.txt`.

hotcoco reads label folders, but no splits, no polygons and no folders that do not resolve, and its errors name no row.
Category ids are the class numbers of the rows, or those of a `categories.json` that the writer leaves next to the settings.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import yaml

from detrkit._internal.files import read_names, read_text, write_text
from detrkit.data.dataset import Split
from detrkit.data.findings import Location
from detrkit.data.formats.category_file import CATEGORIES_FILE, category_file_text
from detrkit.data.formats.context import ReadContext
from detrkit.data.formats.label_files import LabelFinder
from detrkit.data.formats.locate import ALL_FOLDERS, DatasetFiles, may_be_image
from detrkit.data.formats.writing import NamedRecord, Progress, copy_images
from detrkit.data.formats.yolo_settings import YoloSettings, find_settings, read_settings
from detrkit.data.images import read_image_size
from detrkit.data.records import NO_SEGMENTATION, SPLIT_FOLDERS, ImageError, ObjectError, Record, Records, SplitName
from detrkit.data.segmentation import check_segmentation
from detrkit.errors import DatasetError, short

LAYOUT = "data.yaml with 'train', 'val' and 'names', or classes.txt; images/ and labels/"
HAS_MASKS = False
_TOLERANCE = 0.01  # of centres and sizes in 0 .. 1, for rounding
_MAX_FRACTION = 2  # larger values are pixels
_SAME_BOX = 1.0  # pixels between a box and the extent of the polygon that is written for it


def detect(path: Path) -> float:
    """Return the confidence that a folder or file is a YOLO dataset."""
    if path.is_file():
        return 1.0 if path.suffix.lower() in (".yaml", ".yml", ".data") else 0.0
    return 0.7 if find_settings(DatasetFiles.below(path)) is not None else 0.0


def read(path: Path, context: ReadContext) -> dict[SplitName, Split]:
    """Read a folder with a `data.yaml`, an `obj.data` or a file of class names; or such a file.

    Raises:
        DatasetError: a file is missing or malformed.
    """
    tree = DatasetFiles.below(path if path.is_dir() else path.absolute().parent)
    file = path if path.is_file() else find_settings(tree)
    if file is None:
        raise DatasetError(f"{path}: found no data.yaml and no classes.txt, expected one in a YOLO dataset")
    reader = _Reader(read_settings(file, context, tree), context)
    found = {split: reader.read(split) for split in SPLIT_FOLDERS if context.wants(split)}
    if context.splits is None:
        reader.report_unused()
    return context.without_empty({name: split for name, split in found.items() if split is not None})


def write(splits: dict[SplitName, Split], output: Path, progress: Progress | None = None) -> int:
    """Write a folder with a `data.yaml`: classes are numbered from 0, boxes are clipped to the image.

    The objects of an image that all have one polygon are written as polygons.

    A `categories.json`, which `read` reads, keeps the category ids.

    Returns:
        Number of crowds, which YOLO cannot express.
    """
    num_crowds = 0
    for name, records in copy_images(splits, output, "{split}/images", progress).items():
        num_crowds += sum(int(one.record.is_crowd.sum()) for one in records)
        for one in records:
            folder = output / (splits[name].folder or name) / "labels"
            write_text(folder / Path(one.file_name).with_suffix(".txt"), _rows(one))
    categories = next(iter(splits.values())).categories
    content: dict[str, object] = {name: f"{split.folder or name}/images" for name, split in splits.items()}
    content["nc"] = len(categories)
    content["names"] = dict(enumerate(categories.names))
    write_text(output / "data.yaml", yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
    write_text(output / CATEGORIES_FILE, category_file_text(categories))
    return num_crowds


def count_lost_segmentations(split: Split) -> int:
    """Count the objects whose segmentation `write` replaces by their box."""
    lost = 0
    for record in split.records:
        if record.segmentations is not None and _polygons(record) is None:
            lost += sum(one != NO_SEGMENTATION for one in record.segmentations)
    return lost


def _polygons(record: Record) -> list[np.ndarray] | None:
    """Return a polygon (P, 2) in pixels for every object of an image; None if one has none, several, or another box.

    Readers of YOLO take all rows of a file for polygons, or all for boxes.
    """
    if not record.segmentations or record.mask_file is not None:
        return None
    height, width = record.size
    polygons = []
    for segmentation, box in zip(record.segmentations, record.boxes, strict=True):
        parts: list[list[float]] = json.loads(segmentation) if segmentation.startswith(b"[") else []
        if len(parts) != 1:
            return None
        points = np.array(parts[0], np.float64).reshape(-1, 2).clip(0, [width, height])
        extent = np.concatenate([points.min(0), points.max(0)])
        if np.abs(extent - box.clip(0, [width, height, width, height])).max() > _SAME_BOX:
            return None
        polygons.append(points)
    return polygons


def _rows(one: NamedRecord) -> str:
    height, width = one.record.size
    polygons = _polygons(one.record)
    if polygons is not None:
        rows = [
            " ".join([str(label), *(f"{value:.9f}" for value in (points / [width, height]).ravel())])
            for points, (_, label, crowd) in zip(polygons, one.objects, strict=True)
            if not crowd
        ]
        return "".join(f"{row}\n" for row in rows)
    clipped = one.record.boxes.clip(0, np.array([width, height, width, height], np.float32))
    inside = replace(one, record=replace(one.record, boxes=clipped))
    return "".join(
        f"{label} {(x1 + x2) / 2 / width:.9f} {(y1 + y2) / 2 / height:.9f} "
        f"{(x2 - x1) / width:.9f} {(y2 - y1) / height:.9f}\n"
        for (x1, y1, x2, y2), label, crowd in inside.objects
        if not crowd
    )


def read_yolo(path: Path, split: SplitName, context: ReadContext | None = None) -> Split | None:
    """Read one split.

    Args:
        path: the `data.yaml`.
        split: name of the split.
        context: handler of the images and rows that are malformed and left out; by default the first is raised.

    Returns:
        The split, or None if the file does not name it and no folder has its name.

    Raises:
        DatasetError: the file, a folder or a label is malformed; the message names the first error.
    """
    context = context or ReadContext()
    return _Reader(read_settings(path, context), context).read(split)


class _Reader:
    """Reads the splits of one dataset."""

    def __init__(self, settings: YoloSettings, context: ReadContext) -> None:
        self.settings = settings
        self.context = context
        self.tree = settings.tree
        self.labels = LabelFinder(settings.tree)
        self.used: set[Path] = set()  # label files
        self.label_of = {number: label for label, number in enumerate(sorted(settings.names))}

    def read(self, split: SplitName) -> Split | None:
        """Read one split; None if the dataset does not have it."""
        settings, num_errors = self.settings, self.context.num_errors
        entries = settings.entries.get(split)
        if not entries:
            return None
        where = f"{settings.path}: {split}"
        images = list(dict.fromkeys(image for entry in entries for image in self._images(entry, split, where)))
        records = Records.of(self._records(images))
        if not records and self.context.num_errors == num_errors:
            what = f"{split} images in {short(entries[0])}"
            if split != "train" and self.context.may_be_empty(settings.path, what):
                return None
            raise DatasetError(f"{where}: found no images in {short(entries[0])}, expected at least one")
        return Split(records, settings.categories, settings.path)

    def report_unused(self) -> None:
        """Report the label files that belong to no image."""
        for file in self.labels.unused(self.used):
            if file.stem.lower() not in ("classes", "obj", "readme", "train", "val", "valid", "test", "trainval"):
                self.context.warn(
                    "label files without an image", "they are left out; add the images", Location(str(file))
                )

    def _images(self, entry: str, split: SplitName, where: str) -> list[Path]:
        """List the images of a folder or of a text file of paths."""
        found = self.settings.find(entry)
        if found is None and split != "train":
            return []  # as exports of versions without such images
        if found is None:
            raise DatasetError(f"{where}: no such folder {entry!r} below {self.tree.root}, expected the images in it")
        if found.is_dir():
            return sorted(image for folder in self.tree.walk(found, *ALL_FOLDERS) for image in self._images_in(folder))
        self.context.opened(found)
        return [image for name in read_names(found) if (image := self._listed(name, found)) is not None]

    def _images_in(self, folder: Path) -> Iterator[Path]:
        """Yield the images in a folder; files that may be images and cannot be decoded are reported."""
        for name in self.tree.listing(folder).files:
            if may_be_image(name) and not self.context.leave_out_undecodable(folder / name):
                yield folder / name

    def _listed(self, name: str, file: Path) -> Path | None:
        """Find an image of a list, below the root; links that lead out of it are not followed."""
        root = self.tree.root
        folders = [folder for folder in (root, file.parent) if folder.is_relative_to(root)] or [root]
        found = self.tree.find_end(name, folders)
        if found is None or found[0].is_dir() or not found[0].resolve().is_relative_to(root.resolve()):
            self.context.error(ImageError(f"{file}: no such image {name!r} below {root}"))
            return None
        return found[0]

    def _records(self, images: list[Path]) -> Iterator[Record]:
        for index, image in enumerate(images):
            try:
                size = read_image_size(image)
            except DatasetError as error:
                self.context.error(ImageError(error.message))
                continue
            file = self.labels.find(image)
            if file is None:
                self.context.inform(
                    "images without a label file",
                    "they are read as images without objects",
                    Location(str(image), image),
                )
            else:
                self.used.add(file)
                self.context.opened(file)
            num_errors = self.context.num_errors
            boxes, labels, polygons = self._objects(file, size)
            num_faults = self.context.num_errors - num_errors
            is_crowd = np.zeros(len(labels), dtype=bool)
            yield Record(index + 1, image, size, boxes, labels, is_crowd, segmentations=polygons, num_faults=num_faults)

    def _objects(
        self, path: Path | None, size: tuple[int, int]
    ) -> tuple[np.ndarray, np.ndarray, tuple[bytes, ...] | None]:
        """Read the boxes in pixels and labels of one image, and its polygons for a copy; without a file, no objects."""
        height, width = size
        rows: dict[tuple[float, ...], bytes] = {}  # repeated rows are one object
        for number, line in enumerate(self._lines(path), start=1):
            if not line.strip():
                continue
            where = f"{path}: line {number}"
            try:
                category, box = read_row(line, where, self.settings.pose_columns)
                if category not in self.label_of:
                    known = ", ".join(map(str, list(self.label_of)[:10]))
                    raise DatasetError(
                        f"{where}: class {category} is not in {self.settings.path.name}, which names {known}"
                    )
            except DatasetError as error:
                self.context.error(ObjectError(error.message))
            else:
                rows[(self.label_of[category], *box)] = self._polygon(line, size)
        table = np.array(list(rows), dtype=np.float64).reshape(-1, 5)
        boxes = table[:, 1:] * [width, height, width, height]
        polygons = tuple(rows.values()) if self.context.masks else None
        return boxes.astype(np.float32), table[:, 0].astype(np.int64), polygons

    def _polygon(self, row: str, size: tuple[int, int]) -> bytes:
        """Return the polygon of a row as a COCO segmentation in pixels, if copies and checks ask for it."""
        words = row.split()
        if not self.context.masks or len(words) in (5, self.settings.pose_columns):
            return NO_SEGMENTATION
        points = np.array(words[1:], np.float64).reshape(-1, 2) * size[::-1]
        return check_segmentation([points.ravel().round(3).tolist()], "")

    def _lines(self, path: Path | None) -> list[str]:
        try:
            return [] if path is None else read_text(path, "utf-8-sig").splitlines()
        except (OSError, ValueError) as error:
            self.context.error(ObjectError(f"{path}: not readable as text ({error}); save it in UTF-8"))
            return []


def read_row(line: str, where: str, pose_columns: int | None = None) -> tuple[int, tuple[float, float, float, float]]:
    """Read a row: CLASS CX CY WIDTH HEIGHT, or CLASS and a polygon X Y X Y X Y ..., relative to the image.

    Key points, if data.yaml declares them, follow the box and are not read. A box may pass the edge of the image, as in
    COCO: it is clipped when it is used.

    Returns:
        The class, and the box as xyxy relative to the image.

    Raises:
        DatasetError: the row is malformed.
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
    if max(values) > _MAX_FRACTION:
        raise DatasetError(
            f"{where}: found {max(values):g}, expected fractions of the image, 0 to 1; are these pixels?"
        )
    return int(category), _box_of_row(values, where) if is_box else _box_of_polygon(values, where)


def _box_of_row(values: list[float], where: str) -> tuple[float, float, float, float]:
    cx, cy, width, height = values
    if width < 0 or height < 0:
        raise DatasetError(f"{where}: found a box of width {width} and height {height}, expected no negative size")
    if min(values) < -_TOLERANCE or max(values) > 1 + _TOLERANCE:
        raise DatasetError(
            f"{where}: found the centre {cx:g} {cy:g} and the size {width:g} {height:g}, expected fractions of the image, "
            "0 to 1"
        )
    return cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2


def _box_of_polygon(values: list[float], where: str) -> tuple[float, float, float, float]:
    box = min(values[0::2]), min(values[1::2]), max(values[0::2]), max(values[1::2])
    if min(box[2:]) < -_TOLERANCE or max(box[:2]) > 1 + _TOLERANCE or min(box) < -1:
        raise DatasetError(
            f"{where}: the polygon reaches from {box[0]:.3f} {box[1]:.3f} to {box[2]:.3f} {box[3]:.3f}, expected fractions "
            "of the image, 0 to 1"
        )
    return box
