"""COCO instances JSON (cocodataset.org, "data format"), in the layouts of COCO 2017 and of the field's tools.

Category ids may be any integers: they are kept, and mapped to labels 0 .. K-1 in ascending order.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np

from detrkit._internal.files import write_text
from detrkit.data.categories import Categories
from detrkit.data.dataset import Split
from detrkit.data.findings import Location
from detrkit.data.formats.coco_json import (
    Annotation,
    ImageKey,
    ImageReader,
    box_xywh,
    check_area,
    image_key,
    read_box,
    read_categories,
    read_crowd,
    read_json,
    read_label,
)
from detrkit.data.formats.context import ReadContext
from detrkit.data.formats.json_files import JsonFiles, find_json_files
from detrkit.data.formats.locate import (
    LABEL_WORDS,
    DatasetFiles,
    ImageFinder,
    Subset,
    is_named,
    subset_of,
    unused_images,
)
from detrkit.data.formats.recognise import recognise
from detrkit.data.formats.writing import NamedRecord, Progress, copy_images
from detrkit.data.records import NO_SEGMENTATION, ObjectError, Record, Records, SegmentationError, SplitName
from detrkit.data.segmentation import check_segmentation, read_masks, rle_area, to_rle
from detrkit.errors import DatasetError, arg, short
from detrkit.ops.masks import encode_masks

LAYOUT = (
    "annotations/instances_train*.json and instances_val*.json, train/_annotations.coco.json, or one JSON, with the images "
    "in folders such as train/, images/train/ or images/"
)
HAS_MASKS = True
_GROUP_ID = 0  # of the category that Roboflow adds


def detect(path: Path) -> float:
    """Return the confidence that a folder or file holds COCO instances."""
    if path.is_file():
        return 0.5 if path.suffix.lower() == ".json" else 0.0
    files = find_json_files(DatasetFiles.below(path), "coco")
    if files.has_usual_names:
        return 0.9
    return 0.65 if files.of_split else 0.4 if files.unnamed else 0.0


def read(path: Path, context: ReadContext) -> dict[SplitName, Split]:
    """Read a folder, or one JSON, which is the training split.

    Args:
        path: a folder in the layout of COCO 2017, or of an export of any tool; or the JSON.
        context: splits to read, and whether with the segmentations of the objects.

    Raises:
        DatasetError: a file is missing, ambiguous or malformed.
    """
    if path.is_file():
        return {"train": read_coco_file(path, None, context)} if context.wants("train") else {}
    tree = DatasetFiles.below(path)
    files = find_json_files(tree, "coco")
    splits = {
        name: _read_files(tree, chosen, name if files.of_split else None, context)
        for name, chosen in files.by_split(context).items()
        if context.wants(name)
    }
    if context.splits is None:
        report_unused(tree, splits, context)
    return _drop_group_category(context.without_empty(splits), files, context)


def report_unused(tree: DatasetFiles, splits: dict[SplitName, Split], context: ReadContext) -> None:
    """Report the images that no annotation names, in the folders of those that are named."""
    used = (split.records.path(index) for split in splits.values() for index in range(len(split)))
    for image in unused_images(tree, used):
        context.inform("images that the annotations do not name", "they are left out", Location(str(image), image))


def write(splits: dict[SplitName, Split], output: Path, progress: Progress | None = None) -> int:
    """Write a folder in the layout of COCO 2017; boxes are rounded to 0.001 px.

    Returns:
        0: crowds are kept.
    """
    for name, records in copy_images(splits, output, "{split}", progress).items():
        file = f"instances_{splits[name].folder or name}.json"
        _write_json(output / "annotations" / file, records, splits[name].categories)
    return 0


def read_coco_split(root: Path | str, split: SplitName, context: ReadContext | None = None) -> Split:
    """Read one split of a folder.

    Args:
        root: the folder.
        split: name of the split.
        context: whether with the segmentations of the objects.

    Raises:
        DatasetError: the folder or file is missing, ambiguous or malformed.
    """
    root, context = Path(root), context or ReadContext()
    if not root.is_dir():
        what = "a file" if root.exists() else "nothing"
        raise DatasetError(f"{root}: found {what}, expected a dataset folder; check the path")
    tree = DatasetFiles.below(root)
    files = find_json_files(tree, "coco").of_split.get(split, [])
    if len(files) != 1:
        what = f"{len(files)} files" if files else "no file"
        raise DatasetError(f"{root}: found {what} annotations/instances_{split}*.json, expected one: {LAYOUT}")
    return _read_files(tree, files, split, context)


def read_coco_file(path: Path | str, images: Path | str | None = None, context: ReadContext | None = None) -> Split:
    """Read an instances JSON.

    Args:
        path: the JSON file.
        images: folder that its file names are relative to; by default they are looked for around the file.
        context: whether with the segmentations of the objects, and the handler of errors.

    Raises:
        DatasetError: the file or the folder is missing, or the file is malformed; the message names the first error.
    """
    path, context = Path(path), context or ReadContext()
    if images is None:
        return _read_document(path, finder_of_file(path), context)
    folder = Path(images)
    if not folder.is_dir():
        raise DatasetError(f"{folder}: no such folder, expected the images of {path.name} in it")
    tree = DatasetFiles.below(folder)
    return _read_document(path, ImageFinder(tree, tree.root), context)


def finder_of_file(path: Path, **how: Any) -> ImageFinder:
    """Look for the images of a single JSON: in the folders around it."""
    near = path.absolute().parent
    tree = DatasetFiles.below(near.parent)
    return ImageFinder(tree, near, subset_of(path.stem) or subset_of(near.name), path.stem, **how)


def search_start(tree: DatasetFiles, near: Path) -> Path:
    """Return the folder below which all folders are searched if the images of a single JSON are in no usual place."""
    is_part = is_named(near.name, LABEL_WORDS) or subset_of(near.name) is not None
    return near.parent if is_part and near != tree.root else near


def _read_files(tree: DatasetFiles, files: Sequence[Path], split: Subset | None, context: ReadContext) -> Split:
    """Read the files of a split, one after the other; images of several files are numbered anew if their ids repeat."""
    parts = [
        _read_document(file, ImageFinder(tree, file.parent, split, file.stem), context, tree.root) for file in files
    ]
    first = parts[0]
    for part in parts[1:]:
        if part.categories != first.categories:
            raise DatasetError(f"{part.source}: the categories differ from those of {first.source}; use the same list")
    if len(parts) == 1:
        return first
    records = [record for part in parts for record in part.records]
    if len({record.image_id for record in records}) < len(records):
        records = [replace(record, image_id=number) for number, record in enumerate(records, start=1)]
    return replace(first, records=Records.of(records))


def _read_document(path: Path, finder: ImageFinder, context: ReadContext, root: Path | None = None) -> Split:
    context.opened(path)
    content = read_json(path)
    _check_document(content, path)
    entries = content["images"]
    if not entries and finder.split in ("val", "test") and context.may_be_empty(path):
        return Split.empty(Categories((), ()), path)
    categories = read_categories(content["categories"], path)
    names = (entry.get("file_name") for entry in entries if isinstance(entry, dict))
    near = path.absolute().parent
    if near.is_relative_to(finder.tree.root):
        start = search_start(finder.tree, near) if root is None else root
        finder.search_below(start, (name for name in names if isinstance(name, str)))
    of_image = _read_annotations(content, categories, path, context)
    reader = ImageReader(path, finder, context)
    num_errors = context.num_errors
    records = Records.of(record for _, record in reader.read(entries, of_image, masks=context.masks))
    if of_image:
        context.error(
            DatasetError(
                f"{path}: {len(of_image)} image ids have annotations and no entry in 'images', first "
                f"{next(iter(of_image))!r}; add the images or drop the annotations"
            )
        )
    if not records and context.num_errors == num_errors:
        raise DatasetError(f"{path}: found no images, expected at least one")
    return Split(records, categories, path)


def _check_document(content: Any, path: Path) -> None:
    if not isinstance(content, dict) or not all(isinstance(content.get(k), list) for k in ("images", "categories")):
        other = recognise(path)
        raise DatasetError(
            other or f"{path}: expected a COCO instances file with lists 'images', 'annotations' and 'categories'"
        )
    if not isinstance(content.get("annotations"), list):
        raise DatasetError(
            f"{path}: found no list 'annotations'; to predict images without annotations, use detrkit predict"
        )
    if any(isinstance(entry, dict) and "segments_info" in entry for entry in content["annotations"][:1]):
        raise DatasetError(
            f"{path}: is a panoptic file, whose objects are segments; expected an instances file with boxes, or "
            f"{arg('format', 'panoptic')}"
        )


def _read_annotations(
    content: dict[str, Any], categories: Categories, path: Path, context: ReadContext
) -> dict[ImageKey, list[Annotation | None]]:
    """Collect the annotations by image id; None for a malformed object."""
    label_of = {category: label for label, category in enumerate(categories.ids)}
    of_image: dict[ImageKey, list[Annotation | None]] = defaultdict(list)
    for index, entry in enumerate(content["annotations"]):
        where = f"{path}: annotations[{index}]"
        try:
            if not isinstance(entry, dict):
                raise DatasetError(f"{where}: found {short(entry)}, expected an object")
            where += f" (id {short(entry.get('id'))})"
            label = read_label(entry, label_of, where)
            box = read_box(entry.get("bbox"), where)
            key = image_key(entry.get("image_id"), f"{where}.image_id")
            crowd = read_crowd(entry, where, context)
            segmentation = _read_segmentation(entry.get("segmentation"), where, context) if context.masks else None
            check_area(entry, where, context)
        except DatasetError as error:
            context.error(ObjectError(error.message))
            with suppress(DatasetError):
                of_image[image_key(entry.get("image_id") if isinstance(entry, dict) else None, where)].append(None)
        else:
            of_image[key].append((box, label, crowd, segmentation, where if context.masks else ""))
    return of_image


def _read_segmentation(segmentation: Any, where: str, context: ReadContext) -> bytes:
    if context.masks != "available":
        return check_segmentation(segmentation, where)
    if not segmentation:  # absent, or an empty list as of tools that annotate boxes
        return NO_SEGMENTATION
    try:
        return check_segmentation(segmentation, where)
    except DatasetError as error:
        context.error(SegmentationError(error.message))
        return NO_SEGMENTATION


def _drop_group_category(
    splits: dict[SplitName, Split], files: JsonFiles, context: ReadContext
) -> dict[SplitName, Split]:
    """Drop the category that Roboflow adds as a group of the others: number 0, which has no objects in any split.

    A model would otherwise have a class without training examples.
    """
    if not files.is_roboflow or not splits:
        return splits
    first = next(iter(splits.values())).categories
    used = {label for split in splits.values() for label in split.records.arrays.labels.unique().tolist()}
    if any(split.categories != first for split in splits.values()) or first.ids[0] != _GROUP_ID or len(first) < 2:
        return splits
    unread = [file for name, chosen in files.of_split.items() if not context.wants(name) for file in chosen]
    if 0 in used or any(_has_objects_of(file, _GROUP_ID) for file in unread):
        return splits
    is_thing = None if first.is_thing is None else first.is_thing[1:]
    categories = Categories(first.ids[1:], first.names[1:], is_thing)
    return {
        name: Split(
            Records.of(replace(record, labels=record.labels - 1) for record in split.records), categories, split.source
        )
        for name, split in splits.items()
    }


def _has_objects_of(file: Path, category_id: int) -> bool:
    """Return whether a file of a split that is not read has objects of a category."""
    try:
        content = read_json(file)
    except DatasetError:
        return False
    entries = content.get("annotations") if isinstance(content, dict) else None
    return isinstance(entries, list) and any(
        isinstance(entry, dict) and entry.get("category_id") == category_id for entry in entries
    )


def _write_json(path: Path, records: list[NamedRecord], categories: Categories) -> None:
    images = [
        {
            "id": one.record.image_id,
            "file_name": one.file_name,
            "height": one.record.size[0],
            "width": one.record.size[1],
        }
        for one in records
    ]
    annotations: list[dict[str, Any]] = []
    for one in records:
        for (box, label, crowd), segmentation in zip(one.objects, _segmentations(one.record), strict=True):
            x, y, width, height = box_xywh(box)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": one.record.image_id,
                    "category_id": categories.ids[label],
                    "bbox": [x, y, width, height],
                    "area": round((box[2] - box[0]) * (box[3] - box[1]), 3),
                    "iscrowd": int(crowd),
                    **segmentation,
                }
            )
    document = {"images": images, "annotations": annotations, "categories": categories.to_json()}
    write_text(path, json.dumps(document, ensure_ascii=False))


def _segmentations(record: Record) -> Iterable[dict[str, Any]]:
    """Return the segmentation and area of every object that has one; those of panoptic segments as run lengths."""
    if record.segmentations is None:
        return repeat({}, len(record.labels))
    if record.mask_file is not None:
        masks = encode_masks(read_masks(record, np.arange(len(record.labels))))
        return [{"segmentation": one, "area": rle_area(one)} for one in masks]
    return [{} if one == NO_SEGMENTATION else _with_area(json.loads(one), record.size) for one in record.segmentations]


def _with_area(segmentation: Any, size: tuple[int, int]) -> dict[str, Any]:
    return {"segmentation": segmentation, "area": rle_area(to_rle(segmentation, size))}
