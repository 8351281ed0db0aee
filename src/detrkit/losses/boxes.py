"""Predictions and the objects that they were matched with, side by side, over all layers.

Input: predictions of every decoder layer, `Matches`, targets. Output: one value per layer, or one per pair.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from detrkit.losses.matcher import Matches
from detrkit.ops.boxes import box_iou_and_union, cxcywh_to_xyxy, generalized_iou
from detrkit.structures import Target


def box_losses(
    boxes: Float[Tensor, "T B Q 4"],
    matches: Matches,
    object_index: Int64[Tensor, "TP"],
    targets: Sequence[Target],
    num_boxes: Float[Tensor, ""] | float,
) -> dict[str, Float[Tensor, "T"]]:
    """L1 distance and 1 - generalised IoU of the pairs of each layer, divided."""
    found, true = _boxes_of_pairs(boxes, matches, object_index, targets)
    distance = (found - true).abs().sum(-1)
    giou = generalized_iou(cxcywh_to_xyxy(found), cxcywh_to_xyxy(true))
    return {
        "loss_bbox": _per_layer(distance, len(boxes)).sum(1) / num_boxes,
        "loss_giou": _per_layer(1 - giou, len(boxes)).sum(1) / num_boxes,
    }


@torch.no_grad()
def matched_ious(
    boxes: Float[Tensor, "T B Q 4"], matches: Matches, object_index: Int64[Tensor, "TP"], targets: Sequence[Target]
) -> Float[Tensor, "T B Q"]:
    """IoU of every query with the object that it was matched with; 0 where there is none."""
    found, true = _boxes_of_pairs(boxes, matches, object_index, targets)
    values = boxes.new_zeros(boxes.shape[:-1])
    values[matches.layers, matches.images, matches.queries] = box_iou_and_union(
        cxcywh_to_xyxy(found), cxcywh_to_xyxy(true)
    )
    return values


@torch.no_grad()
def class_error(
    guesses: Int64[Tensor, "T B Q"],
    matches: Matches,
    object_index: Int64[Tensor, "TP"],
    targets: Sequence[Target],
) -> Float[Tensor, ""]:
    """Percent of the last layer's pairs whose class is wrong; NaN when there are none."""
    labels = torch.cat([target.labels for target in targets])[object_index]
    of_matched = guesses[matches.layers, matches.images, matches.queries]
    is_wrong = _per_layer((of_matched != labels).float(), len(guesses))[-1]
    return 100 * is_wrong.mean()  # the mean of nothing is NaN: the published code says 100, which means nothing


def index_of_objects(matches: Matches, targets: Sequence[Target]) -> Int64[Tensor, "TP"]:
    """Number the objects through the whole batch."""
    counts = [0, *(len(target.labels) for target in targets)]
    first = to_device(counts[:-1], matches.images.device).cumsum(0)
    return first[matches.images] + matches.objects


def to_device(
    numbers_here: Sequence[float], device: torch.device, kind: torch.dtype = torch.int64
) -> Shaped[Tensor, "N"]:
    """Copy a few numbers without waiting for the device, which pageable memory would make us do."""
    numbers = torch.tensor(numbers_here, dtype=kind)
    return to_device_async(numbers, device)


def to_device_async(numbers: Shaped[Tensor, "*shape"], device: torch.device) -> Shaped[Tensor, "*shape"]:
    """Copy a tensor of the host's to a device, without waiting for it where that can be done."""
    return (numbers.pin_memory() if device.type == "cuda" else numbers).to(device, non_blocking=device.type == "cuda")


def _boxes_of_pairs(
    boxes: Float[Tensor, "T B Q 4"], matches: Matches, object_index: Int64[Tensor, "TP"], targets: Sequence[Target]
) -> tuple[Float[Tensor, "TP 4"], Float[Tensor, "TP 4"]]:
    found = boxes[matches.layers, matches.images, matches.queries]
    return found, torch.cat([target.boxes.float() for target in targets])[object_index]


def _per_layer(values: Float[Tensor, "TP"], num_layers: int) -> Float[Tensor, "T P"]:
    return values.view(num_layers, len(values) // num_layers)
