"""Box losses of matched pairs, for all decoder layers at once."""

import torch
from jaxtyping import Float
from torch import Tensor

from detrkit.losses.matcher import MatchedObjects, Matches
from detrkit.ops.boxes import cxcywh_to_xyxy, elementwise_iou, generalized_iou


def box_losses(
    boxes: Float[Tensor, "T B Q 4"],
    matches: Matches,
    objects: MatchedObjects,
    num_boxes: Float[Tensor, ""] | float,
) -> dict[str, Float[Tensor, "T"]]:
    """Compute the L1 distance and 1 - GIoU of the pairs of each layer, divided by `num_boxes`.

    Args:
        boxes: cxcywh, relative.
        matches: pairs of queries and objects.
        objects: matched objects, in the order of `matches`.
        num_boxes: number of objects of the training step.
    """
    predicted = boxes[matches.layers, matches.images, matches.queries]
    distance = (predicted - objects.boxes).abs().sum(-1)
    giou = generalized_iou(cxcywh_to_xyxy(predicted), cxcywh_to_xyxy(objects.boxes))
    pairs_by_layer = len(boxes), len(predicted) // len(boxes)
    return {
        "loss_bbox": distance.view(pairs_by_layer).sum(1) / num_boxes,
        "loss_giou": (1 - giou).view(pairs_by_layer).sum(1) / num_boxes,
    }


@torch.no_grad()
def matched_ious(boxes: Float[Tensor, "T B Q 4"], matches: Matches, objects: MatchedObjects) -> Float[Tensor, "T B Q"]:
    """Compute the IoU of every query's box with that of its matched object; 0 for unmatched queries."""
    index = matches.layers, matches.images, matches.queries
    ious = boxes.new_zeros(boxes.shape[:-1])
    ious[index] = elementwise_iou(cxcywh_to_xyxy(boxes[index]), cxcywh_to_xyxy(objects.boxes))
    return ious
