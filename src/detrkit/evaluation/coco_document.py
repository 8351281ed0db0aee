"""Annotations of a split in the form of COCO, from the split's own file.

Metrics need what records do not keep: annotated areas and boxes in full precision. Everything else is read as the reader of
the format reads it: ids and flags written as text, images without a size.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from detrkit.data.dataset import Split
from detrkit.data.formats.coco_json import ImageKey, has_text_ids, image_key, read_json
from detrkit.data.formats.values import flag, integer, number
from detrkit.errors import DatasetError


def document_of_file(split: Split) -> dict[str, Any] | None:
    """Read the COCO file of a split.

    Args:
        split: that was read from it.

    Returns:
        COCO annotations of the images of the split, with its ids, sizes and categories; None if the file does not hold all
        images, because the split was read from several files.

    Raises:
        DatasetError: the file is missing or malformed.
    """
    content = read_json(split.source)
    if not isinstance(content, dict) or not all(
        isinstance(content.get(name), list) for name in ("images", "annotations")
    ):
        raise DatasetError(f"{split.source}: has changed since it was read; expected lists 'images' and 'annotations'")
    sizes = dict(zip(split.records.image_ids, split.records.arrays.sizes.tolist(), strict=True))
    id_of = _image_ids(content["images"])
    found = sizes.keys() & id_of.values()
    if len(found) < len(sizes):
        return None
    return {
        "images": [{"id": one, "height": height, "width": width} for one, (height, width) in sizes.items()],
        "annotations": _annotations(
            content["annotations"], {key: one for key, one in id_of.items() if one in found}, split
        ),
        "categories": split.categories.to_json(),
    }


def _image_ids(entries: Sequence[Any]) -> dict[ImageKey, int]:
    """Return the ids of the images by what they are in the file."""
    ids: dict[ImageKey, int] = {}
    is_numbered = has_text_ids(entries)
    for index, entry in enumerate(entries):
        with suppress(DatasetError, KeyError, TypeError):  # of images that were left out
            key = image_key(entry["id"], "")
            ids.setdefault(key, index + 1 if is_numbered else int(key))
    return ids


def _annotations(entries: Sequence[Any], id_of: Mapping[ImageKey, int], split: Split) -> list[dict[str, Any]]:
    known = set(split.categories.ids)
    annotations = []
    for entry in entries:
        with suppress(DatasetError, KeyError, TypeError, AttributeError):  # of objects that were left out
            key, category = image_key(entry["image_id"], ""), integer(entry["category_id"], "")
            box = [number(value) for value in entry["bbox"]]
            if key not in id_of or category not in known or len(box) != 4 or None in box:
                continue
            annotation = {
                "id": entry.get("id"),
                "image_id": id_of[key],
                "category_id": category,
                "bbox": box,
                "area": _area(entry.get("area")),
                "iscrowd": bool(flag(entry.get("iscrowd"), "")),
            }
            if "segmentation" in entry:
                annotation["segmentation"] = entry["segmentation"]
            annotations.append(annotation)
    return annotations


def _area(value: Any) -> Any:
    return number(value) if isinstance(value, str) else value
