"""COCO instances JSON (cocodataset.org, "data format").

Category ids may be any integers: they are kept, and mapped to labels 0 .. K-1 in ascending order.
"""

import json
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np

from detrkit._internal.files import is_file, write_text
from detrkit._internal.provenance import is_written_by_detrkit
from detrkit.data.categories import Categories
from detrkit.data.dataset import Split
from detrkit.data.formats.context import ReadContext
from detrkit.data.formats.writing import NamedRecord, Progress, copy_images
from detrkit.data.records import (
    NO_SEGMENTATION,
    SPLIT_FOLDERS,
    ErrorHandler,
    ImageError,
    Masks,
    ObjectError,
    Record,
    Records,
    SegmentationError,
    SplitName,
    raise_error,
)
from detrkit.data.segmentation import check_segmentation, find_misfit, read_masks, repair_segmentation, rle_area, to_rle
from detrkit.errors import DatasetError, arg, short
from detrkit.ops.masks import encode_masks

LAYOUT = (
    "annotations/instances_train*.json and instances_val*.json next to folders of images with the same names, "
    "train/_annotations.coco.json, or one JSON next to the images"
)
HAS_MASKS = True
_ROBOFLOW_FILE = "_annotations.coco.json"


def detect(path: Path) -> float:
    """Return the confidence that a folder or file holds COCO instances."""
    if path.is_file():
        return 0.5 if path.suffix == ".json" else 0.0
    if any(path.glob("annotations/instances_*.json")) or any(path.glob(f"*/{_ROBOFLOW_FILE}")):
        return 0.9
    return 0.4 if find_single_json(path) is not None else 0.0


def read(path: Path, context: ReadContext) -> dict[SplitName, Split]:
    """Read a folder, or one JSON, which is the training split.

    Args:
        path: a folder in the layout of COCO 2017 or of a Roboflow export, or with a single JSON; or the JSON.
        context: splits to read, and whether with the segmentations of the objects.

    Raises:
        DatasetError: a file is missing, ambiguous or malformed.
    """
    on_error, masks = context.error, context.masks
    if path.is_file():
        whole = context.wants("train")
        return {"train": read_coco_file(path, find_image_root(path), on_error, masks=masks)} if whole else {}
    official = {
        split: read_coco_split(path, split, on_error, masks=masks)
        for split in SPLIT_FOLDERS
        if context.wants(split) and any(path.glob(f"annotations/instances_{split}*.json"))
    }
    if official or any(file for split in SPLIT_FOLDERS for file in path.glob(f"annotations/instances_{split}*.json")):
        return official
    exported = {
        split: path / name / _ROBOFLOW_FILE
        for split, names in SPLIT_FOLDERS.items()
        for name in names
        if context.wants(split) and (path / name / _ROBOFLOW_FILE).is_file()
    }
    if exported or any(path.glob(f"*/{_ROBOFLOW_FILE}")):
        return _drop_group_category(
            {split: read_coco_file(file, file.parent, on_error, masks=masks) for split, file in exported.items()}
        )
    single = find_single_json(path)
    return {} if single is None else read(single, context)


def write(splits: dict[SplitName, Split], output: Path, progress: Progress | None = None) -> int:
    """Write a folder in the layout of COCO 2017; boxes are rounded to 0.001 px.

    Returns:
        0: crowds are kept.
    """
    for name, records in copy_images(splits, output, "{split}", progress).items():
        file = f"instances_{splits[name].folder or name}.json"
        _write_json(output / "annotations" / file, records, splits[name].categories)
    return 0


def read_coco_split(
    root: Path | str, split: SplitName, on_error: ErrorHandler = raise_error, *, masks: Masks = False
) -> Split:
    """Read one split of a folder in the layout of COCO 2017.

    Args:
        root: folder with `annotations/instances_<split>NAME.json` and images in `<split>NAME/`.
        split: name of the split.
        on_error: called with every image and annotation that is malformed and left out; by default the first is raised.
        masks: keep the segmentations of the objects.

    Raises:
        DatasetError: the folder or file is missing, ambiguous or malformed.
    """
    root = Path(root)
    if not root.is_dir():
        what = "a file" if root.exists() else "nothing"
        raise DatasetError(f"{root}: found {what}, expected a dataset folder; check the path")
    found = sorted(root.glob(f"annotations/instances_{split}*.json"))
    if len(found) != 1:
        what = f"{len(found)} files" if found else "no file"
        raise DatasetError(f"{root}: found {what} annotations/instances_{split}*.json, expected one: {LAYOUT}")
    return read_coco_file(found[0], root / found[0].stem.removeprefix("instances_"), on_error, masks=masks)


def read_coco_file(
    path: Path | str, images: Path | str, on_error: ErrorHandler = raise_error, *, masks: Masks = False
) -> Split:
    """Read an instances JSON.

    Args:
        path: the JSON file.
        images: folder that its file names are relative to.
        on_error: called with every image and annotation that is malformed and left out; by default the first is raised.
        masks: keep the segmentations of the objects; objects without one are errors.

    Raises:
        DatasetError: the file or the folder is missing, or the file is malformed; the message names the first error.
    """
    path, images = Path(path), Path(images)
    if not images.is_dir():
        raise DatasetError(f"{images}: no such folder, expected the images of {path.name} in it")
    content = read_json(path)
    _check_document(content, path)
    categories = read_categories(content["categories"], path)
    of_image = _read_annotations(content["annotations"], categories, path, on_error, masks)
    records = Records.of(read_images(content["images"], of_image, images, path, on_error, masks=masks))
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


def _check_document(content: Any, path: Path) -> None:
    if not isinstance(content, dict) or not all(isinstance(content.get(k), list) for k in ("images", "categories")):
        raise DatasetError(
            f"{path}: expected a COCO instances file with lists 'images', 'annotations' and 'categories'"
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


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        DatasetError: it is missing or malformed.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise DatasetError(f"{path}: no such file, expected a JSON file; check the path") from None
    except (ValueError, RecursionError, OSError) as error:
        raise DatasetError(f"{path}: not readable as JSON ({str(error).splitlines()[0][:100]})") from None


def read_categories(entries: list[Any], path: Path) -> Categories:
    """Read ids and names, in ascending order of the ids.

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
            raise DatasetError(f"{where}: category id {number} occurs twice; give every category its own id")
        named[number] = entry["name"]
    if not named:
        raise DatasetError(f"{path}: found no categories, expected at least one")
    ids = tuple(sorted(named))
    return Categories(ids, tuple(named[number] for number in ids))


def _read_annotations(
    entries: list[Any], categories: Categories, path: Path, on_error: ErrorHandler, masks: Masks
) -> dict[int, list[tuple[Any, ...] | None]]:
    """Collect (xyxy, label, is_crowd, segmentation or None, where) by image id; None for a malformed object."""
    label_of = {number: label for label, number in enumerate(categories.ids)}
    of_image: dict[int, list[tuple[Any, ...] | None]] = defaultdict(list)
    for index, entry in enumerate(entries):
        where = f"{path}: annotations[{index}]"
        try:
            image_id, annotation = _read_annotation(entry, label_of, where, masks, on_error)
        except DatasetError as error:
            on_error(ObjectError(error.message))
            with suppress(DatasetError):
                of_image[integer(entry.get("image_id") if isinstance(entry, dict) else None, where)].append(None)
        else:
            of_image[image_id].append(annotation)
    return of_image


def _read_annotation(
    entry: Any, label_of: dict[int, int], where: str, masks: Masks, on_error: ErrorHandler
) -> tuple[int, tuple[Any, ...]]:
    if not isinstance(entry, dict):
        raise DatasetError(f"{where}: found {short(entry)}, expected an object")
    where += f" (id {short(entry.get('id'))})"
    label = read_label(entry, label_of, where)
    box = read_box(entry.get("bbox"), where)
    image_id = integer(entry.get("image_id"), f"{where}.image_id")
    segmentation = _read_segmentation(entry.get("segmentation"), where, masks, on_error) if masks else None
    return image_id, (box, label, is_crowd(entry), segmentation, where)


def _read_segmentation(segmentation: Any, where: str, masks: Masks, on_error: ErrorHandler) -> bytes:
    if masks == "available":
        if not segmentation:  # absent, or an empty list as of tools that annotate boxes
            return NO_SEGMENTATION
        try:
            return check_segmentation(segmentation, where)
        except DatasetError as error:
            on_error(SegmentationError(error.message))
            return NO_SEGMENTATION
    return check_segmentation(segmentation, where)


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
    if not isinstance(box, list) or len(box) != 4 or not all(_is_number(value) for value in box):
        raise DatasetError(f"{where}.bbox: found {short(box)}, expected [x, y, width, height] in pixels")
    x, y, width, height = box
    if width < 0 or height < 0:
        raise DatasetError(f"{where}.bbox: found {box} with a negative size, expected [x, y, width, height] in pixels")
    return x, y, x + width, y + height


def is_crowd(entry: dict[str, Any]) -> bool:
    """True if an annotation is of a group of objects that are not annotated one by one."""
    return entry.get("iscrowd", 0) not in (0, False, None)


def read_images(
    entries: list[Any],
    of_image: dict[int, list[tuple[Any, ...] | None]],
    images: Path,
    path: Path,
    on_error: ErrorHandler,
    *,
    masks: Masks = False,
) -> Iterator[Record]:
    """Read the images, and remove their annotations from `of_image`."""
    seen: set[int] = set()
    for index, entry in enumerate(entries):
        where = f"{path}: images[{index}]"
        try:
            image_id, image, size = _read_image(entry, images, where)
            if image_id in seen:
                raise DatasetError(f"{where}: image id {image_id} occurs twice; give every image its own id")
        except DatasetError as error:
            if isinstance(entry, dict) and isinstance(entry.get("id"), int) and entry["id"] not in seen:
                of_image.pop(entry["id"], None)  # the annotations are left out with the image
            on_error(ImageError(error.message))
            continue
        seen.add(image_id)
        found = of_image.pop(image_id, [])
        annotations = [one for one in found if one is not None]
        if masks == "available":
            annotations = [_with_fitting_segmentation(one, size, on_error) for one in annotations]
        yield Record(
            image_id=image_id,
            path=image,
            size=size,
            boxes=np.array([one[0] for one in annotations], dtype=np.float32).reshape(-1, 4),
            labels=np.array([one[1] for one in annotations], dtype=np.int64),
            is_crowd=np.array([one[2] for one in annotations], dtype=bool),
            segmentations=tuple(one[3] for one in annotations) if masks else None,
            num_faults=len(found) - len(annotations),
        )


def _with_fitting_segmentation(
    annotation: tuple[Any, ...], size: tuple[int, int], on_error: ErrorHandler
) -> tuple[Any, ...]:
    """Repair or leave out a segmentation that does not fit its image."""
    box, label, crowd, segmentation, where = annotation
    fault = find_misfit(segmentation, size)
    if fault is None:
        return annotation
    on_error(SegmentationError(f"{where}.segmentation: found {fault}; correct it or leave it out"))
    return box, label, crowd, repair_segmentation(segmentation, size, box), where


def _read_image(entry: Any, images: Path, where: str) -> tuple[int, Path, tuple[int, int]]:
    if not isinstance(entry, dict) or not isinstance(entry.get("file_name"), str):
        raise DatasetError(
            f"{where}: found {short(entry)}, expected an object with 'id', 'file_name', 'height', 'width'"
        )
    image_id = integer(entry.get("id"), f"{where}.id")
    image = resolve_inside(images, entry["file_name"], where)
    if not is_file(image):
        raise DatasetError(f"{where}: no such image {image}; complete the folder, or drop the image from the file")
    height, width = (integer(entry.get(side), f"{where}.{side}") for side in ("height", "width"))
    if min(height, width) < 1:
        raise DatasetError(f"{where}: found height {height} and width {width}, expected at least 1 pixel each")
    return image_id, image, (height, width)


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


def find_folder_with(entries: Any, folders: Iterable[Path]) -> Path | None:
    """Find the folder that the file names of entries are relative to: the first that has one of the first hundred files.

    Names that lead out of a folder are not looked up: the result must not depend on files elsewhere.
    """
    entries = entries[:100] if isinstance(entries, list) else []
    candidates = [folder for folder in folders if folder.is_dir()]
    names = [entry.get("file_name") for entry in entries if isinstance(entry, dict)]
    for name in (one for one in names if isinstance(one, str)):
        for folder in candidates:
            with suppress(DatasetError):
                if is_file(resolve_inside(folder, name, "")):
                    return folder
    return None


def find_single_json(folder: Path) -> Path | None:
    """Find the only JSON of annotations in a folder; detrkit's own results and JSON without images do not count."""
    found = [*sorted(folder.glob("*.json")), *sorted(folder.glob("annotations/*.json"))]
    if len(found) > 1:
        found = [file for file in found if not is_written_by_detrkit(file) and _lists_images(file)]
    return found[0] if len(found) == 1 else None


def _lists_images(file: Path) -> bool:
    try:
        content = read_json(file)
    except DatasetError:
        return True  # the reader reports the error
    return isinstance(content, dict) and "images" in content


def find_image_root(file: Path) -> Path:
    """Find the folder that the file names of a single JSON are relative to."""
    content = read_json(file)
    folders = (
        file.parent / "images",
        file.parent / file.stem,
        file.parent,
        file.parent.parent / "images",
        file.parent.parent / file.stem.removeprefix("instances_"),
        file.parent.parent,
    )
    found = find_folder_with(content.get("images") if isinstance(content, dict) else None, folders)
    return found or (file.parent / "images" if (file.parent / "images").is_dir() else file.parent)


def _drop_group_category(splits: dict[SplitName, Split]) -> dict[SplitName, Split]:
    """Drop the category that Roboflow adds as a group of the others: number 0, which has no objects.

    A model would otherwise have a class without training examples.
    """
    if not splits:
        return splits
    first = next(iter(splits.values())).categories
    used = {label for split in splits.values() for record in split.records for label in record.labels.tolist()}
    if any(split.categories != first for split in splits.values()) or first.ids[0] != 0 or 0 in used or len(first) < 2:
        return splits
    is_thing = None if first.is_thing is None else first.is_thing[1:]
    categories = Categories(first.ids[1:], first.names[1:], is_thing)
    return {
        name: Split(
            Records.of(replace(record, labels=record.labels - 1) for record in split.records), categories, split.source
        )
        for name, split in splits.items()
    }


def integer(value: Any, where: str) -> int:
    """Check that a value is an integer of at most 64 bits.

    Raises:
        DatasetError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise DatasetError(f"{where}: found {short(value)}, expected an integer")
    if not -(2**63) <= value < 2**63:
        raise DatasetError(f"{where}: found {short(value)}, expected an integer of at most 64 bits")
    return value


def _is_number(value: Any) -> bool:
    # compared before it is converted: an integer may have more digits than a float can hold
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e9 < value < 1e9


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


def box_xywh(box: list[float]) -> tuple[float, ...]:
    """Convert a box from xyxy to xywh, rounded to 0.001 px."""
    x1, y1, x2, y2 = box
    return tuple(round(value, 3) for value in (x1, y1, x2 - x1, y2 - y1))


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
