"""Instance masks from COCO segmentations (polygons, compressed and uncompressed RLE) and from PNGs of segment ids.

A segmentation is kept as JSON until its image is read (`Record.segmentations`), so that training on boxes does not decode
it. RLE is encoded and decoded by hotcoco, whose masks equal those of pycocotools to the pixel.
"""

import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from hotcoco import mask as rle
from jaxtyping import Bool, Int64
from torch import Tensor

from detrkit.data.records import NO_SEGMENTATION, Record
from detrkit.data.segment_png import read_ids
from detrkit.errors import DatasetError
from detrkit.ops.segments import ids_to_masks

_MIN_COORDINATES = 6  # of a polygon with an area: three points
_WRONG_SUM = "RLE that does not add up to the image's pixels"
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
    encoded = _compress(segmentation, size)
    runs = _runs(encoded["counts"])
    if runs is None or not ((runs >= 0) & (runs <= math.prod(size))).all() or int(runs.sum()) != math.prod(size):
        raise ValueError(_WRONG_SUM)
    return encoded


def _compress(segmentation: dict[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    """Compress RLE; that of compressed RLE is not checked.

    Raises:
        ValueError: it is of another size, or malformed.
    """
    if tuple(segmentation["size"]) != size:
        height, width = segmentation["size"]
        raise ValueError(f"RLE of {width} x {height} pixels, the image has {size[1]} x {size[0]}")
    counts = segmentation["counts"]
    if isinstance(counts, list):
        if sum(counts) != math.prod(size):
            raise ValueError(_WRONG_SUM)
        return dict(rle.frPyObjects(segmentation, *size))
    if not isinstance(counts, str | bytes):
        raise TypeError("RLE whose counts are neither text nor a list")
    return {"size": list(size), "counts": counts}


def find_misfit(segmentation: bytes, size: tuple[int, int]) -> str | None:
    """Return what is wrong with the run lengths of a segmentation for an image, or None; polygons fit any image.

    Args:
        segmentation: result of `check_segmentation`.
        size: (height, width) of the image.
    """
    content = json.loads(segmentation) if segmentation.startswith(b"{") else None
    if content is None:
        return None
    try:
        rle.decode(to_rle(content, size))
    except (ValueError, TypeError, OverflowError) as error:
        return str(error).splitlines()[0][:100]
    return None


def _runs(counts: str | bytes) -> Int64[np.ndarray, "R"] | None:
    """Return compressed run lengths as numbers (pycocotools, rleFrString); None if they end in the middle of one."""
    text = counts.encode() if isinstance(counts, str) else counts
    if not text:
        return np.zeros(0, np.int64)
    codes = np.frombuffer(text, np.uint8).astype(np.int64) - 48
    if codes[-1] & 0x20:
        return None
    starts = np.flatnonzero(np.append(True, (codes[:-1] & 0x20) == 0))  # 6 bits a character; the sixth: more follow
    ends = np.append(starts[1:], len(codes)) - 1
    digits = np.minimum(np.arange(len(codes)) - np.repeat(starts, ends - starts + 1), 11)
    values = np.add.reduceat((codes & 0x1F) << (5 * digits), starts)
    values = np.where(codes[ends] & 0x10, values - (1 << (5 * (digits[ends] + 1))), values)  # a negative number
    # from the fourth on, a run length is the difference to the last but one
    values[1::2] = values[1::2].cumsum()
    values[2::2] = values[2::2].cumsum()
    return values


def repair_segmentation(
    segmentation: bytes, size: tuple[int, int], box: Sequence[float], min_iou: float = 0.5
) -> bytes:
    """Repair run lengths that do not fit their image, if the result lies where the object's box is.

    Tools swap height and width, or write runs that end behind the image.

    Args:
        segmentation: run lengths, a result of `check_segmentation`.
        size: (height, width) of the image.
        box: xyxy of the object, pixels.
        min_iou: of the box and the pixels' own box.

    Returns:
        The repaired run lengths, or `NO_SEGMENTATION`.
    """
    content = json.loads(segmentation)
    for candidate in _candidates(content["size"], content["counts"], size):
        try:
            encoded = rle.encode(np.asfortranarray(rle.decode(_compress(candidate, size))))
            x, y, width, height = rle_to_box(encoded)
        except (ValueError, TypeError, OverflowError):
            continue
        if _iou((x, y, x + width, y + height), box) >= min_iou:
            counts = encoded["counts"]
            return _to_bytes({"size": list(size), "counts": counts.decode() if isinstance(counts, bytes) else counts})
    return NO_SEGMENTATION


def _candidates(annotated: Sequence[int], counts: Any, size: tuple[int, int]) -> Iterator[dict[str, Any]]:
    """Yield what run lengths may have been meant to be."""
    yield {"size": list(size), "counts": counts}
    if isinstance(counts, list) and counts:
        ends = np.minimum(np.cumsum([*counts, *([0] if len(counts) % 2 else [])]), math.prod(size))
        background = math.prod(size) - int(ends[-1])  # after an even number of runs
        yield {"size": list(size), "counts": [*np.diff(ends, prepend=0).tolist(), background]}
    if tuple(annotated) == size[::-1]:  # of the transposed image
        try:
            mask = rle.decode(_compress({"size": annotated, "counts": counts}, size[::-1]))
        except (ValueError, TypeError, OverflowError):
            return
        yield {"size": list(size), "counts": _counts(mask.T)}


def _counts(mask: np.ndarray) -> list[int]:
    """Return uncompressed run lengths, by columns and beginning with the background."""
    flat = np.concatenate([[0], mask.flatten(order="F"), [-1]]).astype(np.int64)
    ends = np.flatnonzero(np.diff(flat))
    return list(np.diff(ends, prepend=0).tolist())


def _iou(first: Sequence[float], second: Sequence[float]) -> float:
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    intersection = max(width, 0.0) * max(height, 0.0)
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (first, second))
    return intersection / (areas - intersection) if areas > intersection else 0.0


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
