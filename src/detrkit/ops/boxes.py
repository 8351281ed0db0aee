"""Boxes: the two formats, and generalised intersection over union (Rezatofighi et al., arXiv:1902.09630).

Input and output: tensors whose last axis is a box, xyxy or cxcywh as each function says, in any one unit.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def cxcywh_to_xyxy(boxes: Float[Tensor, "*N 4"]) -> Float[Tensor, "*N 4"]:
    """Convert (centre x, centre y, width, height) to (left, top, right, bottom)."""
    centre, size = boxes[..., :2], boxes[..., 2:]
    return torch.cat([centre - size / 2, centre + size / 2], dim=-1)


def xyxy_to_cxcywh(boxes: Float[Tensor, "*N 4"]) -> Float[Tensor, "*N 4"]:
    """Convert (left, top, right, bottom) to (centre x, centre y, width, height)."""
    top_left, bottom_right = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(top_left + bottom_right) / 2, bottom_right - top_left], dim=-1)


def box_area(boxes: Float[Tensor, "*N 4"]) -> Float[Tensor, "*N"]:
    """Area of xyxy boxes, in squared units of the boxes."""
    width, height = (boxes[..., 2:] - boxes[..., :2]).unbind(-1)
    return width * height


def box_iou_and_union(first: Float[Tensor, "*N 4"], second: Float[Tensor, "*N 4"]) -> Float[Tensor, "*N"]:
    """IoU of xyxy boxes, pair by pair; 0 where both have no area."""
    sides = torch.minimum(first[..., 2:], second[..., 2:]) - torch.maximum(first[..., :2], second[..., :2])
    intersection = sides.clamp(min=0).prod(-1)
    union = box_area(first) + box_area(second) - intersection
    return intersection / union.clamp(min=torch.finfo(union.dtype).tiny)


def generalized_iou(first: Float[Tensor, "*A 4"], second: Float[Tensor, "*B 4"]) -> Float[Tensor, "*C"]:
    """Generalised IoU of xyxy boxes, elementwise with broadcasting.

    Args:
        first: boxes with x1 <= x2 and y1 <= y2.
        second: the same; its leading axes broadcast against those of `first`: (N, 1, 4) against (M, 4) compares all pairs.

    Returns:
        Values in [-1, 1]. Where the published code asserts that boxes are ordered (and stops a GPU to look), nothing is
        checked here: sizes come from a sigmoid or from checked annotations. Two equal boxes of no area give 0, not NaN.
    """
    inter_top_left = torch.maximum(first[..., :2], second[..., :2])
    inter_bottom_right = torch.minimum(first[..., 2:], second[..., 2:])
    inter_width, inter_height = (inter_bottom_right - inter_top_left).clamp(min=0).unbind(-1)
    intersection = inter_width * inter_height
    union = box_area(first) + box_area(second) - intersection

    hull_top_left = torch.minimum(first[..., :2], second[..., :2])
    hull_bottom_right = torch.maximum(first[..., 2:], second[..., 2:])
    hull_width, hull_height = (hull_bottom_right - hull_top_left).unbind(-1)
    hull = hull_width * hull_height

    smallest = torch.finfo(union.dtype).tiny
    return intersection / union.clamp(min=smallest) - (hull - union) / hull.clamp(min=smallest)
