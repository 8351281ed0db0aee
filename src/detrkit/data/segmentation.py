"""Masks of a photo's objects: from COCO segmentations (polygons, both kinds of run lengths) and from PNGs of ids; and back.

A segmentation is kept as JSON, undecoded, until its photo is opened (`Record.segmentations`), so that training on boxes pays
nothing for it. Run lengths are hotcoco's, whose masks are pycocotools' to the pixel.
"""

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from hotcoco import mask as runs
from jaxtyping import Bool, Int64
from torch import Tensor

from detrkit.data.records import Record
from detrkit.data.segment_png import read_ids
from detrkit.errors import DatasetError
from detrkit.ops.segments import ids_to_masks

_MIN_NUMBERS = 6  # of a polygon with an area: three points
_FURTHEST = 1e6  # pixels that a polygon's point may be away


def check_segmentation(segmentation: Any, where: str) -> bytes:
    """See that a COCO segmentation can be decoded, as far as that is known without its photo, and make it small.

    Args:
        segmentation: as it stands in the file.
        where: in which file and entry, for messages.

    Returns:
        JSON. Polygons of fewer than three points, which hold no pixel, are left out.

    Raises:
        DatasetError: it is none, or nothing is left of it.
    """
    expected = "expected polygons [[x, y, x, y, ...], ...] or run lengths {'size': [height, width], 'counts': ...}"
    if isinstance(segmentation, dict):
        if not _are_runs(segmentation):
            raise DatasetError(f"{where}.segmentation: found malformed run lengths, {expected}")
        return _compact({"size": segmentation["size"], "counts": segmentation["counts"]})
    if not isinstance(segmentation, list) or not all(_is_polygon(part) for part in segmentation):
        what = "nothing" if segmentation is None else "malformed polygons"
        raise DatasetError(f"{where}.segmentation: found {what}, {expected}")
    polygons = [part for part in segmentation if len(part) >= _MIN_NUMBERS]
    if not polygons:
        raise DatasetError(f"{where}.segmentation: found no polygon of three points or more, {expected}")
    return _compact(polygons)


def read_masks(record: Record, chosen: np.ndarray) -> Bool[Tensor, "N H W"]:
    """Make the masks of some of a photo's objects; empty where no pixel is an object's.

    Args:
        record: with outlines, of the photo's own size.
        chosen: indices of its objects.

    Raises:
        DatasetError: an outline does not fit the photo, or its PNG cannot be read.
    """
    assert record.segmentations is not None, "asked for masks of records without outlines"
    outlines = [record.segmentations[index] for index in chosen.tolist()]
    if record.mask_file is not None:
        return ids_to_masks(read_ids(record.mask_file, record.size), segment_ids(outlines))
    masks = torch.zeros(len(outlines), *record.size, dtype=torch.bool)
    for mask, outline in zip(masks, outlines, strict=True):
        try:
            rle = to_rle(json.loads(outline), record.size)
            mask.numpy()[:] = runs.decode(rle)
        except (ValueError, TypeError, OverflowError) as error:
            reason = str(error).splitlines()[0][:100]
            raise DatasetError(f"{record.path}: the outline of an object cannot be read ({reason}); mend it") from None
    return masks


def segment_ids(outlines: Sequence[bytes]) -> Int64[Tensor, "N"]:
    """The ids that stand for objects in a record's `mask_file`."""
    return torch.tensor([int(outline) for outline in outlines], dtype=torch.int64)


def to_rle(segmentation: Any, size: tuple[int, int]) -> dict[str, Any]:
    """Turn a COCO segmentation into compressed run lengths.

    Args:
        segmentation: polygons, which are joined, or run lengths of either kind.
        size: (height, width) of the photo.

    Raises:
        ValueError: it is of another size, or malformed.
    """
    if isinstance(segmentation, list):
        # no longer than what pycocotools would take for a box
        polygons = [np.clip(part, -_FURTHEST, _FURTHEST).tolist() for part in segmentation]
        return dict(runs.merge([runs.frPyObjects([part], *size)[0] for part in polygons]))
    if tuple(segmentation["size"]) != size:
        height, width = segmentation["size"]
        raise ValueError(f"run lengths of {width} x {height} pixels, the photo has {size[1]} x {size[0]}")
    if isinstance(segmentation["counts"], list):
        if sum(segmentation["counts"]) != math.prod(size):
            raise ValueError("run lengths that do not add up to the photo's pixels")
        return dict(runs.frPyObjects(segmentation, *size))
    return {"size": list(size), "counts": segmentation["counts"]}


def rle_to_box(mask: dict[str, Any]) -> list[float]:
    """Find the box around run lengths, xywh in pixels as COCO results have it.

    Raises:
        ValueError: they are malformed.
    """
    return list(runs.to_bbox(mask).tolist())


def rle_area(mask: dict[str, Any]) -> int:
    """Count the pixels of run lengths.

    Raises:
        ValueError: they are malformed.
    """
    return int(runs.area(mask))


def _compact(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _are_runs(value: dict[str, Any]) -> bool:
    size, counts = value.get("size"), value.get("counts")
    if not isinstance(size, list) or len(size) != 2 or not all(_is_count(side) and side > 0 for side in size):
        return False
    if isinstance(counts, list):
        return all(_is_count(count) for count in counts)
    return isinstance(counts, str) and counts.isascii()


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31


def _is_polygon(part: Any) -> bool:
    return (
        isinstance(part, list)
        and len(part) % 2 == 0
        and all(isinstance(x, int | float) and not isinstance(x, bool) and -1e9 < x < 1e9 for x in part)
    )
