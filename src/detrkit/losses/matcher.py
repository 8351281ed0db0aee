"""Hungarian matching of queries and ground truth (paper, equation 1; costs from equation 2 and appendix A.2)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from detrkit.losses.classification import Classification, SoftmaxClassification
from detrkit.losses.point_masks import MaskSamples, pairwise_mask_costs
from detrkit.ops.boxes import cxcywh_to_xyxy, elementwise_iou, generalized_iou
from detrkit.ops.transfer import to_device
from detrkit.structures import Target

_IOU_EXPONENT = 4  # of the quality, as published (DEIMv2)


@dataclass(frozen=True)
class Matches:
    """Matched pairs of all layers, ordered by layer, image and query.

    Every layer has the same number of pairs, P: the sum over the images of min(queries, objects).

    Attributes:
        layers: decoder layer of each pair.
        images: index of the image in the batch.
        queries: index of the query.
        objects: index of the object among those of its image.
    """

    layers: Int64[Tensor, "TP"]
    images: Int64[Tensor, "TP"]
    queries: Int64[Tensor, "TP"]
    objects: Int64[Tensor, "TP"]

    def pairs(self, layer: int, image: int) -> tuple[Int64[Tensor, "n"], Int64[Tensor, "n"]]:
        """Return the queries and objects matched in one image after one layer; negative layers count from the last."""
        last = int(self.layers.max()) if len(self.layers) else 0
        chosen = (self.layers == layer % (last + 1)) & (self.images == image)
        return self.queries[chosen], self.objects[chosen]

    def gather(self, targets: Sequence[Target]) -> "MatchedObjects":
        """Gather boxes and labels of the matched objects, in the order of the pairs."""
        counts = [0, *(len(target.labels) for target in targets)]
        first = to_device(counts[:-1], self.images.device).cumsum(0)
        index = first[self.images] + self.objects
        boxes = torch.cat([target.boxes.float() for target in targets])
        return MatchedObjects(boxes[index], torch.cat([target.labels for target in targets])[index])


@dataclass(frozen=True)
class MatchedObjects:
    """Ground truth of matched pairs.

    Attributes:
        boxes: cxcywh, relative.
        labels: classes in 0 .. K-1.
    """

    boxes: Float[Tensor, "TP 4"]
    labels: Int64[Tensor, "TP"]


@dataclass(frozen=True)
class MatchingCosts:
    """Unweighted matching costs of queries and objects; values beyond an image's number of objects are meaningless.

    Attributes:
        classification: for softmax scores, minus the probability of the object's class.
        distance: L1 distance of the relative cxcywh boxes.
        giou: GIoU (not its negative).
    """

    classification: Float[Tensor, "T B Q N"]
    distance: Float[Tensor, "T B Q N"]
    giou: Float[Tensor, "T B Q N"]


@dataclass(frozen=True)
class MatchingInput:
    """Predictions of one set of queries, and the objects to match them with.

    Attributes:
        layer_class_logits: of every layer.
        layer_boxes: cxcywh, relative.
        targets: one per image.
        masks: predicted and true masks at points; None to match without masks.
    """

    layer_class_logits: Float[Tensor, "T B Q K1"]
    layer_boxes: Float[Tensor, "T B Q 4"]
    targets: Sequence[Target]
    masks: MaskSamples | None = None


class HungarianMatcher:
    """Finds the one-to-one assignment of queries to objects with the lowest total cost.

    Args:
        cost_class: weight of the classification cost. Default: 1 for softmax, 2 for sigmoid scores, as published.
        cost_bbox: weight of the L1 distance of the boxes, relative cxcywh.
        cost_giou: weight of -GIoU.
        classification: defines the classification cost. Default: that of softmax scores.
        cost_mask: weight of the binary cross-entropy of masks at points, where they are compared.
        cost_dice: weight of their dice loss.

    Attributes:
        by_quality: the cost is minus the sigmoid score times IoU^4, and nothing else (DEIMv2, late in training).
    """

    def __init__(
        self,
        cost_class: float | None = None,
        cost_bbox: float = 5.0,
        cost_giou: float = 2.0,
        classification: Classification | None = None,
        cost_mask: float = 0.0,
        cost_dice: float = 0.0,
    ) -> None:
        self.classification = classification or SoftmaxClassification(0)  # its costs do not depend on num_classes
        self.cost_class = self.classification.default_cost if cost_class is None else cost_class
        self.cost_bbox = cost_bbox
        self.cost_giou = cost_giou
        self.cost_mask = cost_mask
        self.cost_dice = cost_dice
        self.by_quality = False

    @torch.no_grad()
    def __call__(
        self,
        layer_class_logits: Float[Tensor, "T B Q K1"],
        layer_boxes: Float[Tensor, "T B Q 4"],
        targets: Sequence[Target],
    ) -> Matches:
        """Match all layers and images of one set of queries, see `match_all`."""
        return self.match_all([MatchingInput(layer_class_logits, layer_boxes, targets)])[0]

    @torch.no_grad()
    def match_all(self, inputs: Sequence[MatchingInput]) -> list[Matches]:
        """Match several sets of queries, with one copy from the device: the host waits for it once."""
        return to_matches(self.assign_all(inputs), inputs[0].layer_boxes.device)

    @torch.no_grad()
    def assign_all(self, inputs: Sequence[MatchingInput]) -> list[Int64[Tensor, "4 TP"]]:
        """Match several sets of queries: the rows of `Matches` of each, on the host.

        Costs that are not finite are replaced by 0: any matching will do, for the loss is not finite either, which the
        training step detects on all ranks alike.
        """
        costs = [
            self.costs(one.layer_class_logits.float(), one.layer_boxes.float(), one.targets, one.masks)
            for one in inputs
        ]
        on_host = torch.cat([one.flatten() for one in costs]).cpu()
        if not on_host.isfinite().all():
            on_host = on_host.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
        parts = on_host.split([one.numel() for one in costs])
        return [
            _assign(part.view(cost.shape), [len(target.labels) for target in one.targets])
            for part, cost, one in zip(parts, costs, inputs, strict=True)
        ]

    def costs(
        self,
        layer_class_logits: Float[Tensor, "T B Q K1"],
        layer_boxes: Float[Tensor, "T B Q 4"],
        targets: Sequence[Target],
        masks: MaskSamples | None = None,
    ) -> Float[Tensor, "T B Q N"]:
        """Compute the total cost of every query for every object of its image; N is the maximum number of objects."""
        if self.by_quality:
            return -match_qualities(layer_class_logits, layer_boxes, targets)
        costs = self.unweighted_costs(layer_class_logits, layer_boxes, targets)
        of_boxes = (
            self.cost_bbox * costs.distance + self.cost_class * costs.classification - self.cost_giou * costs.giou
        )
        if masks is None:
            return of_boxes
        cross_entropy, dice = pairwise_mask_costs(masks)
        return of_boxes + self.cost_mask * cross_entropy + self.cost_dice * dice

    def unweighted_costs(
        self,
        layer_class_logits: Float[Tensor, "T B Q K1"],
        layer_boxes: Float[Tensor, "T B Q 4"],
        targets: Sequence[Target],
    ) -> MatchingCosts:
        """Compute the terms of the cost of every query for every object of its image."""
        labels, boxes = _padded(targets)
        distance = torch.cdist(layer_boxes, boxes.expand(len(layer_boxes), -1, -1, -1), p=1)
        giou = generalized_iou(cxcywh_to_xyxy(layer_boxes)[:, :, :, None], cxcywh_to_xyxy(boxes)[None, :, None])
        return MatchingCosts(self.classification.costs(layer_class_logits, labels), distance, giou)


def match_qualities(
    layer_class_logits: Float[Tensor, "T B Q K"], layer_boxes: Float[Tensor, "T B Q 4"], targets: Sequence[Target]
) -> Float[Tensor, "T B Q N"]:
    """Compute the score of every object's class times IoU^4, for every query."""
    labels, boxes = _padded(targets)
    index = labels[None, :, None].expand(*layer_class_logits.shape[:3], -1)
    scores = layer_class_logits.gather(-1, index).sigmoid()
    ious = elementwise_iou(cxcywh_to_xyxy(layer_boxes)[:, :, :, None], cxcywh_to_xyxy(boxes)[None, :, None])
    return scores * ious.clamp(min=0) ** _IOU_EXPONENT


def _padded(targets: Sequence[Target]) -> tuple[Int64[Tensor, "B N"], Float[Tensor, "B N 4"]]:
    """Stack labels and boxes of images with different numbers of objects."""
    labels = torch.nn.utils.rnn.pad_sequence([target.labels for target in targets], batch_first=True)
    boxes = torch.nn.utils.rnn.pad_sequence([target.boxes.float() for target in targets], batch_first=True)
    return labels, boxes


def to_matches(pairs: Sequence[Int64[Tensor, "4 _"]], device: torch.device) -> list[Matches]:
    """Copy several sets of pairs, the rows of `Matches`, from the host to a device at once."""
    on_device = torch.cat(list(pairs), dim=1).to(device, non_blocking=True)
    return [Matches(*part) for part in on_device.split([one.shape[1] for one in pairs], dim=1)]


def union_of_matches(pairs: Int64[Tensor, "4 TP"]) -> Int64[Tensor, "4 P"]:
    """Unite the matchings of several layers (D-FINE, arXiv:2410.13842, appendix): pairs of one layer, on the host.

    Every query gets the object that it is matched with in most layers, so that an object may have several queries. Among
    objects with equally many, it is the one with the lowest index; the published code takes any.

    Args:
        pairs: the rows of `Matches`, on the host.
    """
    unique, counts = pairs[1:].unique(dim=1, return_counts=True)  # in the order of image, query, object
    order = (-counts).argsort(stable=True)
    order = order[unique[1, order].argsort(stable=True)]
    unique = unique[:, order[unique[0, order].argsort(stable=True)]]  # by image, query, and falling count
    is_first = torch.ones(unique.shape[1], dtype=torch.bool)
    is_first[1:] = (unique[:2, 1:] != unique[:2, :-1]).any(0)
    chosen = unique[:, is_first]
    return torch.cat([torch.zeros_like(chosen[:1]), chosen])


def repeat_for_layers(pairs: Int64[Tensor, "4 P"], num_layers: int) -> Int64[Tensor, "4 TP"]:
    """Repeat the pairs of one layer for several."""
    layers = torch.arange(num_layers).repeat_interleave(pairs.shape[1])
    return torch.cat([layers[None], pairs[1:].repeat(1, num_layers)])


def _assign(costs: Float[Tensor, "T B Q N"], counts: Sequence[int]) -> Int64[Tensor, "4 TP"]:
    """Assign queries to objects in every layer and image: the rows of `Matches`; costs and result are on the host."""
    rows: list[Int64[Tensor, "4 n"]] = []
    for layer, layer_costs in enumerate(costs.numpy()):
        for image, (image_costs, count) in enumerate(zip(layer_costs, counts, strict=True)):
            queries, objects = linear_sum_assignment(image_costs[:, :count])
            pairs = torch.as_tensor(queries), torch.as_tensor(objects)
            rows.append(torch.stack([torch.full_like(pairs[0], layer), torch.full_like(pairs[0], image), *pairs]))
    return torch.cat(rows, dim=1)
