"""Losses of training-only queries: query groups, hybrid matching and denoising.

Sources: Group DETR, arXiv:2207.13085; H-DETR, arXiv:2207.13080; DN-DETR, arXiv:2203.01305; contrastive denoising of DINO,
arXiv:2203.03605.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from detrkit.losses.criterion import LossDict, LossOutput, Normalizers, SetCriterion, base_name, detached, is_loss
from detrkit.losses.matcher import Matches
from detrkit.ops.transfer import to_device
from detrkit.structures import AuxiliaryKind, AuxiliaryPredictions, Predictions, Target

_MASK_LOSSES = ("loss_mask", "loss_dice")  # computed for the model's own queries only, unlike those at points


@dataclass(frozen=True)
class StepNormalizers:
    """Divisors of the losses of a training step.

    Attributes:
        own: for the model's own queries, query groups and denoising queries.
        hybrid: for hybrid queries, whose objects are repeated.
    """

    own: Normalizers
    hybrid: Normalizers | None = None


class AuxiliaryCriterion:
    """Set criterion of the model's own and its training-only queries.

    The losses of query groups are averaged with those of the model's own queries; denoising losses, averaged over the
    copies, and hybrid losses are added. `LossOutput.losses` has them under the suffixes _group, _dn and _hybrid.

    Args:
        criterion: of one set of queries.
        has_negatives: each noised copy of the objects also has a negative for every object (contrastive denoising).
        hybrid_queries: number of queries that are matched with repeated objects.
        hybrid_repeats: repeats of each object.
    """

    def __init__(
        self,
        criterion: SetCriterion,
        *,
        has_negatives: bool = False,
        hybrid_queries: int = 0,
        hybrid_repeats: int = 1,
    ) -> None:
        self.criterion = criterion
        self.has_negatives = has_negatives
        self.hybrid_queries = hybrid_queries
        self.hybrid_repeats = hybrid_repeats

    def normalizers(self, targets: Sequence[Target], num_queries: int) -> StepNormalizers:
        """Compute the divisors of the losses of a training step; see `SetCriterion.normalizers` (a collective call)."""
        own = self.criterion.normalizers(targets, num_queries)
        if not self.hybrid_queries:
            return StepNormalizers(own)
        return StepNormalizers(own, self.criterion.normalizers(self._repeat_objects(targets), self.hybrid_queries))

    def __call__(
        self,
        predictions: Predictions,
        targets: Sequence[Target],
        normalizers: StepNormalizers | None = None,
    ) -> LossOutput:
        """Compute the loss. Arguments and errors as in `SetCriterion`."""
        normalizers = normalizers or self.normalizers(targets, predictions.boxes.shape[1])
        boxes_only = [Target(target.boxes, target.labels) for target in targets]
        repeated = self._repeat_objects(boxes_only)
        of_groups = targets if self.criterion.mask_points else boxes_only
        group_blocks, hybrid_blocks = (
            [block.predictions for block in auxiliary_of(predictions, kind)] for kind in ("group", "hybrid")
        )
        # all of them at once: each call of `match` waits for the device
        own_matches, *other_matches = self.criterion.match(
            [
                (predictions, targets),
                *((block, of_groups) for block in group_blocks),
                *((block, repeated) for block in hybrid_blocks),
            ]
        )
        own, matches = self.criterion.compute_losses(predictions, targets, normalizers.own, own_matches)
        groups = [
            self.criterion.compute_losses(block, of_groups, normalizers.own, matched)[0]
            for block, matched in zip(group_blocks, other_matches[: len(group_blocks)], strict=True)
        ]
        total = self._average_groups(own, groups)
        losses = {**own, **_with_suffix(_mean(groups), "group")}
        for block, matched in zip(hybrid_blocks, other_matches[len(group_blocks) :], strict=True):
            hybrid, _ = self.criterion.compute_losses(block, repeated, normalizers.hybrid, matched)
            total = total + self.criterion.weighted_sum(hybrid)
            losses.update(_with_suffix(hybrid, "hybrid"))
        for noised in auxiliary_of(predictions, "denoising"):
            denoising = self._denoising_losses(noised, boxes_only, normalizers.own)
            total = total + self.criterion.weighted_sum(denoising)
            losses.update(_with_suffix(denoising, "dn"))
        return LossOutput(total, detached(losses), matches)

    def _average_groups(self, own: LossDict, groups: Sequence[LossDict]) -> Float[Tensor, ""]:
        """Average the total over all groups; mask losses, which only the model's own queries have, are not divided."""
        total = self.criterion.weighted_sum(own)
        if not groups:
            return total
        mask_losses = {name: loss for name, loss in own.items() if name in _MASK_LOSSES}
        masks = self.criterion.weighted_sum(mask_losses) if mask_losses else torch.zeros_like(total)
        return masks + torch.stack([total - masks, *(self.criterion.weighted_sum(group) for group in groups)]).mean()

    def _repeat_objects(self, targets: Sequence[Target]) -> list[Target]:
        repeats = self.hybrid_repeats
        return [Target(target.boxes.repeat(repeats, 1), target.labels.repeat(repeats)) for target in targets]

    def _denoising_losses(
        self, noised: AuxiliaryPredictions, targets: Sequence[Target], normalizers: Normalizers
    ) -> LossDict:
        """Losses of denoising queries: query i of a copy is matched to object i; then negatives; the rest is padding."""
        counts = [len(target.labels) for target in targets]
        predictions, copies = noised.predictions, noised.groups
        num_boxes = normalizers.num_boxes * copies
        weight = 1 + self.criterion.eos_coef if self.has_negatives else 1.0
        return self.criterion.loss_for_matches(
            predictions,
            targets,
            denoising_matches(counts, copies, predictions.layer_boxes),
            normalizers=Normalizers(num_boxes, num_boxes * weight),
            valid_queries=self._valid_queries(
                to_device(counts, predictions.boxes.device), predictions.boxes.shape[1], copies
            ),
        )

    def _valid_queries(self, counts: Int64[Tensor, "B"], num_queries: int, copies: int) -> Bool[Tensor, "B Q"]:
        """Queries of an object or of its negative, not padding."""
        parts = copies * (1 + self.has_negatives)
        number = torch.arange(num_queries // parts, device=counts.device).repeat(parts)
        return number[None] < counts[:, None]


def denoising_matches(counts: Sequence[int], copies: int, layer_boxes: Float[Tensor, "T B Q 4"]) -> Matches:
    """Return the known matches of all noised copies, the same in every layer.

    Args:
        counts: number of objects of each image.
        copies: number of copies, each of which begins with the objects.
        layer_boxes: of the denoising queries.
    """
    device, size = layer_boxes.device, layer_boxes.shape[2] // copies
    images = to_device([image for image, count in enumerate(counts) for _ in range(count)], device)
    objects = to_device([number for count in counts for number in range(count)], device)
    layers = torch.arange(len(layer_boxes), device=device)[:, None, None]
    starts = (torch.arange(copies, device=device) * size)[None, :, None]
    zeros = torch.zeros_like(layers + starts + objects)
    rows = (layers + zeros, images + zeros, starts + objects + zeros, objects + zeros)
    return Matches(*(row.flatten() for row in rows))


def auxiliary_of(predictions: Predictions, kind: AuxiliaryKind) -> list[AuxiliaryPredictions]:
    """Return the predictions of one kind of training-only queries."""
    return [block for block in predictions.auxiliary if block.kind == kind]


def _mean(groups: Sequence[LossDict]) -> LossDict:
    if not groups:
        return {}
    return {name: torch.stack([group[name] for group in groups]).mean() for name in groups[0]}


def _with_suffix(losses: LossDict, suffix: str) -> LossDict:
    """Insert a suffix before that of the layer: loss_ce_0 -> loss_ce_dn_0; entries that are not losses are left out."""
    bases = {name: base_name(name) for name in losses if is_loss(name)}
    return {f"{base}_{suffix}{name[len(base) :]}": losses[name] for name, base in bases.items()}
