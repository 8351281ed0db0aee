"""Set criterion of DETR (paper, equation 2 and appendix A.2): Hungarian matching, then classification, box and mask losses.

All decoder layers are computed in one batched call.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, distributed

from detrkit.distributed.collectives import is_distributed
from detrkit.losses.boxes import box_losses, matched_ious
from detrkit.losses.classification import (
    Classification,
    check_class_scores,
    class_agnostic,
    class_error,
    classification_for,
    target_classes_of,
)
from detrkit.losses.masks import mask_losses
from detrkit.losses.matcher import HungarianMatcher, MatchedObjects, Matches, MatchingInput
from detrkit.losses.point_masks import (
    MaskSamples,
    mask_samples,
    num_matching_points,
    point_mask_losses,
    random_points,
)
from detrkit.ops.transfer import to_device
from detrkit.structures import ClassScores, EncoderProposals, LayerMaskSource, MaskSource, Predictions, Target

LossDict = dict[str, Float[Tensor, ""]]


@dataclass(frozen=True)
class LossOutput:
    """Losses of a batch.

    Attributes:
        total: weighted sum of the losses of all layers, to be minimised.
        losses: unweighted values under the published names, detached: loss_ce, loss_bbox, loss_giou and cardinality_error
            of the last layer, with _0, _1 ... of the other layers; class_error (percentage of matched queries with a wrong
            class; NaN if no image has an object), loss_mask and loss_dice of the last layer only, or loss_mask_ce and
            loss_mask_dice of all layers (RF-DETR); with _enc of the encoder's proposals (two-stage).
        matches: matched pairs of all layers.
    """

    total: Float[Tensor, ""]
    losses: LossDict
    matches: Matches


@dataclass(frozen=True)
class Normalizers:
    """Divisors of the losses: sums over the batches of a training step and all ranks, divided by the number of ranks.

    With them every object and query has the same weight in whichever batch or rank it is, and the average of the ranks'
    gradients is the gradient of a single process with all images.

    Attributes:
        num_boxes: number of objects, at least 1 over all ranks.
        ce_normalizer: sum of the weights of all queries in the cross-entropy.
        num_images: number of images.
    """

    num_boxes: Float[Tensor, ""] | float
    ce_normalizer: Float[Tensor, ""] | float
    num_images: Float[Tensor, ""] | float = 1.0


@dataclass(frozen=True)
class PredictionMatches:
    """Matched pairs of one set of queries.

    Attributes:
        queries: of all decoder layers.
        proposals: of the encoder's proposals; None if there are none, or if their losses are not needed.
    """

    queries: Matches
    proposals: Matches | None = None


class SetCriterion:
    """Computes the DETR set loss.

    Predictions of every decoder layer are matched to the ground truth by a `HungarianMatcher`; matched queries contribute
    classification, L1 and GIoU losses, unmatched ones only classification. Mask losses are those of the last layer, or, at
    random points, of all layers and the encoder's proposals.

    Args:
        num_classes: number of object classes K, without "no object".
        class_scores: of the model: "softmax" for cross-entropy, "sigmoid" for focal loss.
        cls_loss_coef: weight of the classification loss. Default: 1 for softmax, 2 for sigmoid models, as published.
        bbox_loss_coef: weight of the L1 box loss.
        giou_loss_coef: weight of the GIoU loss.
        mask_loss_coef: weight of the focal loss of masks, or of their binary cross-entropy at points.
        dice_loss_coef: weight of the dice loss of masks.
        eos_coef: weight of the "no object" class in the cross-entropy.
        matcher: default: a `HungarianMatcher` with the published costs.
        padding_invariant: compare masks within each image only. False counts padding as outside, as published.
        masks_only: compute mask losses only, for training a mask head on a frozen detector.
        classification: default: the published loss for `class_scores`.
        mask_points: compare masks at random points, in all losses and in the matching (RF-DETR), instead of all pixels of
            the last layer's (DETR). The default matcher then has the published weights of both.
    """

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
        mask_points: bool = False,
    ) -> None:
        self.num_classes = num_classes
        self.class_scores: ClassScores = class_scores
        self.classification: Classification = classification or classification_for(class_scores, num_classes, eos_coef)
        self.weight_dict = {
            "loss_ce": self.classification.default_coef if cls_loss_coef is None else cls_loss_coef,
            "loss_bbox": bbox_loss_coef,
            "loss_giou": giou_loss_coef,
            "loss_mask": mask_loss_coef,
            "loss_dice": dice_loss_coef,
            "loss_mask_ce": mask_loss_coef,
            "loss_mask_dice": dice_loss_coef,
        }
        self.eos_coef = eos_coef
        mask_costs = (mask_loss_coef, dice_loss_coef) if mask_points else (0.0, 0.0)
        self.matcher = matcher or HungarianMatcher(None, 5.0, 2.0, self.classification, *mask_costs)
        self.mask_points = mask_points
        self.padding_invariant = padding_invariant
        self.masks_only = masks_only

    def normalizers(self, targets: Sequence[Target], num_queries: int) -> Normalizers:
        """Compute the divisors of the losses of a training step; a collective call in distributed training.

        The published code counts objects over all ranks, but normalises the cross-entropy within each.

        Args:
            targets: of all images that this rank processes before the next optimizer step.
            num_queries: Q.
        """
        num_boxes = sum(len(target.labels) for target in targets)
        num_matched = sum(min(len(target.labels), num_queries) for target in targets)
        num_unmatched = len(targets) * num_queries - num_matched
        ce_normalizer = num_matched + self.eos_coef * num_unmatched
        if not is_distributed():
            return Normalizers(float(max(num_boxes, 1)), ce_normalizer, float(len(targets)))
        sums = to_device([num_boxes, ce_normalizer, len(targets)], targets[0].labels.device, torch.float64)
        distributed.all_reduce(sums)
        means = sums.clamp(min=torch.finfo(torch.float32).tiny).float() / distributed.get_world_size()
        return Normalizers(means[0].clamp(min=1 / distributed.get_world_size()), means[1], means[2])

    def __call__(
        self,
        predictions: Predictions,
        targets: Sequence[Target],
        normalizers: Normalizers | None = None,
    ) -> LossOutput:
        """Compute the loss, in float32 also under autocast. It is not finite if predictions are not.

        Args:
            predictions: of a batch.
            targets: one per image, on the same device; images without objects have boxes of shape (0, 4).
            normalizers: of the training step; default: those of this batch.

        Raises:
            ConfigError: the model's class scores are not of the criterion's kind.
        """
        losses, matches = self.compute_losses(predictions, targets, normalizers)
        return LossOutput(self.weighted_sum(losses), detached(losses), matches)

    def match(self, blocks: Sequence[tuple[Predictions, Sequence[Target]]]) -> list[PredictionMatches]:
        """Match the predictions of one or several sets of queries with their targets; waits for the device once.

        Args:
            blocks: predictions of a batch and the targets of its images, for each set of queries.

        Raises:
            ConfigError: the model's class scores are not of the criterion's kind.
        """
        inputs = []
        points = self._matching_points(*blocks[0])
        for predictions, targets in blocks:
            check_class_scores(predictions.class_scores, self.class_scores)
            masks = _samples(predictions.mask_source, None if points is None else points[:-1], targets)
            inputs.append(MatchingInput(predictions.layer_class_logits, predictions.layer_boxes, targets, masks))
            proposals = self._proposals_of(predictions)
            if proposals is not None:
                of_proposals = proposal_targets(proposals, targets)
                masks = _samples(proposals.mask_source, None if points is None else points[-1:], targets)
                inputs.append(MatchingInput(proposals.class_logits[None], proposals.boxes[None], of_proposals, masks))
        with torch.autocast(inputs[0].layer_boxes.device.type, enabled=False):
            matches = iter(self.matcher.match_all(inputs))
        return [
            PredictionMatches(next(matches), None if self._proposals_of(predictions) is None else next(matches))
            for predictions, _ in blocks
        ]

    def compute_losses(
        self,
        predictions: Predictions,
        targets: Sequence[Target],
        normalizers: Normalizers | None = None,
        matched: PredictionMatches | None = None,
    ) -> tuple[LossDict, Matches]:
        """Compute unweighted losses with gradients.

        Args:
            predictions: of a batch.
            targets: as in `__call__`.
            normalizers: as in `__call__`.
            matched: result of `match`; default: it is called.

        Raises:
            ConfigError: as `__call__`.
        """
        matched = matched or self.match([(predictions, targets)])[0]
        matches = matched.queries
        logits, boxes = predictions.layer_class_logits.float(), predictions.layer_boxes.float()
        normalizers = normalizers or self.normalizers(targets, num_queries=boxes.shape[2])
        of_masks = self.losses_of_masks(predictions, targets, matches, normalizers)
        with torch.autocast(predictions.layer_boxes.device.type, enabled=False):
            losses = {} if self.masks_only else self._layer_losses(logits, boxes, targets, matches, normalizers)
            losses |= of_masks
            if predictions.proposals is not None and matched.proposals is not None:
                losses |= self._proposal_losses(
                    predictions.proposals,
                    proposal_targets(predictions.proposals, targets),
                    matched.proposals,
                    normalizers,
                )
                of_masks = self._point_losses(
                    predictions.proposals.mask_source, targets, matched.proposals, normalizers
                )
                losses |= {f"{name}_enc": values[0] for name, values in of_masks.items()}
        return losses, matches

    def losses_of_masks(
        self, predictions: Predictions, targets: Sequence[Target], matches: Matches, normalizers: Normalizers
    ) -> LossDict:
        """Compute the mask losses of the last layer, or at points of all layers; none without masks.

        Args:
            predictions: of a batch.
            targets: one per image.
            matches: pairs of queries and objects.
            normalizers: of the training step.
        """
        if any(target.masks is None for target in targets):
            return {}
        if self.mask_points:
            return by_layer(self._point_losses(predictions.mask_source, targets, matches, normalizers))
        masks = _matched_masks(predictions, matches, targets)  # in the model's precision
        if masks is None:
            return {}
        with torch.autocast(masks.device.type, enabled=False):
            objects = matches.objects[len(matches.objects) - len(masks) :].split(_num_pairs(predictions, targets))
            of_pairs = mask_losses(masks.float(), objects, targets, padding_invariant=self.padding_invariant)
            of_mask, of_dice = of_pairs.sum(1) / normalizers.num_boxes
        return {"loss_mask": of_mask, "loss_dice": of_dice}

    def loss_for_matches(
        self,
        predictions: Predictions,
        targets: Sequence[Target],
        matches: Matches,
        *,
        normalizers: Normalizers,
        valid_queries: Bool[Tensor, "B Q"],
    ) -> LossDict:
        """Compute the losses for given matches (denoising queries, whose targets are known).

        Args:
            predictions: of a batch.
            targets: one per image.
            matches: pairs of queries and objects.
            normalizers: of the training step.
            valid_queries: False for queries without a classification loss.
        """
        logits, boxes = predictions.layer_class_logits.float(), predictions.layer_boxes.float()
        with torch.autocast(boxes.device.type, enabled=False):
            return self._layer_losses(logits, boxes, targets, matches, normalizers, valid_queries)

    def weighted_sum(self, losses: LossDict) -> Float[Tensor, ""]:
        """Sum the losses with their weights.

        Args:
            losses: by name; entries that are not losses (class_error ...) are left out.
        """
        weighted = [self.weight_dict[base_name(name)] * loss for name, loss in losses.items() if is_loss(name)]
        return torch.stack(weighted).sum()

    def query_class_losses(
        self,
        logits: Float[Tensor, "*N K1"],
        target_classes: Int64[Tensor, "*N"],
        normalizers: Normalizers,
        iou: Float[Tensor, "*N"],
    ) -> tuple[Float[Tensor, "*N"], Float[Tensor, "*N"]]:
        """Compute each query's share of the weighted classification loss, and its unweighted classification loss.

        Args:
            logits: class logits of queries.
            target_classes: 0 .. K-1, or K for "no object".
            normalizers: of the training step.
            iou: of each query's box with that of its matched object; ignored for unmatched queries.
        """
        losses = self.classification.query_losses(logits, target_classes, iou)
        weights = self.classification.query_weights(target_classes)
        return self.weight_dict["loss_ce"] * losses / self._class_normalizer(normalizers), losses / weights

    def query_losses(
        self,
        logits: Float[Tensor, "T B Q K1"],
        boxes: Float[Tensor, "T B Q 4"],
        matches: Matches,
        objects: MatchedObjects,
    ) -> Float[Tensor, "T B Q"]:
        """Compute the classification loss of every query, neither weighted nor normalised.

        Args:
            logits: class logits after every decoder layer.
            boxes: after every decoder layer.
            matches: pairs of queries and objects.
            objects: labels and boxes of the matched objects.
        """
        index = matches.layers, matches.images, matches.queries
        target_classes = target_classes_of(logits.shape[:-1], index, objects.labels, self.num_classes)
        iou = matched_ious(boxes, matches, objects) if self.classification.is_iou_aware else None
        return self.classification.query_losses(logits, target_classes, iou)

    def _layer_losses(
        self,
        logits: Float[Tensor, "T B Q K1"],
        boxes: Float[Tensor, "T B Q 4"],
        targets: Sequence[Target],
        matches: Matches,
        normalizers: Normalizers,
        valid_queries: Bool[Tensor, "B Q"] | None = None,
    ) -> LossDict:
        """Classification and box losses of all layers."""
        objects = matches.gather(targets)
        losses = by_layer(
            {
                **self._class_losses(logits, boxes, targets, matches, objects, normalizers, valid_queries),
                **box_losses(boxes, matches, objects, normalizers.num_boxes),
            }
        )
        index = matches.layers, matches.images, matches.queries
        losses["class_error"] = class_error(self.classification.predicted_labels(logits), index, objects.labels)
        return losses

    def _class_losses(
        self,
        logits: Float[Tensor, "T B Q K1"],
        boxes: Float[Tensor, "T B Q 4"],
        targets: Sequence[Target],
        matches: Matches,
        objects: MatchedObjects,
        normalizers: Normalizers,
        valid_queries: Bool[Tensor, "B Q"] | None = None,
    ) -> dict[str, Float[Tensor, "T"]]:
        """Classification loss and cardinality error of each layer."""
        losses = self.query_losses(logits, boxes, matches, objects)
        if valid_queries is not None:
            losses = losses * valid_queries
        num_objects = to_device([len(target.labels) for target in targets], logits.device)
        num_predicted = self.classification.is_object(logits).sum(-1)
        return {
            "loss_ce": losses.sum((1, 2)) / self._class_normalizer(normalizers),
            "cardinality_error": (num_predicted - num_objects).abs().float().mean(-1),
        }

    def _class_normalizer(self, normalizers: Normalizers) -> Float[Tensor, ""] | float:
        """Cross-entropy is a weighted mean over queries; sigmoid losses are divided by the number of objects."""
        return normalizers.ce_normalizer if self.class_scores == "softmax" else normalizers.num_boxes

    def _matching_points(self, predictions: Predictions, targets: Sequence[Target]) -> Float[Tensor, "_ P 2"] | None:
        """Draw the points of every layer, and last of the proposals, that masks are matched at; None without masks."""
        source = predictions.mask_source
        if not self.mask_points or source is None or any(target.masks is None for target in targets):
            return None
        count = num_matching_points(source.mask_size)
        return random_points(len(predictions.layer_boxes) + 1, count, device=predictions.layer_boxes.device)

    def _point_losses(
        self, source: MaskSource | None, targets: Sequence[Target], matches: Matches, normalizers: Normalizers
    ) -> dict[str, Float[Tensor, "T"]]:
        """Compute the mask losses of every layer at random points; none without masks."""
        if not isinstance(source, LayerMaskSource) or any(target.masks is None for target in targets):
            return {}
        counts = [min(len(target.labels), source.num_queries) for target in targets]
        queries, objects = (one.view(source.num_layers, sum(counts)) for one in (matches.queries, matches.objects))
        masks = torch.stack([source.layer_masks_of(layer, one, counts) for layer, one in enumerate(queries)]).float()
        with torch.autocast(masks.device.type, enabled=False):
            losses = point_mask_losses(masks, objects, counts, targets) / normalizers.num_boxes
        return {"loss_mask_ce": losses[0], "loss_mask_dice": losses[1]}

    def _proposals_of(self, predictions: Predictions) -> EncoderProposals | None:
        """Return the proposals that have losses."""
        return None if self.masks_only else predictions.proposals

    def _proposal_losses(
        self, proposals: EncoderProposals, targets: Sequence[Target], matches: Matches, normalizers: Normalizers
    ) -> LossDict:
        """Losses of the encoder's proposals (Deformable DETR, appendix A.4)."""
        logits, boxes = proposals.class_logits.float()[None], proposals.boxes.float()[None]
        objects = matches.gather(targets)
        losses = {
            **self._class_losses(logits, boxes, targets, matches, objects, normalizers),
            **box_losses(boxes, matches, objects, normalizers.num_boxes),
        }
        return {f"{name}_enc": values[0] for name, values in losses.items()}


def detached(losses: LossDict) -> LossDict:
    """Return losses without their gradients."""
    return {name: loss.detach() for name, loss in losses.items()}


def by_layer(losses: Mapping[str, Float[Tensor, "T"]]) -> LossDict:
    """Name the losses of every layer: the last one has no suffix, the others have their number."""
    last = {name: values[-1] for name, values in losses.items()}
    others = {f"{name}_{layer}": one for name, values in losses.items() for layer, one in enumerate(values[:-1])}
    return last | others


def is_loss(name: str) -> bool:
    """Return True for losses in `LossOutput.losses`, False for metrics such as class_error."""
    return name.startswith("loss")


def base_name(name: str) -> str:
    """Return the name of a loss without the suffix of its layer or of the encoder: loss_ce_0, loss_ce_enc -> loss_ce."""
    return name.removesuffix("_enc").rstrip("0123456789").rstrip("_")


def proposal_targets(proposals: EncoderProposals, targets: Sequence[Target]) -> Sequence[Target]:
    """Return the targets of the encoder's proposals: objects, without classes if they are class-agnostic."""
    return class_agnostic(targets) if proposals.class_agnostic else targets


@torch.no_grad()
def _samples(
    source: MaskSource | None, points: Float[Tensor, "T P 2"] | None, targets: Sequence[Target]
) -> MaskSamples | None:
    """Sample masks at points for the matching; None without masks or points."""
    return mask_samples(source, points, targets) if points is not None and isinstance(source, LayerMaskSource) else None


def _matched_masks(
    predictions: Predictions, matches: Matches, targets: Sequence[Target]
) -> Float[Tensor, "P h w"] | None:
    """Mask logits of the queries matched in the last layer; None if the model predicts no masks."""
    if predictions.mask_source is None:
        return None
    counts = _num_pairs(predictions, targets)
    queries = matches.queries[len(matches.queries) - sum(counts) :]
    sizes = [(t.masks.shape[-2], t.masks.shape[-1]) for t in targets if t.masks is not None]
    return predictions.masks_of(queries.split(counts), sizes)


def _num_pairs(predictions: Predictions, targets: Sequence[Target]) -> list[int]:
    """Number of matched pairs of each image in one layer."""
    return [min(len(target.labels), predictions.boxes.shape[1]) for target in targets]
