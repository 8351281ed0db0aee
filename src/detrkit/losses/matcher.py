"""Hungarian matching (paper, equation 1; costs from equation 2 and appendix A.2).

Input: class logits and boxes of every decoder layer, targets of every photo. Output: which query answers for which object.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from detrkit.losses.classification import Classification, SoftmaxClassification
from detrkit.ops.boxes import cxcywh_to_xyxy, generalized_iou
from detrkit.structures import Target


@dataclass(frozen=True)
class Matches:
    """The matched pairs of all layers, layer after layer, photo after photo, in rising order of the query.

    Every layer has the same number of pairs, P: the sum over the photos of min(queries, objects).
    """

    layers: Int64[Tensor, "TP"]
    images: Int64[Tensor, "TP"]
    queries: Int64[Tensor, "TP"]
    objects: Int64[Tensor, "TP"]  # number of the object within its photo

    def pairs(self, layer: int, image: int) -> tuple[Int64[Tensor, "n"], Int64[Tensor, "n"]]:
        """The queries and objects matched in one photo after one layer (negative layers count from the last)."""
        last = int(self.layers.max()) if len(self.layers) else 0
        chosen = (self.layers == layer % (last + 1)) & (self.images == image)
        return self.queries[chosen], self.objects[chosen]


@dataclass(frozen=True)
class CostTerms:
    """What the cost of a query for an object consists of, before weights; what belongs to no object has any value."""

    classification: Float[Tensor, "T B Q N"]  # of saying the object's class: minus its probability, for softmax scores
    distance: Float[Tensor, "T B Q N"]  # L1, between relative cxcywh boxes
    giou: Float[Tensor, "T B Q N"]


class HungarianMatcher:
    """Finds the assignment of queries to objects with the least total cost."""

    def __init__(
        self,
        class_cost: float | None = None,
        box_cost: float = 5.0,
        giou_cost: float = 2.0,
        classification: Classification | None = None,
    ) -> None:
        """Weigh the terms.

        Args:
            class_cost: of what saying the object's class costs: for softmax scores, minus its probability. None takes the
                published one, 1, or 2 for sigmoid scores.
            box_cost: of the L1 distance between boxes, relative cxcywh.
            giou_cost: of 1 - generalised IoU.
            classification: how class logits are judged; None for softmax scores.
        """
        self.classification = classification or SoftmaxClassification(0)  # costs do not ask how many classes there are
        self.class_cost = self.classification.weight if class_cost is None else class_cost
        self.box_cost = box_cost
        self.giou_cost = giou_cost

    @torch.no_grad()
    def __call__(
        self,
        layer_class_logits: Float[Tensor, "T B Q K1"],
        layer_boxes: Float[Tensor, "T B Q 4"],
        targets: Sequence[Target],
    ) -> Matches:
        """Match all layers and photos: one cost computation, one copy from the device.

        Where the model's output is not finite, any matching will do: the loss will not be finite either, which is for the
        caller to see, on all processes alike.
        """
        costs = self.costs(layer_class_logits.float(), layer_boxes.float(), targets).cpu()
        if not costs.isfinite().all():
            costs = costs.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
        rows: list[Int64[Tensor, "4 n"]] = []
        for layer, layer_costs in enumerate(costs.numpy()):
            for image, (image_costs, target) in enumerate(zip(layer_costs, targets, strict=True)):
                queries, objects = linear_sum_assignment(image_costs[:, : len(target.labels)])
                pairs = torch.as_tensor(queries), torch.as_tensor(objects)
                rows.append(torch.stack([torch.full_like(pairs[0], layer), torch.full_like(pairs[0], image), *pairs]))
        return Matches(*torch.cat(rows, dim=1).to(layer_boxes.device, non_blocking=True))

    def costs(
        self,
        layer_class_logits: Float[Tensor, "T B Q K1"],
        layer_boxes: Float[Tensor, "T B Q 4"],
        targets: Sequence[Target],
    ) -> Float[Tensor, "T B Q N"]:
        """Cost of every query for every object of its own photo; N is the largest number of objects, the rest is zero."""
        terms = self.terms(layer_class_logits, layer_boxes, targets)
        return self.box_cost * terms.distance + self.class_cost * terms.classification - self.giou_cost * terms.giou

    def terms(
        self,
        layer_class_logits: Float[Tensor, "T B Q K1"],
        layer_boxes: Float[Tensor, "T B Q 4"],
        targets: Sequence[Target],
    ) -> CostTerms:
        """Compare every query with every object of its own photo."""
        labels = torch.nn.utils.rnn.pad_sequence([target.labels for target in targets], batch_first=True)
        boxes = torch.nn.utils.rnn.pad_sequence([target.boxes.float() for target in targets], batch_first=True)

        distance = torch.cdist(layer_boxes, boxes.expand(len(layer_boxes), -1, -1, -1), p=1)
        giou = generalized_iou(cxcywh_to_xyxy(layer_boxes)[:, :, :, None], cxcywh_to_xyxy(boxes)[None, :, None])
        return CostTerms(self.classification.costs(layer_class_logits, labels), distance, giou)
