"""Merge the detections of overlapping tiles of one image, so that every object is detected once.

A box that ends at a border of its tile inside the image is a fragment: its object extends into the next tile. Boxes are
merged per class in three steps, never two of one tile, where the model predicts every object once:

1. Non-maximum suppression: whole boxes by score, then fragments by area. A box is suppressed if its IoU with a kept box is
   greater than 0.5; a fragment also if most of its area is inside a kept box.
2. Remaining fragments on opposite sides of a border are joined into one box if they touch and the IoU of their intervals
   along the border is at least 0.5.
3. Non-maximum suppression again, if boxes were joined.

A kept box has the highest score of all boxes merged into it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from detrkit.ops.boxes import box_area
from detrkit.structures import Detections

NMS_IOU = 0.5  # as usual in non-maximum suppression
MAX_FRAGMENT_INSIDE = 0.7  # share of a fragment's area; neighboring objects of its class rarely cover as much
MIN_JOIN_IOU = 0.5  # of the intervals of two fragments along the border between them
BORDER_MARGIN = 0.01  # share of a tile's side: boxes are not exact to the pixel


@dataclass(frozen=True)
class _Boxes:
    """Boxes of one class in all views."""

    boxes: Float[Tensor, "N 4"]
    scores: Float[Tensor, "N"]
    views: Int64[Tensor, "N"]  # index of the view; negative for joined boxes
    cut: Bool[Tensor, "N 4"]  # whether the left, top, right, bottom side is at a border of the view

    def keep(self, index: Sequence[int]) -> "_Boxes":
        kept = torch.tensor(list(index), dtype=torch.int64)
        return _Boxes(self.boxes[kept], self.scores[kept], self.views[kept], self.cut[kept])


def merge_views(
    detections: Sequence[Detections], views: Sequence[tuple[int, int, int, int]], size: tuple[int, int]
) -> Detections:
    """Merge the detections of several views of an image: of its tiles, and of the whole image.

    Args:
        detections: of each view, with boxes in pixels of the image.
        views: rectangles of the views, xyxy in pixels of the image.
        size: (height, width) of the image.

    Returns:
        The merged detections, by descending score.
    """
    classes = {
        label: (category_id, name)
        for one in detections
        for label, category_id, name in zip(
            one.labels.tolist(), one.category_ids.tolist(), one.class_names, strict=True
        )
    }
    boxes = torch.cat([one.boxes for one in detections])
    scores = torch.cat([one.scores for one in detections])
    labels = torch.cat([one.labels for one in detections])
    view_of = torch.cat([torch.full((len(one),), number) for number, one in enumerate(detections)])
    cut = torch.cat([cut_sides(one.boxes, view, size) for one, view in zip(detections, views, strict=True)])
    merged = {
        label: _merge(_Boxes(boxes[is_label], scores[is_label], view_of[is_label], cut[is_label]))
        for label in classes
        for is_label in [labels == label]
    }
    if not merged:
        return replace(detections[0], size=size)
    counts = [(label, len(one.scores)) for label, one in merged.items()]
    result = replace(
        detections[0],
        boxes=torch.cat([one.boxes for one in merged.values()]),
        scores=torch.cat([one.scores for one in merged.values()]),
        labels=torch.cat([torch.full((count,), label) for label, count in counts]),
        category_ids=torch.cat([torch.full((count,), classes[label][0]) for label, count in counts]),
        class_names=tuple(classes[label][1] for label, count in counts for _ in range(count)),
        size=size,
    )
    return result[result.scores.argsort(descending=True, stable=True)]


def cut_sides(
    boxes: Float[Tensor, "N 4"], view: tuple[int, int, int, int], size: tuple[int, int]
) -> Bool[Tensor, "N 4"]:
    """Return which sides (left, top, right, bottom) of boxes are at a border of their view inside the image."""
    left, top, right, bottom = view
    height, width = size
    margin = BORDER_MARGIN * torch.tensor([right - left, bottom - top], dtype=torch.float32)
    corners = torch.tensor(view, dtype=torch.float32)
    reached = torch.cat([boxes[:, :2] <= corners[:2] + margin, boxes[:, 2:] >= corners[2:] - margin], 1)
    return reached & torch.tensor([left > 0, top > 0, right < width, bottom < height])


def _merge(boxes: _Boxes) -> _Boxes:
    kept = _suppress(boxes)
    joined = _join(kept)
    return _suppress(joined) if len(joined.scores) < len(kept.scores) else kept


def _suppress(boxes: _Boxes) -> _Boxes:
    """Keep one of the boxes of an object in several views (step 1)."""
    areas, is_fragment = box_area(boxes.boxes), boxes.cut.any(1)
    rank = torch.where(is_fragment, -areas, -boxes.scores)
    # stable sorts by the second key, then by the first
    order = rank.argsort(stable=True)
    order = order[is_fragment[order].to(torch.uint8).argsort(stable=True)]
    scores = boxes.scores.clone()
    kept: list[int] = []
    for index in order.tolist():
        kept_index = torch.tensor(kept, dtype=torch.int64)
        intersection = _intersection(boxes.boxes[index], boxes.boxes[kept_index])
        union = areas[index] + areas[kept_index] - intersection
        is_same = intersection > NMS_IOU * union
        if is_fragment[index]:
            is_same |= intersection > MAX_FRAGMENT_INSIDE * areas[index]
        is_same &= boxes.views[kept_index] != boxes.views[index]
        if is_same.any():
            best = kept[int(torch.where(is_same, intersection / union, -1.0).argmax())]
            scores[best] = torch.maximum(scores[best], scores[index])
        else:
            kept.append(index)
    return replace(boxes, scores=scores).keep(kept)


def _join(boxes: _Boxes) -> _Boxes:
    """Join fragments of one object until there are no more (step 2)."""
    before = len(boxes.scores) + 1
    while len(boxes.scores) < before:
        before = len(boxes.scores)
        index = 0
        while index < len(boxes.scores):
            ious = _interval_iou(boxes, index)
            other = int(ious.argmax())
            if ious[other] < MIN_JOIN_IOU:
                index += 1
            else:  # the joined box replaces both, at the end
                boxes = _join_pair(boxes, index, other, view=-len(boxes.scores))
                index -= other < index
    return boxes


def _join_pair(boxes: _Boxes, first: int, second: int, view: int) -> _Boxes:
    """Replace two fragments by the box around both; its outer sides stay at the borders of theirs."""
    pair, cut = boxes.boxes[[first, second]], boxes.cut[[first, second]]
    corners = torch.cat([pair[:, :2].amin(0), pair[:, 2:].amax(0)])
    is_outer = torch.cat([pair[:, :2] <= corners[:2], pair[:, 2:] >= corners[2:]], 1)
    rest = boxes.keep([number for number in range(len(boxes.scores)) if number not in (first, second)])
    return _Boxes(
        torch.cat([rest.boxes, corners[None]]),
        torch.cat([rest.scores, boxes.scores[[first, second]].amax()[None]]),
        torch.cat([rest.views, torch.tensor([view])]),
        torch.cat([rest.cut, (cut & is_outer).any(0)[None]]),
    )


def _interval_iou(boxes: _Boxes, index: int) -> Float[Tensor, "N"]:
    """Compute the IoU of intervals along the border between a fragment and each box that continues it; else 0."""
    best = torch.zeros(len(boxes.scores))
    for axis in (0, 1):
        along = 1 - axis
        start, end = boxes.boxes[:, axis], boxes.boxes[:, axis + 2]
        continues = boxes.cut[index, axis + 2] & boxes.cut[:, axis]  # to the right, or down
        continues = continues & (start > start[index]) & (end > end[index]) & (start <= end[index] + 1)
        low, high = boxes.boxes[:, along], boxes.boxes[:, along + 2]
        overlap = (torch.minimum(high, high[index]) - torch.maximum(low, low[index])).clamp(min=0)
        hull = torch.maximum(high, high[index]) - torch.minimum(low, low[index])
        iou = overlap / hull.clamp(min=torch.finfo(hull.dtype).tiny)
        best = torch.where(continues & (boxes.views != boxes.views[index]), torch.maximum(best, iou), best)
    return best


def _intersection(box: Float[Tensor, "4"], others: Float[Tensor, "N 4"]) -> Float[Tensor, "N"]:
    sides = torch.minimum(box[2:], others[:, 2:]) - torch.maximum(box[:2], others[:, :2])
    return sides.clamp(min=0).prod(1)
