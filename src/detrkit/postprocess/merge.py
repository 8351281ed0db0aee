"""Objects found in overlapping views of one photo -> each object once.

A box that ends where its view ends, inside the photo, is a piece: its object goes on in the next view. Three steps, class
by class, and never between two boxes of one view, where matching has taught the queries to speak up only once:

1. Non-maximum suppression. Whole boxes first, by score; then pieces, by area. A box goes when one that stays has more than
   half in common with it (IoU); a piece, also when it lies mostly inside one that stays.
2. Pieces that are left and face each other (one cut on its right, one on its left, or below and above) become one box
   around both, if they touch and agree along the border (IoU of their intervals of at least a half).
3. The first step again, for what was put together.

What stays has the best score of all that became part of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from detrkit.ops.boxes import box_area
from detrkit.structures import Detections

SAME_OBJECT = 0.5  # IoU beyond which two views show the same object: the usual limit of non-maximum suppression
MOSTLY_INSIDE = 0.7  # share of a piece; a true neighbour of its class rarely covers as much
AGREEING = 0.5  # IoU of two pieces' intervals along the border that cuts them
EDGE = 0.01  # share of a view's side within which a box ends with it: boxes are not exact to the pixel


@dataclass(frozen=True)
class _Found:
    """Boxes of one class, from all views."""

    boxes: Float[Tensor, "N 4"]
    scores: Float[Tensor, "N"]
    views: Int64[Tensor, "N"]  # negative: put together of several
    cut: Bool[Tensor, "N 4"]  # left, top, right, bottom

    def keep(self, index: Sequence[int]) -> "_Found":
        chosen = torch.tensor(list(index), dtype=torch.int64)
        return _Found(self.boxes[chosen], self.scores[chosen], self.views[chosen], self.cut[chosen])


def merge_views(
    found: Sequence[Detections], views: Sequence[tuple[int, int, int, int]], size: tuple[int, int]
) -> Detections:
    """Merge what was found in each view.

    Args:
        found: of each view, boxes in pixels of the photo.
        views: their rectangles, xyxy in pixels of the photo.
        size: (height, width) of the photo.

    Returns:
        All objects, best first.
    """
    classes = {
        label: (category_id, name)
        for one in found
        for label, category_id, name in zip(
            one.labels.tolist(), one.category_ids.tolist(), one.class_names, strict=True
        )
    }
    boxes = torch.cat([one.boxes for one in found])
    scores = torch.cat([one.scores for one in found])
    labels = torch.cat([one.labels for one in found])
    view_of = torch.cat([torch.full((len(one),), number) for number, one in enumerate(found)])
    cut = torch.cat([cut_sides(one.boxes, view, size) for one, view in zip(found, views, strict=True)])
    merged = {
        label: _merge(_Found(boxes[mine], scores[mine], view_of[mine], cut[mine]))
        for label in classes
        for mine in [labels == label]
    }
    if not merged:
        return replace(found[0], size=size)
    counts = [(label, len(one.scores)) for label, one in merged.items()]
    together = replace(
        found[0],
        boxes=torch.cat([one.boxes for one in merged.values()]),
        scores=torch.cat([one.scores for one in merged.values()]),
        labels=torch.cat([torch.full((count,), label) for label, count in counts]),
        category_ids=torch.cat([torch.full((count,), classes[label][0]) for label, count in counts]),
        class_names=tuple(classes[label][1] for label, count in counts for _ in range(count)),
        size=size,
    )
    return together[together.scores.argsort(descending=True, stable=True)]


def cut_sides(
    boxes: Float[Tensor, "N 4"], view: tuple[int, int, int, int], size: tuple[int, int]
) -> Bool[Tensor, "N 4"]:
    """Tell which sides of boxes (left, top, right, bottom) lie on a border of their view that is none of the photo's."""
    left, top, right, bottom = view
    height, width = size
    margin = EDGE * torch.tensor([right - left, bottom - top], dtype=torch.float32)
    corners = torch.tensor(view, dtype=torch.float32)
    reached = torch.cat([boxes[:, :2] <= corners[:2] + margin, boxes[:, 2:] >= corners[2:] - margin], 1)
    return reached & torch.tensor([left > 0, top > 0, right < width, bottom < height])


def _merge(found: _Found) -> _Found:
    single = _suppress(found)
    joined = _join(single)
    return _suppress(joined) if len(joined.scores) < len(single.scores) else single


def _suppress(found: _Found) -> _Found:
    """Step 1: keep one box of those that show the same object in different views."""
    areas, is_piece = box_area(found.boxes), found.cut.any(1)
    rank = torch.where(is_piece, -areas, -found.scores)
    # a stable sort by the second key, then by the first
    order = rank.argsort(stable=True)
    order = order[is_piece[order].to(torch.uint8).argsort(stable=True)]
    scores = found.scores.clone()
    kept: list[int] = []
    for index in order.tolist():
        stays = torch.tensor(kept, dtype=torch.int64)
        common = _intersection(found.boxes[index], found.boxes[stays])
        union = areas[index] + areas[stays] - common
        same = common > SAME_OBJECT * union
        if is_piece[index]:
            same |= common > MOSTLY_INSIDE * areas[index]
        same &= found.views[stays] != found.views[index]
        if same.any():
            shown_by = kept[int(torch.where(same, common / union, -1.0).argmax())]
            scores[shown_by] = torch.maximum(scores[shown_by], scores[index])
        else:
            kept.append(index)
    return replace(found, scores=scores).keep(kept)


def _join(found: _Found) -> _Found:
    """Step 2: put pieces together that face each other, until none do."""
    before = len(found.scores) + 1
    while len(found.scores) < before:
        before = len(found.scores)
        index = 0
        while index < len(found.scores):
            agreement = _agreement(found, index)
            other = int(agreement.argmax())
            if agreement[other] < AGREEING:
                index += 1
            else:  # the two go, and what comes of them stands last
                found = _united(found, index, other, view=-len(found.scores))
                index -= other < index
    return found


def _united(found: _Found, first: int, second: int, view: int) -> _Found:
    """Replace two pieces by one box around both, whose ends are cut where theirs were."""
    boxes, cut = found.boxes[[first, second]], found.cut[[first, second]]
    corners = torch.cat([boxes[:, :2].amin(0), boxes[:, 2:].amax(0)])
    ends = torch.cat([boxes[:, :2] <= corners[:2], boxes[:, 2:] >= corners[2:]], 1)
    rest = found.keep([number for number in range(len(found.scores)) if number not in (first, second)])
    return _Found(
        torch.cat([rest.boxes, corners[None]]),
        torch.cat([rest.scores, found.scores[[first, second]].amax()[None]]),
        torch.cat([rest.views, torch.tensor([view])]),
        torch.cat([rest.cut, (cut & ends).any(0)[None]]),
    )


def _agreement(found: _Found, index: int) -> Float[Tensor, "N"]:
    """How well each box goes on where one is cut: the IoU of their intervals along the border; 0 where it does not."""
    best = torch.zeros(len(found.scores))
    for axis in (0, 1):
        along = 1 - axis
        start, end = found.boxes[:, axis], found.boxes[:, axis + 2]
        goes_on = found.cut[index, axis + 2] & found.cut[:, axis]  # to the right, or down
        goes_on = goes_on & (start > start[index]) & (end > end[index]) & (start <= end[index] + 1)
        low, high = found.boxes[:, along], found.boxes[:, along + 2]
        common = (torch.minimum(high, high[index]) - torch.maximum(low, low[index])).clamp(min=0)
        hull = torch.maximum(high, high[index]) - torch.minimum(low, low[index])
        share = common / hull.clamp(min=torch.finfo(hull.dtype).tiny)
        best = torch.where(goes_on & (found.views != found.views[index]), torch.maximum(best, share), best)
    return best


def _intersection(box: Float[Tensor, "4"], others: Float[Tensor, "N 4"]) -> Float[Tensor, "N"]:
    sides = torch.minimum(box[2:], others[:, 2:]) - torch.maximum(box[:2], others[:, :2])
    return sides.clamp(min=0).prod(1)
