"""Splits -> a dataset folder in any of the forms, photos copied.

hotcoco writes YOLO and VOC, too, but rounds VOC boxes to whole pixels and renumbers the classes. Here ids, names and boxes
(to 0.001 px) survive: YOLO names its classes by id, and a VOC folder gets a `categories.json`, which `voc.read_voc` reads.
"""

import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import repeat
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import yaml

from detrkit._internal.files import make_folder, refuse_overwrite, write_text
from detrkit.data.categories import Categories
from detrkit.data.dataset import Split
from detrkit.data.formats.folder import Format
from detrkit.data.formats.shards import write_shards
from detrkit.data.images import read_image_bytes
from detrkit.data.records import Record, SplitName
from detrkit.data.segmentation import rle_area, to_rle
from detrkit.errors import DatasetError

CATEGORIES_FILE = "categories.json"


def write_dataset(
    splits: dict[SplitName, Split], output: Path, format: Format, progress: Callable[[int, int], None] | None = None
) -> int:
    """Write a dataset folder.

    Args:
        splits: of one dataset.
        output: folder to create.
        format: how to write it down.
        progress: told how many photos of how many are copied.

    Returns:
        How many crowds were left out, which YOLO cannot express.

    Raises:
        DatasetError: the folder holds something already, or the dataset has nothing that the form is made of.
    """
    refuse_overwrite(output)
    if format == "panoptic" and any(content.records.arrays.mask_files is None for content in splits.values()):
        raise DatasetError(
            f"{splits['train'].source}: holds no segments, which panoptic data are made of; choose another form"
        )
    if format == "voc":
        _check_voc_names(splits["train"].categories)
    if format == "shards":
        write_shards(splits, output, progress=progress)
        return 0
    names = _names_of(splits)
    writer = {"coco": _write_coco, "panoptic": _write_panoptic, "yolo": _write_yolo, "voc": _write_voc}[format]
    place = {"coco": "{split}", "panoptic": "{split}", "yolo": "{split}/images", "voc": "JPEGImages"}[format]
    total, done = sum(len(content.records) for content in splits.values()), 0
    for split, content in splits.items():
        folder = make_folder(output / place.format(split=split))
        for record, name in zip(content.records, names[split], strict=True):
            _copy(record, folder / name)
            done += 1
            if progress:
                progress(done, total)
        writer(split, content, output, names[split])
    categories = splits["train"].categories
    if format == "yolo":
        _write_data_yaml(splits, categories, output)
        return sum(int(record.is_crowd.sum()) for content in splits.values() for record in content.records)
    if format == "voc":
        write_text(output / CATEGORIES_FILE, json.dumps(categories.to_json(), indent=1, ensure_ascii=False))
    return 0


def _check_voc_names(categories: Categories) -> None:
    """See that classes can be told by their names, which is all that VOC's files know of them.

    Raises:
        DatasetError: they cannot.
    """
    names = [" ".join(name.split()) for name in categories.names]
    for name, given in zip(names, categories.names, strict=True):
        if not name or names.count(name) > 1 or not name.isprintable():
            raise DatasetError(
                f"class {given!r}: expected a name of its own, of printable signs, for Pascal VOC tells classes by their "
                "names alone; rename it, or choose another form"
            )


def _copy(record: Record, target: Path) -> None:
    try:
        if record.span is None:
            shutil.copyfile(record.path, target)
        else:
            target.write_bytes(read_image_bytes(record.path, record.span))
    except OSError as error:
        raise DatasetError(
            f"{target}: cannot be written ({error.strerror or error}); what is there is not whole"
        ) from None


def _names_of(splits: dict[SplitName, Split]) -> dict[SplitName, list[str]]:
    """A file name for every record, its photo's own unless another has it: forms differ in what they keep apart."""
    taken: set[str] = set()
    names: dict[SplitName, list[str]] = {}
    for split, content in splits.items():
        names[split] = []
        for record in content.records:
            name, number = record.path.name, 1
            while name.lower() in taken or Path(name).stem.lower() in taken:
                number += 1
                name = f"{record.path.stem}_{number}{record.path.suffix}"
            taken |= {name.lower(), Path(name).stem.lower()}
            names[split].append(name)
    return names


def _write_coco(split: SplitName, content: Split, output: Path, file_names: list[str]) -> None:
    images = [
        {"id": one.image_id, "file_name": name, "height": one.size[0], "width": one.size[1]}
        for one, name in zip(content.records, file_names, strict=True)
    ]
    annotations = [
        {
            "id": 0,
            "image_id": record.image_id,
            "category_id": content.categories.ids[label],
            "bbox": [round(value, 3) for value in (x1, y1, x2 - x1, y2 - y1)],
            "area": round((x2 - x1) * (y2 - y1), 3),
            "iscrowd": int(is_crowd),
            **outline,
        }
        for record in content.records
        for ((x1, y1, x2, y2), label, is_crowd), outline in zip(_objects(record), _outlines_of(record), strict=True)
    ]
    for number, annotation in enumerate(annotations, start=1):
        annotation["id"] = number
    document = {"images": images, "annotations": annotations, "categories": content.categories.to_json()}
    write_text(output / "annotations" / f"instances_{split}.json", json.dumps(document, ensure_ascii=False))


def _outlines_of(record: Record) -> Iterable[dict[str, Any]]:
    """What a COCO annotation says of an object's outline, and of its area; nothing where only boxes are known."""
    if record.segmentations is None or record.mask_file is not None:
        return repeat({}, len(record.labels))
    segmentations = [json.loads(outline) for outline in record.segmentations]
    return [{"segmentation": one, "area": rle_area(to_rle(one, record.size))} for one in segmentations]


def _write_panoptic(split: SplitName, content: Split, output: Path, file_names: list[str]) -> None:
    name = f"panoptic_{split}"
    folder = make_folder(output / "annotations" / name)
    images, annotations = [], []
    for record, file_name in zip(content.records, file_names, strict=True):
        assert record.mask_file is not None
        assert record.segmentations is not None
        height, width = record.size
        png = Path(file_name).with_suffix(".png").name
        shutil.copyfile(record.mask_file, folder / png)
        images.append({"id": record.image_id, "file_name": file_name, "height": height, "width": width})
        segments = [
            {
                "id": int(outline),
                "category_id": content.categories.ids[label],
                "bbox": [round(value, 3) for value in (x1, y1, x2 - x1, y2 - y1)],
                "iscrowd": int(is_crowd),
            }
            for outline, ((x1, y1, x2, y2), label, is_crowd) in zip(record.segmentations, _objects(record), strict=True)
        ]
        annotations.append({"image_id": record.image_id, "file_name": png, "segments_info": segments})
    document = {"images": images, "annotations": annotations, "categories": content.categories.to_json()}
    write_text(output / "annotations" / f"{name}.json", json.dumps(document, ensure_ascii=False))


def _write_yolo(split: SplitName, content: Split, output: Path, file_names: list[str]) -> None:
    for record, name in zip(content.records, file_names, strict=True):
        height, width = record.size
        # YOLO knows nothing beyond the edges
        inside = replace(record, boxes=record.boxes.clip(0, np.array([width, height, width, height], np.float32)))
        rows = [
            f"{content.categories.ids[label]} {(x1 + x2) / 2 / width:.9f} {(y1 + y2) / 2 / height:.9f} "
            f"{(x2 - x1) / width:.9f} {(y2 - y1) / height:.9f}\n"
            for (x1, y1, x2, y2), label, is_crowd in _objects(inside)
            if not is_crowd
        ]
        write_text(output / split / "labels" / Path(name).with_suffix(".txt"), "".join(rows))


def _write_data_yaml(splits: dict[SplitName, Split], categories: Categories, output: Path) -> None:
    content: dict[str, object] = {split: f"{split}/images" for split in splits}
    content["nc"] = len(categories)
    content["names"] = dict(zip(categories.ids, categories.names, strict=True))
    write_text(output / "data.yaml", yaml.safe_dump(content, sort_keys=False, allow_unicode=True))


def _write_voc(split: SplitName, content: Split, output: Path, file_names: list[str]) -> None:
    for record, file_name in zip(content.records, file_names, strict=True):
        top = ElementTree.Element("annotation")
        ElementTree.SubElement(top, "filename").text = file_name
        size = ElementTree.SubElement(top, "size")
        for name, value in (("width", record.size[1]), ("height", record.size[0]), ("depth", 3)):
            ElementTree.SubElement(size, name).text = str(value)
        for corners_xyxy, label, is_crowd in _objects(record):
            element = ElementTree.SubElement(top, "object")
            ElementTree.SubElement(element, "name").text = content.categories.names[label]
            ElementTree.SubElement(element, "difficult").text = str(int(is_crowd))
            corners = ElementTree.SubElement(element, "bndbox")
            for side, pixels in zip(("xmin", "ymin", "xmax", "ymax"), corners_xyxy, strict=True):
                ElementTree.SubElement(corners, side).text = f"{pixels:.3f}"
        ElementTree.indent(top)
        file = output / "Annotations" / Path(file_name).with_suffix(".xml")
        write_text(file, ElementTree.tostring(top, encoding="unicode") + "\n")
    stems = "".join(f"{Path(name).stem}\n" for name in file_names)
    write_text(output / "ImageSets" / "Main" / f"{split}.txt", stems)


def _objects(record: Record) -> list[tuple[list[float], int, bool]]:
    return list(zip(record.boxes.tolist(), record.labels.tolist(), record.is_crowd.tolist(), strict=True))
