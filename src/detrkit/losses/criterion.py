"""The loss of a set of predictions (paper, equation 2, appendix A.2), for all decoder layers at once.

Input: `Predictions` and one `Target` per photo. Output: a `LossOutput`, whose parts keep the published names.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, distributed

from detrkit.losses.boxes import box_losses, class_error, index_of_objects, matched_ious, to_device
from detrkit.losses.classification import (
    Classification,
    check_scores,
    classification_for,
    of_one_class,
    target_classes,
)
from detrkit.losses.masks import mask_losses
from detrkit.losses.matcher import HungarianMatcher, Matches
from detrkit.structures import ClassScores, EncoderProposals, MaskInputs, Predictions, Target

# the queries of all photos, and how many belong to each
DrawMasks = Callable[[MaskInputs, Int64[Tensor, "P"], Sequence[int]], Float[Tensor, "P h w"]]


@dataclass(frozen=True)
class LossOutput:
    """The total to minimise, and what it consists of.

    Attributes:
        total: weighted sum of the losses of all layers.
        parts: unweighted values under the published names. loss_ce, loss_bbox, loss_giou, cardinality_error for the
            last layer and with _0, _1 ... for the others; class_error (percent of matched queries with a wrong class;
            NaN when no photo holds an object), loss_mask and loss_dice for the last layer only; with _enc for the encoder's
            proposals, if it made any.
        matches: who answered for whom.
    """

    total: Float[Tensor, ""]
    parts: dict[str, Float[Tensor, ""]]
    matches: Matches


@dataclass(frozen=True)
class Normalizers:
    """What losses are divided by: sums over a whole step, that is, over its batches and the processes, per process.

    So every object and every query weighs the same wherever it was, and the average of the processes' gradients is the
    gradient of one process with all of the photos.

    Attributes:
        num_boxes: objects, at least 1 in all.
        cls_loss_coef: weights of all queries in the cross entropy.
    """

    num_boxes: Float[Tensor, ""] | float
    cls_loss_coef: Float[Tensor, ""] | float


class SetCriterion:
    """Matches queries to objects in every layer, then adds up class, box and mask losses."""

    def __init__(
        self,
        num_classes: int,
        *,
        class_scores: ClassScores = "softmax",
        cls_loss_coef: float | None = None,
        bbox_loss_coef: float = 5.0,
        giou_loss_coef: float = 2.0,
        mask_loss_coef: float = 1.0,
        dice_loss_coef: float = 1.0,
        eos_coef: float = 0.1,
        matcher: HungarianMatcher | None = None,
        padding_invariant: bool = False,
        masks_only: bool = False,
        classification: Classification | None = None,
    ) -> None:
        """Set the weights; the defaults are the published ones.

        Args:
            num_classes: K, without no-object.
            class_scores: of the model: "softmax" is judged by cross entropy, "sigmoid" by focal loss.
            cls_loss_coef: of the class loss; None takes the published one, 1, or 2 for sigmoid scores.
            bbox_loss_coef: of the L1 distance of boxes.
            giou_loss_coef: of 1 - generalised IoU.
            mask_loss_coef: of the focal loss of masks.
            dice_loss_coef: of the dice loss of masks.
            eos_coef: of queries without an object in the cross entropy; there are many more of them.
            matcher: how predictions are matched to objects.
            padding_invariant: masks are compared within each photo; False counts padding as outside, as published.
            masks_only: leave out the losses of classes and boxes, which are frozen when only the mask head learns.
            classification: how class logits are judged; None takes the published way for `class_scores`.
        """
        self.num_classes = num_classes
        self.class_scores: ClassScores = class_scores
        self.classification: Classification = classification or classification_for(class_scores, num_classes, eos_coef)
        self.weights = {
            "loss_ce": self.classification.weight if cls_loss_coef is None else cls_loss_coef,
            "loss_bbox": bbox_loss_coef,
            "loss_giou": giou_loss_coef,
            "loss_mask": mask_loss_coef,
            "loss_dice": dice_loss_coef,
        }
        self.eos_coef = eos_coef
        self.matcher = matcher or HungarianMatcher(classification=self.classification)
        self.padding_invariant = padding_invariant
        self.masks_only = masks_only

    def normalizers(self, targets: Sequence[Target], num_queries: int) -> Normalizers:
        """Count what losses are divided by; with several processes, all of them must call this together.

        The published code counts objects over all processes, but averages the cross entropy within each.

        Args:
            targets: of all photos that this process sees before the next update.
            num_queries: Q.
        """
        num_boxes = sum(len(target.labels) for target in targets)
        num_matched = sum(min(len(target.labels), num_queries) for target in targets)
        num_others = len(targets) * num_queries - num_matched
        cls_loss_coef = num_matched + self.eos_coef * num_others
        if not (distributed.is_available() and distributed.is_initialized()):
            return Normalizers(float(max(num_boxes, 1)), cls_loss_coef)
        device = targets[0].labels.device
        sums = to_device([num_boxes, cls_loss_coef], device, torch.float64)
        distributed.all_reduce(sums)
        means = sums.clamp(min=torch.finfo(torch.float32).tiny).float() / distributed.get_world_size()
        return Normalizers(means[0].clamp(min=1 / distributed.get_world_size()), means[1])

    def __call__(
        self,
        predictions: Predictions,
        targets: Sequence[Target],
        normalizers: Normalizers | None = None,
        draw_masks: DrawMasks | None = None,
    ) -> LossOutput:
        """Compute the loss in float32, under autocast too. What is not finite in the predictions makes it not finite.

        Args:
            predictions: of a batch.
            targets: one per photo, on the same device; photos without objects have boxes of shape (0, 4).
            normalizers: of the whole step; None when this batch is all of it.
            draw_masks: the mask head, for predictions that hold `mask_inputs`: it draws the matched queries alone.

        Raises:
            ConfigError: the model's class scores are of another kind than the loss was made for.
        """
        parts, matches = self.judge(predictions, targets, normalizers, draw_masks)
        return LossOutput(self.weighted(parts), {name: part.detach() for name, part in parts.items()}, matches)

    def judge(
        self,
        predictions: Predictions,
        targets: Sequence[Target],
        normalizers: Normalizers | None = None,
        draw_masks: DrawMasks | None = None,
    ) -> tuple[dict[str, Float[Tensor, ""]], Matches]:
        """Match, and compute the parts of the loss, each with its gradient. Arguments and errors as above."""
        check_scores(predictions.class_scores, self.class_scores)
        device = predictions.layer_boxes.device.type
        logits, boxes = predictions.layer_class_logits.float(), predictions.layer_boxes.float()
        with torch.autocast(device, enabled=False):
            matches = self.matcher(logits, boxes, targets)
        masks = None
        if all(target.masks is not None for target in targets):
            masks = _matched_masks(predictions, matches, targets, draw_masks)  # in the precision of the model
        with torch.autocast(device, enabled=False):
            norms = normalizers or self.normalizers(targets, num_queries=boxes.shape[2])
            parts = {} if self.masks_only else self._layer_losses(logits, boxes, matches, targets, norms)
            if masks is not None:
                objects = matches.objects[len(matches.objects) - len(masks) :].split(_counts(predictions, targets))
                losses = mask_losses(masks.float(), objects, targets, padding_invariant=self.padding_invariant)
                parts["loss_mask"], parts["loss_dice"] = losses.sum(1) / norms.num_boxes
            if predictions.proposals is not None and not self.masks_only:
                parts.update(self._proposal_losses(predictions.proposals, of_one_class(targets), norms))
        return parts, matches

    def loss_for_matches(
        self,
        predictions: Predictions,
        matches: Matches,
        targets: Sequence[Target],
        norms: Normalizers,
        judged: Bool[Tensor, "B Q"],
    ) -> dict[str, Float[Tensor, ""]]:
        """The parts of the loss where it is known who answers for whom.

        Args:
            predictions: of a batch.
            matches: the pairs.
            targets: one per photo.
            norms: of the whole step.
            judged: False on queries whose class is not looked at.
        """
        logits, boxes = predictions.layer_class_logits.float(), predictions.layer_boxes.float()
        with torch.autocast(boxes.device.type, enabled=False):
            return self._layer_losses(logits, boxes, matches, targets, norms, judged)

    def weighted(self, parts: dict[str, Float[Tensor, ""]]) -> Float[Tensor, ""]:
        """Add up the losses among the parts, each with its weight."""
        losses = [self.weights[published_name(name)] * part for name, part in parts.items() if name.startswith("loss")]
        return torch.stack(losses).sum()

    def _layer_losses(
        self,
        logits: Float[Tensor, "T B Q K1"],
        boxes: Float[Tensor, "T B Q 4"],
        matches: Matches,
        targets: Sequence[Target],
        norms: Normalizers,
        judged: Bool[Tensor, "B Q"] | None = None,
    ) -> dict[str, Float[Tensor, ""]]:
        """Class and box losses of all layers at once."""
        object_index = index_of_objects(matches, targets)
        of_layers = {
            **self._class_losses(logits, boxes, matches, object_index, targets, norms, judged),
            **box_losses(boxes, matches, object_index, targets, norms.num_boxes),
        }
        parts = _name_by_layer(of_layers)
        parts["class_error"] = class_error(self.classification.guesses(logits), matches, object_index, targets)
        return parts

    def class_losses_of_queries(
        self,
        logits: Float[Tensor, "*N K1"],
        wanted: Int64[Tensor, "*N"],
        norms: Normalizers,
        overlap: Float[Tensor, "*N"],
    ) -> tuple[Float[Tensor, "*N"], Float[Tensor, "*N"]]:
        """What each query adds to the total by its class, weighted and divided; and the same as if it were the only one.

        Args:
            logits: of queries.
            wanted: the class that each should say, K for no object.
            norms: of the step.
            overlap: IoU of each query's box with that of its object; whatever without one.
        """
        losses = self.classification.query_losses(logits, wanted, overlap)
        weights = self.classification.query_weights(wanted)
        divisor = norms.cls_loss_coef if self.class_scores == "softmax" else norms.num_boxes
        return self.weights["loss_ce"] * losses / divisor, losses / weights

    def _class_losses(
        self,
        logits: Float[Tensor, "T B Q K1"],
        boxes: Float[Tensor, "T B Q 4"],
        matches: Matches,
        object_index: Int64[Tensor, "TP"],
        targets: Sequence[Target],
        norms: Normalizers,
        judged: Bool[Tensor, "B Q"] | None = None,
    ) -> dict[str, Float[Tensor, "T"]]:
        """Class loss within each layer: cross entropy by the weights of the queries, focal loss by the objects."""
        labels = torch.cat([target.labels for target in targets])
        places = matches.layers, matches.images, matches.queries
        wanted = target_classes(logits.shape[:-1], places, labels[object_index], self.num_classes)
        divisor = norms.cls_loss_coef if self.class_scores == "softmax" else norms.num_boxes
        sees_boxes = self.classification.is_overlap_aware
        overlap = matched_ious(boxes, matches, object_index, targets) if sees_boxes else None
        losses = self.classification.query_losses(logits, wanted, overlap)
        loss_ce = (losses if judged is None else losses * judged).sum((1, 2)) / divisor

        num_objects = to_device([len(target.labels) for target in targets], logits.device)
        num_found = self.classification.finds(logits).sum(-1)
        cardinality_error = (num_found - num_objects).abs().float().mean(-1)
        return {"loss_ce": loss_ce, "cardinality_error": cardinality_error}

    def _proposal_losses(
        self, proposals: EncoderProposals, targets: Sequence[Target], norms: Normalizers
    ) -> dict[str, Float[Tensor, ""]]:
        """The same losses of the encoder's proposals, which only tell objects from what is none (Deformable DETR, A.4)."""
        logits, boxes = proposals.class_logits.float()[None], proposals.boxes.float()[None]
        matches = self.matcher(logits, boxes, targets)
        object_index = index_of_objects(matches, targets)
        losses = {
            **self._class_losses(logits, boxes, matches, object_index, targets, norms),
            **box_losses(boxes, matches, object_index, targets, norms.num_boxes),
        }
        return {f"{name}_enc": values[0] for name, values in losses.items()}


def _matched_masks(
    predictions: Predictions, matches: Matches, targets: Sequence[Target], draw_masks: DrawMasks | None
) -> Float[Tensor, "P h w"] | None:
    """Logits of the queries that the last layer's pairs hold."""
    counts = _counts(predictions, targets)
    first = len(matches.images) - sum(counts)
    images, queries = matches.images[first:], matches.queries[first:]
    if predictions.mask_inputs is not None and draw_masks is not None:
        return draw_masks(predictions.mask_inputs, queries, counts)
    return None if predictions.masks is None else predictions.masks[images, queries]


def _counts(predictions: Predictions, targets: Sequence[Target]) -> list[int]:
    """How many pairs each photo has in a layer."""
    return [min(len(target.labels), predictions.boxes.shape[1]) for target in targets]


def _name_by_layer(of_layers: dict[str, Float[Tensor, "T"]]) -> dict[str, Float[Tensor, ""]]:
    parts = {name: values[-1] for name, values in of_layers.items()}
    for name, values in of_layers.items():
        parts.update({f"{name}_{layer}": value for layer, value in enumerate(values[:-1])})
    return parts


def published_name(name: str) -> str:
    """The name of a part without what says whose it is: drop the layer's number, or the encoder's mark."""
    return name.removesuffix("_enc").rstrip("0123456789").rstrip("_")
