"""Instance masks from COCO segmentations (polygons, compressed and uncompressed RLE) and from PNGs of segment ids.

A segmentation is kept as JSON until its image is read (`Record.segmentations`), so that training on boxes does not decode
it. RLE is encoded and decoded by hotcoco, whose masks equal those of pycocotools to the pixel.
"""

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from hotcoco import mask as rle
from jaxtyping import Bool, Int64
from torch import Tensor

from detrkit.data.records import Record
from detrkit.data.segment_png import read_ids
from detrkit.errors import DatasetError
from detrkit.ops.segments import ids_to_masks

_MIN_COORDINATES = 6  # of a polygon with an area: three points
_MAX_COORDINATE = 1e6  # pixels; coordinates of polygons are clipped to it


def check_segmentation(segmentation: Any, where: str) -> bytes:
    """Check a COCO segmentation as far as possible without its image, and serialise it.

    Args:
        segmentation: as it is in the file.
        where: file and entry, for messages.

    Returns:
        JSON; polygons of fewer than three points, which cover no pixel, are left out.

    Raises:
        DatasetError: it is malformed, or nothing is left of it.
    """
    expected = "expected polygons [[x, y, x, y, ...], ...] or RLE {'size': [height, width], 'counts': ...}"
    if isinstance(segmentation, dict):
        if not _is_rle(segmentation):
            raise DatasetError(f"{where}.segmentation: found malformed RLE, {expected}")
        return _to_bytes({"size": segmentation["size"], "counts": segmentation["counts"]})
    if not isinstance(segmentation, list) or not all(_is_polygon(part) for part in segmentation):
        what = "nothing" if segmentation is None else "malformed polygons"
        raise DatasetError(f"{where}.segmentation: found {what}, {expected}")
    polygons = [part for part in segmentation if len(part) >= _MIN_COORDINATES]
    if not polygons:
        raise DatasetError(f"{where}.segmentation: found no polygon of three points or more, {expected}")
    return _to_bytes(polygons)


def read_masks(record: Record, chosen: np.ndarray) -> Bool[Tensor, "N H W"]:
    """Decode the masks of some of an image's objects; a mask may be empty.

    Args:
        record: with segmentations; its size is that of the image.
        chosen: indices of the objects.

    Raises:
        DatasetError: a segmentation does not fit the image, or its PNG cannot be read.
    """
    assert record.segmentations is not None, "the record has no segmentations"
    segmentations = [record.segmentations[index] for index in chosen.tolist()]
    if record.mask_file is not None:
        return ids_to_masks(read_ids(record.mask_file, record.size), segment_ids(segmentations))
    masks = torch.zeros(len(segmentations), *record.size, dtype=torch.bool)
    for mask, segmentation in zip(masks, segmentations, strict=True):
        try:
            encoded = to_rle(json.loads(segmentation), record.size)
            mask.numpy()[:] = rle.decode(encoded)
        except (ValueError, TypeError, OverflowError) as error:
            reason = str(error).splitlines()[0][:100]
            raise DatasetError(
                f"{record.path}: the segmentation of an object cannot be read ({reason}); correct it"
            ) from None
    return masks


def segment_ids(segmentations: Sequence[bytes]) -> Int64[Tensor, "N"]:
    """Return the segment ids of objects in a record's `mask_file`."""
    return torch.tensor([int(one) for one in segmentations], dtype=torch.int64)


def to_rle(segmentation: Any, size: tuple[int, int]) -> dict[str, Any]:
    """Convert a COCO segmentation to compressed RLE.

    Args:
        segmentation: polygons, of which the union is taken, or RLE.
        size: (height, width) of the image.

    Raises:
        ValueError: it is of another size, or malformed.
    """
    if isinstance(segmentation, list):
        # as lists: pycocotools takes arrays of four numbers for boxes
        polygons = [np.clip(part, -_MAX_COORDINATE, _MAX_COORDINATE).tolist() for part in segmentation]
        return dict(rle.merge([rle.frPyObjects([part], *size)[0] for part in polygons]))
    if tuple(segmentation["size"]) != size:
        height, width = segmentation["size"]
        raise ValueError(f"RLE of {width} x {height} pixels, the image has {size[1]} x {size[0]}")
    if isinstance(segmentation["counts"], list):
        if sum(segmentation["counts"]) != math.prod(size):
            raise ValueError("RLE that does not add up to the image's pixels")
        return dict(rle.frPyObjects(segmentation, *size))
    return {"size": list(size), "counts": segmentation["counts"]}


def rle_to_box(mask: dict[str, Any]) -> list[float]:
    """Return the box of an RLE mask, xywh in pixels, as in COCO results.

    Raises:
        ValueError: the mask is malformed.
    """
    return list(rle.to_bbox(mask).tolist())


def rle_area(mask: dict[str, Any]) -> int:
    """Return the number of pixels of an RLE mask.

    Raises:
        ValueError: the mask is malformed.
    """
    return int(rle.area(mask))


def _to_bytes(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _is_rle(value: dict[str, Any]) -> bool:
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
