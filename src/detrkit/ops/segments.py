"""Segments as a picture of ids, as masks, and as boxes: where one is made of another.

A picture of ids is what COCO's panoptic PNGs hold: segment id = red + 256 green + 65536 blue.
"""

import torch
from jaxtyping import Bool, Float32, Int32, Int64, UInt8
from torch import Tensor

VOID = 0  # the id of pixels that belong to no segment
LARGEST_ID = 256**3 - 1


def rgb_to_ids(pixels: UInt8[Tensor, "H W 3"]) -> Int32[Tensor, "H W"]:
    """Read segment ids off colours."""
    red, green, blue = pixels.to(torch.int32).unbind(-1)
    return red + (green << 8) + (blue << 16)


def ids_to_rgb(ids: Int32[Tensor, "H W"]) -> UInt8[Tensor, "H W 3"]:
    """Write segment ids, 0 .. `LARGEST_ID`, as colours."""
    return torch.stack([ids & 255, (ids >> 8) & 255, ids >> 16], -1).to(torch.uint8)


def ids_to_masks(ids: Int32[Tensor, "H W"], wanted: Int64[Tensor, "N"]) -> Bool[Tensor, "N H W"]:
    """Cut a picture of ids into the masks of some of them; a mask is empty where no pixel has its id."""
    return ids == wanted.to(torch.int32)[:, None, None]


def ids_in(ids: Int32[Tensor, "H W"]) -> set[int]:
    """List the ids that pixels have."""
    return set(ids.flatten().unique_consecutive().tolist())  # runs are a tenth as many as pixels, and need no sorting


def masks_to_boxes(masks: Bool[Tensor, "N H W"]) -> Float32[Tensor, "N 4"]:
    """Find the boxes around masks.

    The published code (util/box_ops.py: masks_to_boxes) ends a box at the last pixel's near edge, so that a segment of one
    pixel's width has no area; here the last pixel is inside.

    Returns:
        xyxy in pixels; zeros for empty masks.
    """
    # as numbers: torch finds their largest thirty times as fast as whether any is true
    by_column, by_row = (masks.view(torch.uint8).amax(axis).bool().byte() for axis in (1, 2))
    sides = [by_column.argmax(1), by_row.argmax(1), _end(by_column), _end(by_row)]
    return torch.stack(sides, 1).float() * by_row.amax(1, keepdim=True)


def have_pixels(masks: Bool[Tensor, "N H W"]) -> Bool[Tensor, "N"]:
    """Tell which masks are not empty."""
    return masks.view(torch.uint8).amax((1, 2)) > 0


def _end(covered: UInt8[Tensor, "N L"]) -> Int64[Tensor, "N"]:
    return covered.shape[1] - covered.flip(1).argmax(1)
