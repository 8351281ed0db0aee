"""COCO panoptic JSON and its PNGs (cocodataset.org, "data format"): the objects of an image are segments.

Every image has a PNG of segment ids, and the JSON gives the category of each id. Boxes that the JSON lacks are computed
from the PNG; otherwise a PNG is only opened when its masks are needed (`detrkit doctor` opens all).
"""

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from detrkit._internal.files import is_file, make_folder, write_text
from detrkit.data.categories import Categories
from detrkit.data.dataset import Split
from detrkit.data.formats.coco import (
    box_xywh,
    find_folder_with,
    find_single_json,
    integer,
    is_crowd,
    read_box,
    read_categories,
    read_images,
    read_json,
    read_label,
    resolve_inside,
)
from detrkit.data.formats.context import ReadContext
from detrkit.data.formats.writing import NamedRecord, Progress, copy_images
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
from detrkit.data.segment_png import read_ids
from detrkit.data.segmentation import segment_ids
from detrkit.errors import DatasetError, short
from detrkit.ops.segments import MAX_ID, VOID, ids_to_masks, masks_to_boxes

LAYOUT = "annotations/panoptic_train*.json and folders of PNGs, or one JSON with 'segments_info'"
HAS_MASKS = True
_PREFIX = "panoptic_"
_LISTS = ("images", "annotations", "categories")


def detect(path: Path) -> float:
    """Return the confidence that a folder or file is a panoptic dataset."""
    if path.is_file():
        return 0.8 if path.suffix == ".json" and is_panoptic_file(path) else 0.0
    if panoptic_files(path):
        return 0.8
    single = find_single_json(path)
    return 0.5 if single is not None and is_panoptic_file(single) else 0.0


def read(path: Path, context: ReadContext) -> dict[SplitName, Split]:
    """Read a folder, or one JSON, which is the training split; segments are read whether masks are asked for or not.

    Raises:
        DatasetError: a file is missing, ambiguous or malformed.
    """
    if path.is_file():
        return {"train": read_panoptic_file(path, context.error)} if context.wants("train") else {}
    if not panoptic_files(path):
        single = find_single_json(path)
        return {} if single is None else read(single, context)
    found = {split: read_panoptic_split(path, split, context.error) for split in SPLIT_FOLDERS if context.wants(split)}
    return {name: split for name, split in found.items() if split is not None}


def write(splits: dict[SplitName, Split], output: Path, progress: Progress | None = None) -> int:
    """Write a folder in COCO's own layout.

    Returns:
        0: crowds are kept.

    Raises:
        DatasetError: the splits have no PNGs of segments.
    """
    for split in splits.values():
        if split.records.arrays.mask_files is None:
            raise DatasetError(
                f"{split.source}: the annotations have no panoptic segments, which this format consists of; choose another "
                "format"
            )
    for name, records in copy_images(splits, output, "{split}", progress).items():
        file = f"{_PREFIX}{splits[name].folder or name}.json"
        _write_split(output / "annotations" / file, records, splits[name].categories)
    return 0


def panoptic_files(root: Path, split: SplitName | str = "") -> list[Path]:
    """List the panoptic JSONs of a folder by their names: those of a split, or all."""
    return sorted([*root.glob(f"annotations/{_PREFIX}{split}*.json"), *root.glob(f"{_PREFIX}{split}*.json")])


def is_panoptic_file(path: Path) -> bool:
    """True if a JSON contains panoptic segments; searched as text, because files are large."""
    if path.name.startswith(_PREFIX):
        return True
    key, previous = b'"segments_info"', b""
    try:
        with path.open("rb") as file:
            while part := file.read(2**22):
                if key in previous + part:
                    return True
                previous = part[-len(key) :]
    except OSError:
        pass  # the reader reports the error
    return False


def read_panoptic_split(root: Path, split: SplitName, on_error: ErrorHandler = raise_error) -> Split | None:
    """Read one split of a folder: `annotations/panoptic_<split>NAME.json`, or the JSON right in the folder.

    Args:
        root: the folder.
        split: name of the split.
        on_error: called with everything that is malformed and left out; by default the first is raised.

    Returns:
        The split, or None if the folder has none.

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
    """Read a panoptic JSON; its images and PNGs are searched for in the folders around it.

    Args:
        path: the JSON file.
        on_error: called with every image and segment that is malformed and left out; by default the first is raised.

    Raises:
        DatasetError: it is missing or malformed, or there is no folder of images or PNGs.
    """
    content = read_json(path)
    if not isinstance(content, dict) or not all(isinstance(content.get(name), list) for name in _LISTS):
        raise DatasetError(f"{path}: expected a COCO panoptic file with lists 'images', 'annotations' and 'categories'")
    categories = _with_is_thing(read_categories(content["categories"], path), content["categories"], path)
    reader = _Reader(path, _find_pngs(path, content["annotations"]), categories, on_error)
    images = _find_images(path, content["images"])
    records = Records.of(reader.read(content["images"], content["annotations"], images))
    if not records:
        raise DatasetError(f"{path}: found no image with a PNG of segments, expected at least one")
    return Split(records, categories, path)


@dataclass(frozen=True)
class _Reader:
    """Reads the images and annotations of one file."""

    path: Path
    pngs: Path
    categories: Categories
    on_error: ErrorHandler

    def read(self, images: list[Any], annotations: list[Any], folder: Path) -> Iterator[Record]:
        segments: dict[int, list[tuple[Any, ...] | None]] = {}
        files: dict[int, Path] = {}
        reported: set[Any] = set()  # ids of images whose annotation is malformed
        for index, entry in enumerate(annotations):
            try:
                image_id, file, found = self._annotation(entry, f"{self.path}: annotations[{index}]")
                if image_id in files:
                    raise DatasetError(
                        f"{self.path}: annotations[{index}]: image id {image_id} is annotated twice; keep one"
                    )
            except DatasetError as error:
                self.on_error(ImageError(error.message))
                reported |= _image_id_of(entry)
            else:
                files[image_id], segments[image_id] = file, found
        for record in read_images(images, segments, folder, self.path, self.on_error, masks=True):
            if record.image_id not in files:
                if record.image_id not in reported:
                    missing = f"image id {record.image_id} has no PNG of segments; add it or drop the image"
                    self.on_error(ImageError(f"{self.path}: {missing}"))
                continue
            try:
                yield _with_boxes(replace(record, mask_file=files[record.image_id]))
            except DatasetError as error:
                self.on_error(ImageError(error.message))
        if segments:
            first = next(iter(segments))
            self.on_error(
                DatasetError(
                    f"{self.path}: {len(segments)} image ids have annotations and no entry in 'images', first {first}; add "
                    "the images or drop the annotations"
                )
            )

    def _annotation(self, entry: Any, where: str) -> tuple[int, Path, list[tuple[Any, ...] | None]]:
        is_entry = isinstance(entry, dict) and isinstance(entry.get("file_name"), str)
        if not is_entry or not isinstance(entry.get("segments_info"), list):
            raise DatasetError(f"{where}: found {short(entry)}, expected 'image_id', 'file_name' and 'segments_info'")
        image_id = integer(entry.get("image_id"), f"{where}.image_id")
        file = resolve_inside(self.pngs, entry["file_name"], where)
        if not is_file(file):
            raise DatasetError(f"{where}: no such PNG {file}; complete the folder, or drop the image {image_id}")
        label_of = {number: label for label, number in enumerate(self.categories.ids)}
        found: dict[int, tuple[Any, ...]] = {}
        faults: list[None] = []
        for number, segment in enumerate(entry["segments_info"]):
            try:
                segment_id, read = _segment(segment, label_of, f"{where}.segments_info[{number}]")
                if segment_id in found:
                    raise DatasetError(
                        f"{where}.segments_info[{number}]: segment id {segment_id} occurs twice; keep one of them"
                    )
            except DatasetError as error:
                self.on_error(ObjectError(error.message))
                faults.append(None)
            else:
                found[segment_id] = read
        return image_id, file, [*found.values(), *faults]


def _image_id_of(entry: Any) -> set[int]:
    number = entry.get("image_id") if isinstance(entry, dict) else None
    return {number} if isinstance(number, int) else set()


_UNKNOWN_BOX = (float("nan"),) * 4


def _segment(entry: Any, label_of: dict[int, int], where: str) -> tuple[int, tuple[Any, ...]]:
    """Read (xyxy, label, is_crowd, id as text) of a segment."""
    if not isinstance(entry, dict):
        raise DatasetError(f"{where}: found {short(entry)}, expected an object")
    segment_id = integer(entry.get("id"), f"{where}.id")
    if not VOID < segment_id <= MAX_ID:
        raise DatasetError(f"{where}.id: found {segment_id}, expected 1 to {MAX_ID}, which three bytes can hold")
    label = read_label(entry, label_of, where)
    try:
        box = read_box(entry.get("bbox"), where)
    except DatasetError:
        box = _UNKNOWN_BOX  # computed from the PNG
    return segment_id, (box, label, is_crowd(entry), str(segment_id).encode())


def _with_boxes(record: Record) -> Record:
    """Compute boxes that the JSON lacks from the PNG."""
    unknown = np.isnan(record.boxes).any(1)
    if not unknown.any():
        return record
    assert record.segmentations is not None
    assert record.mask_file is not None
    ids = read_ids(record.mask_file, record.size)
    missing = segment_ids([record.segmentations[index] for index in unknown.nonzero()[0].tolist()])
    boxes = record.boxes.copy()
    boxes[unknown] = masks_to_boxes(ids_to_masks(ids, missing)).numpy()
    return replace(record, boxes=boxes)


def _with_is_thing(categories: Categories, entries: list[dict[str, Any]], path: Path) -> Categories:
    """Read `isthing` of the categories, if the entries have it."""
    given = {entry["id"]: entry.get("isthing") for entry in entries}
    if all(value is None for value in given.values()):
        return categories
    for number, value in given.items():
        if value not in (0, 1):
            raise DatasetError(
                f"{path}: category {number} has isthing {short(value)}, expected 1 for things or 0 for stuff in every one"
            )
    return replace(categories, is_thing=tuple(bool(given[number]) for number in categories.ids))


def _find_pngs(path: Path, annotations: list[Any]) -> Path:
    names = [path.stem, "panoptic", "png", "masks"]
    folders = [parent / name for parent in (path.parent, path.parent.parent) for name in names]
    return _find_or_default(annotations, [*folders, path.parent], path, "the PNGs of segments", path.parent / path.stem)


def _find_images(path: Path, images: list[Any]) -> Path:
    names = [path.stem.removeprefix(_PREFIX), "images", path.stem]
    folders = [parent / name for parent in (path.parent.parent, path.parent) for name in names]
    default = path.parent.parent / path.stem.removeprefix(_PREFIX)
    return _find_or_default(images, [*folders, path.parent, path.parent.parent], path, "the images", default)


def _find_or_default(entries: list[Any], folders: Sequence[Path], path: Path, what: str, default: Path) -> Path:
    """Find the folder of the files that entries name, or else the default one, whose missing files are reported later.

    Raises:
        DatasetError: neither exists.
    """
    found = find_folder_with(entries, folders)
    if found:
        return found
    existing = [folder for folder in folders[:-1] if folder.is_dir()]
    if not existing:
        raise DatasetError(f"{default}: no such folder, expected {what} of {path.name} in it")
    return default if default.is_dir() else existing[0]


def _write_split(path: Path, records: list[NamedRecord], categories: Categories) -> None:
    folder = make_folder(path.with_suffix(""))
    images, annotations = [], []
    for one in records:
        record = one.record
        assert record.mask_file is not None
        assert record.segmentations is not None
        png = Path(one.file_name).with_suffix(".png").name
        shutil.copyfile(record.mask_file, folder / png)
        images.append(
            {"id": record.image_id, "file_name": one.file_name, "height": record.size[0], "width": record.size[1]}
        )
        segments = [
            {"id": int(number), "category_id": categories.ids[label], "bbox": box_xywh(box), "iscrowd": int(crowd)}
            for number, (box, label, crowd) in zip(record.segmentations, one.objects, strict=True)
        ]
        annotations.append({"image_id": record.image_id, "file_name": png, "segments_info": segments})
    document = {"images": images, "annotations": annotations, "categories": categories.to_json()}
    write_text(path, json.dumps(document, ensure_ascii=False))
