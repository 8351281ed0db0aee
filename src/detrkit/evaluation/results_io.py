"""Saved COCO results of any model -> detections. Untrusted: every entry is looked at before it counts."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from detrkit.data.categories import Categories
from detrkit.data.formats.coco import read_json
from detrkit.data.segmentation import check_segmentation, rle_area
from detrkit.errors import DatasetError, short
from detrkit.evaluation.arrays import DetectionArrays, GroundTruth

_EXPECTED = (
    "expected COCO results: a list of objects with image_id, category_id, score, and bbox [x, y, width, height] or "
    "segmentation (compressed run lengths)"
)


def read_results(path: Path, truth: GroundTruth, categories: Categories | None = None) -> DetectionArrays:
    """Read a results file that is to be judged by annotations.

    Args:
        path: the JSON.
        truth: the annotations.
        categories: that results may be of; None takes those of the annotations.

    Raises:
        DatasetError: it is missing, malformed, or speaks of photos or classes that the data does not have.
    """
    content = read_json(path)
    if not isinstance(content, list):
        raise DatasetError(f"{path}: found {type(content).__name__}, {_EXPECTED}")
    for index, entry in enumerate(content):
        if not _is_result(entry) or not _has_shape(entry):
            raise DatasetError(f"{path}: entry {index} is {short(entry)}, {_EXPECTED}")
    found = DetectionArrays.from_coco(content)
    for what, given, known in (
        ("image_id", found.image_ids, truth.image_ids),
        ("category_id", found.category_ids, np.array((categories or truth.categories).ids)),
    ):
        unknown = ~np.isin(given, known)
        if unknown.any():
            first = int(unknown.argmax())
            raise DatasetError(
                f"{path}: entry {first} has {what} {int(given[first])}, which these photos do not have "
                f"({int(unknown.sum())} of {len(found)} entries); name the dataset and split that were predicted"
            )
    _check_mask_sizes(found, truth, path)
    return found


def _check_mask_sizes(found: DetectionArrays, truth: GroundTruth, path: Path) -> None:
    if found.masks is None:
        return
    size_of = dict(zip(truth.image_ids.tolist(), truth.sizes.tolist(), strict=True))
    for index, (image_id, mask) in enumerate(zip(found.image_ids.tolist(), found.masks, strict=True)):
        if mask["size"] != size_of[image_id]:
            raise DatasetError(
                f"{path}: entry {index} has a mask of {mask['size']} (height, width), image {image_id} has "
                f"{size_of[image_id]}; write masks of the size of the original photos"
            )


def _is_result(entry: Any) -> bool:
    if not isinstance(entry, dict):
        return False
    ids = (entry.get("image_id"), entry.get("category_id"))
    has_ids = all(isinstance(number, int) and not isinstance(number, bool) and abs(number) < 2**63 for number in ids)
    return has_ids and _is_finite(entry.get("score"))


def _has_shape(entry: dict[str, Any]) -> bool:
    """Whether there is a box, or a mask, or both; and neither is malformed."""
    mask = entry.get("segmentation")
    if mask is not None and not _is_mask(mask):
        return False
    if "bbox" not in entry:
        return mask is not None
    box = entry["bbox"]
    return isinstance(box, list) and len(box) == 4 and all(map(_is_finite, box)) and box[2] >= 0 and box[3] >= 0


def _is_mask(mask: Any) -> bool:
    if not isinstance(mask, dict) or not isinstance(mask.get("size"), list) or not isinstance(mask.get("counts"), str):
        return False
    try:
        check_segmentation(mask, "")
        rle_area(mask)
    except (DatasetError, ValueError, TypeError, OverflowError):
        return False
    return True


def _is_finite(value: Any) -> bool:
    return (
        isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300 and math.isfinite(value)
    )
