"""COCO panoptic JSON and its PNGs (cocodataset.org, "data format"): the objects of an image are segments.

Every image has a PNG of segment ids, and the JSON gives the category of each id. Boxes that the JSON lacks are computed
from the PNG; otherwise a PNG is only opened when its masks are needed (`detrkit doctor` opens all).
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from detrkit._internal.files import make_folder, write_text
from detrkit.data.categories import Categories
from detrkit.data.dataset import Split
from detrkit.data.formats.coco import finder_of_file, report_unused, search_start
from detrkit.data.formats.coco_json import (
    Annotation,
    ImageKey,
    ImageReader,
    box_xywh,
    describe_missing,
    image_key,
    read_box,
    read_categories,
    read_crowd,
    read_json,
    read_label,
)
from detrkit.data.formats.context import ReadContext
from detrkit.data.formats.json_files import find_json_files
from detrkit.data.formats.locate import MASK_WORDS, DatasetFiles, ImageFinder, Subset
from detrkit.data.formats.recognise import json_kind
from detrkit.data.formats.values import flag, integer
from detrkit.data.formats.writing import NamedRecord, Progress, copy_image, copy_images
from detrkit.data.records import ImageError, ObjectError, Record, Records, SplitName
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
        return 0.8 if path.suffix.lower() == ".json" and is_panoptic_file(path) else 0.0
    files = find_json_files(DatasetFiles.below(path), "panoptic")
    return 0.8 if files.has_usual_names else 0.67 if files.of_split else 0.5 if files.unnamed else 0.0


def read(path: Path, context: ReadContext) -> dict[SplitName, Split]:
    """Read a folder, or one JSON, which is the training split; segments are read whether masks are asked for or not.

    Raises:
        DatasetError: a file is missing, ambiguous or malformed.
    """
    if path.is_file():
        return {"train": read_panoptic_file(path, context)} if context.wants("train") else {}
    tree = DatasetFiles.below(path)
    files = find_json_files(tree, "panoptic")
    splits = {
        name: _read_document(
            chosen[0], _Finders.of(tree, chosen[0], name if files.of_split else None), tree.root, context
        )
        for name, chosen in files.by_split(context).items()
        if context.wants(name)
    }
    if context.splits is None:
        report_unused(tree, splits, context)
    return context.without_empty(splits)


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


def is_panoptic_file(path: Path) -> bool:
    """True if a JSON contains panoptic segments."""
    return path.name.startswith(_PREFIX) or json_kind(path) == "panoptic"


def read_panoptic_file(path: Path, context: ReadContext | None = None) -> Split:
    """Read a panoptic JSON; its images and PNGs are looked for in the folders around it.

    Args:
        path: the JSON file.
        context: handler of the images and segments that are malformed and left out; by default the first is raised.

    Raises:
        DatasetError: it is missing or malformed, or there is no folder of images or PNGs.
    """
    finders = _Finders(finder_of_file(path), finder_of_file(path, words=MASK_WORDS))
    start = search_start(finders.images.tree, path.absolute().parent)
    return _read_document(path, finders, start, context or ReadContext())


@dataclass(frozen=True)
class _Finders:
    """Finders of the images, and of their PNGs of segments."""

    images: ImageFinder
    pngs: ImageFinder

    @classmethod
    def of(cls, tree: DatasetFiles, file: Path, split: Subset | None) -> "_Finders":
        images = ImageFinder(tree, file.parent, split, file.stem)
        return cls(images, ImageFinder(tree, file.parent, split, file.stem, MASK_WORDS))

    def search_below(self, start: Path, content: Mapping[str, Any]) -> None:
        for finder, entries in ((self.images, content["images"]), (self.pngs, content["annotations"])):
            names = (entry.get("file_name") for entry in entries if isinstance(entry, dict))
            finder.search_below(start, (name for name in names if isinstance(name, str)))


def _read_document(path: Path, finders: _Finders, start: Path, context: ReadContext) -> Split:
    context.opened(path)
    content = read_json(path)
    if not isinstance(content, dict) or not all(isinstance(content.get(name), list) for name in _LISTS):
        raise DatasetError(f"{path}: expected a COCO panoptic file with lists 'images', 'annotations' and 'categories'")
    if not content["images"] and finders.images.split in ("val", "test") and context.may_be_empty(path):
        return Split.empty(Categories((), ()), path)
    categories = _with_is_thing(read_categories(content["categories"], path), content["categories"], path)
    finders.search_below(start, content)
    reader = _Reader(path, finders, categories, context)
    records = Records.of(reader.read(content["images"], content["annotations"]))
    if not records:
        raise DatasetError(f"{path}: found no image with a PNG of segments, expected at least one")
    return Split(records, categories, path)


@dataclass(frozen=True)
class _Reader:
    """Reads the images and annotations of one file."""

    path: Path
    finders: _Finders
    categories: Categories
    context: ReadContext

    def read(self, images: list[Any], annotations: list[Any]) -> Iterator[Record]:
        """Yield the images with the segments of their annotations; malformed entries go to the context."""
        segments: dict[ImageKey, list[Annotation | None]] = {}
        files: dict[ImageKey, Path] = {}
        reported: set[Any] = set()  # ids of images whose annotation is malformed
        for index, entry in enumerate(annotations):
            try:
                image_id, file, found = self._annotation(entry, f"{self.path}: annotations[{index}]")
                if image_id in files:
                    raise DatasetError(
                        f"{self.path}: annotations[{index}]: image id {image_id} is annotated twice; keep one"
                    )
            except DatasetError as error:
                self.context.error(ImageError(error.message))
                reported |= _image_id_of(entry)
            else:
                files[image_id], segments[image_id] = file, found
        reader = ImageReader(self.path, self.finders.images, self.context)
        for key, record in reader.read(images, segments, masks=True):
            if key not in files:
                if key not in reported:
                    missing = f"image id {key} has no PNG of segments; add it or drop the image"
                    self.context.error(ImageError(f"{self.path}: {missing}"))
                continue
            try:
                yield _with_boxes(replace(record, mask_file=files[key]))
            except DatasetError as error:
                self.context.error(ImageError(error.message))
        if segments:
            first = next(iter(segments))
            self.context.error(
                DatasetError(
                    f"{self.path}: {len(segments)} image ids have annotations and no entry in 'images', first {first}; add "
                    "the images or drop the annotations"
                )
            )

    def _annotation(self, entry: Any, where: str) -> tuple[ImageKey, Path, list[Annotation | None]]:
        is_entry = isinstance(entry, dict) and isinstance(entry.get("file_name"), str)
        if not is_entry or not isinstance(entry.get("segments_info"), list):
            raise DatasetError(f"{where}: found {short(entry)}, expected 'image_id', 'file_name' and 'segments_info'")
        image_id = image_key(entry.get("image_id"), f"{where}.image_id")
        file = self.finders.pngs.find(entry["file_name"])
        if file is None:
            raise DatasetError(f"{where}: {describe_missing(entry['file_name'], self.finders.pngs, 'PNG')}")
        label_of = {number: label for label, number in enumerate(self.categories.ids)}
        found: dict[int, Annotation] = {}
        faults: list[None] = []
        for number, segment in enumerate(entry["segments_info"]):
            try:
                segment_id, read = _segment(segment, label_of, f"{where}.segments_info[{number}]", self.context)
                if segment_id in found:
                    raise DatasetError(
                        f"{where}.segments_info[{number}]: segment id {segment_id} occurs twice; keep one of them"
                    )
            except DatasetError as error:
                self.context.error(ObjectError(error.message))
                faults.append(None)
            else:
                found[segment_id] = read
        return image_id, file, [*found.values(), *faults]


def _image_id_of(entry: Any) -> set[ImageKey]:
    try:
        return {image_key(entry["image_id"], "")}
    except (DatasetError, KeyError, TypeError):
        return set()


_UNKNOWN_BOX = (float("nan"),) * 4


def _segment(entry: Any, label_of: dict[int, int], where: str, context: ReadContext) -> tuple[int, Annotation]:
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
    return segment_id, (box, label, read_crowd(entry, where, context), str(segment_id).encode(), where)


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
    given = {integer(entry["id"], ""): entry.get("isthing") for entry in entries}
    if all(value is None for value in given.values()):
        return categories
    is_thing = {}
    for number, value in given.items():
        found = None if value is None else flag(value, f"{path}: category {number}: isthing")
        if found is None:
            raise DatasetError(
                f"{path}: category {number} has isthing {short(value)}, expected 1 for things or 0 for stuff in every one"
            )
        is_thing[number] = found
    return replace(categories, is_thing=tuple(is_thing[number] for number in categories.ids))


def _write_split(path: Path, records: list[NamedRecord], categories: Categories) -> None:
    folder = make_folder(path.with_suffix(""))
    images, annotations = [], []
    for one in records:
        record = one.record
        assert record.mask_file is not None
        assert record.segmentations is not None
        png = Path(one.file_name).with_suffix(".png").name
        copy_image(record.mask_file, folder / png)
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
