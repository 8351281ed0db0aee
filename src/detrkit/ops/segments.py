"""Conversions between maps of segment ids, colors, masks and boxes.

COCO's panoptic PNGs encode a map of ids as colors: segment id = red + 256 green + 65536 blue.
"""

import torch
from jaxtyping import Bool, Float32, Int32, Int64, UInt8
from torch import Tensor

VOID = 0  # id of pixels without a segment
MAX_ID = 256**3 - 1


def rgb_to_ids(pixels: UInt8[Tensor, "H W 3"]) -> Int32[Tensor, "H W"]:
    """Decode segment ids from colors."""
    red, green, blue = pixels.to(torch.int32).unbind(-1)
    return red + (green << 8) + (blue << 16)


def ids_to_rgb(ids: Int32[Tensor, "H W"]) -> UInt8[Tensor, "H W 3"]:
    """Encode segment ids, 0 .. `MAX_ID`, as colors."""
    return torch.stack([ids & 255, (ids >> 8) & 255, ids >> 16], -1).to(torch.uint8)


def ids_to_masks(ids: Int32[Tensor, "H W"], segment_ids: Int64[Tensor, "N"]) -> Bool[Tensor, "N H W"]:
    """Return the mask of each given id; empty for ids that do not occur."""
    return ids == segment_ids.to(torch.int32)[:, None, None]


def unique_ids(ids: Int32[Tensor, "H W"]) -> set[int]:
    """Return the ids that occur in a map."""
    return set(ids.flatten().unique_consecutive().tolist())  # a tenth as many runs as pixels; not sorted


def masks_to_boxes(masks: Bool[Tensor, "N H W"]) -> Float32[Tensor, "N 4"]:
    """Compute the smallest boxes that contain masks.

    A box ends at the far edge of the last pixel. In the published code (util/box_ops.py: masks_to_boxes) and torchvision,
    it ends at the near edge, so a segment one pixel wide has no area.

    Returns:
        xyxy in pixels; zeros for empty masks.
    """
    # amax of bytes is thirty times as fast as any of booleans
    by_column, by_row = (masks.view(torch.uint8).amax(axis).bool().byte() for axis in (1, 2))
    sides = [by_column.argmax(1), by_row.argmax(1), _end(by_column), _end(by_row)]
    return torch.stack(sides, 1).float() * by_row.amax(1, keepdim=True)


def nonempty_masks(masks: Bool[Tensor, "N H W"]) -> Bool[Tensor, "N"]:
    """Return which masks have at least one pixel."""
    return masks.view(torch.uint8).amax((1, 2)) > 0


def _end(covered: UInt8[Tensor, "N L"]) -> Int64[Tensor, "N"]:
    return covered.shape[1] - covered.flip(1).argmax(1)
