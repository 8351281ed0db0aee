"""Saved COCO results of any model -> detections. Untrusted: every entry is looked at before it counts."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from detrkit.data.formats.coco import read_json
from detrkit.errors import DataError
from detrkit.evaluation.columns import Found, Truth

_EXPECTED = "expected COCO results: a list of objects with image_id, category_id, bbox [x, y, width, height] and score"


def read_results(path: Path, truth: Truth) -> Found:
    """Read a results file that is to be judged by annotations.

    Raises:
        DataError: it is missing, malformed, or speaks of photos or classes that the data does not have.
    """
    content = read_json(path)
    if not isinstance(content, list):
        raise DataError(f"{path}: found {type(content).__name__}, {_EXPECTED}")
    for index, entry in enumerate(content):
        if not _is_result(entry):
            raise DataError(f"{path}: entry {index} is {_short(entry)}, {_EXPECTED}")
    found = Found.from_coco(content)
    for what, given, known in (
        ("image_id", found.image_ids, truth.image_ids),
        ("category_id", found.category_ids, np.array(truth.categories.ids)),
    ):
        unknown = ~np.isin(given, known)
        if unknown.any():
            first = int(unknown.argmax())
            raise DataError(
                f"{path}: entry {first} has {what} {int(given[first])}, which these photos do not have "
                f"({int(unknown.sum())} of {len(found)} entries); name the dataset and split that were predicted"
            )
    return found


def _is_result(entry: Any) -> bool:
    if not isinstance(entry, dict):
        return False
    ids = (entry.get("image_id"), entry.get("category_id"))
    box, score = entry.get("bbox"), entry.get("score")
    return (
        all(isinstance(number, int) and not isinstance(number, bool) and abs(number) < 2**63 for number in ids)
        and isinstance(box, list)
        and len(box) == 4
        and all(_is_finite(value) for value in (*box, score))
        and box[2] >= 0
        and box[3] >= 0
    )


def _is_finite(value: Any) -> bool:
    return (
        isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300 and math.isfinite(value)
    )


def _short(entry: Any) -> str:
    text = repr(entry)
    return text if len(text) <= 80 else text[:77] + "..."
