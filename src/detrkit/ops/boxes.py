"""Box formats, IoU and generalised IoU (Rezatofighi et al., arXiv:1902.09630).

Boxes are on the last axis; leading axes broadcast. The order of the corners is not checked.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def cxcywh_to_xyxy(boxes: Float[Tensor, "*N 4"]) -> Float[Tensor, "*N 4"]:
    """Convert (center x, center y, width, height) to (left, top, right, bottom)."""
    center, size = boxes[..., :2], boxes[..., 2:]
    return torch.cat([center - size / 2, center + size / 2], dim=-1)


def xyxy_to_cxcywh(boxes: Float[Tensor, "*N 4"]) -> Float[Tensor, "*N 4"]:
    """Convert (left, top, right, bottom) to (center x, center y, width, height)."""
    top_left, bottom_right = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(top_left + bottom_right) / 2, bottom_right - top_left], dim=-1)


def box_area(boxes: Float[Tensor, "*N 4"]) -> Float[Tensor, "*N"]:
    """Compute the area of xyxy boxes."""
    width, height = (boxes[..., 2:] - boxes[..., :2]).unbind(-1)
    return width * height


def elementwise_iou(first: Float[Tensor, "*A 4"], second: Float[Tensor, "*B 4"]) -> Float[Tensor, "*C"]:
    """Compute the IoU of xyxy boxes, elementwise with broadcasting; 0 if neither has an area."""
    sides = torch.minimum(first[..., 2:], second[..., 2:]) - torch.maximum(first[..., :2], second[..., :2])
    intersection = sides.clamp(min=0).prod(-1)
    union = box_area(first) + box_area(second) - intersection
    return intersection / union.clamp(min=torch.finfo(union.dtype).tiny)


def generalized_iou(first: Float[Tensor, "*A 4"], second: Float[Tensor, "*B 4"]) -> Float[Tensor, "*C"]:
    """Compute the generalised IoU of xyxy boxes, elementwise with broadcasting.

    Args:
        first: boxes with x1 <= x2 and y1 <= y2.
        second: the same; its leading axes broadcast against those of `first`: (N, 1, 4) against (M, 4) compares all pairs.

    Returns:
        Values in [-1, 1]; 0 for two equal boxes without area, where the published code has NaN. The order of the corners is
        not asserted as in the published code, which synchronises with the GPU.
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

    tiny = torch.finfo(union.dtype).tiny
    return intersection / union.clamp(min=tiny) - (hull - union) / hull.clamp(min=tiny)
