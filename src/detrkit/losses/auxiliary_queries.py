"""What queries beside the model's own add to the loss, while training.

Input: predictions with `extra`, targets. Output: a `LossOutput`, in which their losses are named _group, _hybrid and _dn.
Sources: query groups, Group DETR, arXiv:2207.13085; hybrid matching, H-DETR, arXiv:2207.13080; denoising, DN-DETR,
arXiv:2203.01305, and with negatives, DINO, arXiv:2203.03605.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from detrkit.losses.boxes import to_device
from detrkit.losses.criterion import DrawMasks, LossOutput, Normalizers, SetCriterion, published_name
from detrkit.losses.matcher import Matches
from detrkit.structures import AuxiliaryKind, Predictions, Target

LossDict = dict[str, Float[Tensor, ""]]
_OF_MASKS = ("loss_mask", "loss_dice")  # asked of the model's own queries alone


@dataclass(frozen=True)
class StepNormalizers:
    """What losses of a step are divided by: of the model's own queries, and of the hybrid ones."""

    own: Normalizers
    hybrid: Normalizers | None = None


class AuxiliaryCriterion:
    """The set loss of the model's own queries, and of those beside them.

    Query groups are averaged with the model's own; the mean over the copies, and the hybrid queries' loss, are added.
    """

    def __init__(
        self,
        set_loss: SetCriterion,
        *,
        copies: int = 0,
        has_negatives: bool = False,
        hybrid_queries: int = 0,
        hybrid_repeats: int = 1,
    ) -> None:
        """Take the loss.

        Args:
            set_loss: of one set of queries.
            copies: of the objects, for denoising.
            has_negatives: whether each copy holds as many boxes again that are no objects.
            hybrid_queries: that are matched with repeated objects.
            hybrid_repeats: of each object.
        """
        self.set_loss = set_loss
        self.copies = copies
        self.has_negatives = has_negatives
        self.hybrid_queries = hybrid_queries
        self.hybrid_repeats = hybrid_repeats

    def normalizers(self, targets: Sequence[Target], num_queries: int) -> StepNormalizers:
        """Count what losses are divided by; see `SetCriterion.normalizers`, all processes call this together."""
        own = self.set_loss.normalizers(targets, num_queries)
        if not self.hybrid_queries:
            return StepNormalizers(own)
        return StepNormalizers(own, self.set_loss.normalizers(self._repeated(targets), self.hybrid_queries))

    def __call__(
        self,
        predictions: Predictions,
        targets: Sequence[Target],
        normalizers: StepNormalizers | None = None,
        draw_masks: DrawMasks | None = None,
    ) -> LossOutput:
        """Compute the loss. Arguments and errors as of `SetCriterion`."""
        norms = normalizers or self.normalizers(targets, predictions.boxes.shape[1])
        own, matches = self.set_loss.judge(predictions, targets, norms.own, draw_masks)
        without_masks = [Target(target.boxes, target.labels) for target in targets]
        groups = [self.set_loss.judge(one, without_masks, norms.own)[0] for one in _of(predictions, "group")]
        total = self._averaged(own, groups)
        parts = {**own, **_renamed(_mean(groups), "group")}
        for one in _of(predictions, "hybrid"):
            hybrid, _ = self.set_loss.judge(one, self._repeated(without_masks), norms.hybrid)
            total = total + self.set_loss.weighted(hybrid)
            parts.update(_renamed(hybrid, "hybrid"))
        for one in _of(predictions, "denoising"):
            mended = self._denoising(one, without_masks, norms.own)
            total = total + self.set_loss.weighted(mended)
            parts.update(_renamed(mended, "dn"))
        return LossOutput(total, {name: part.detach() for name, part in parts.items()}, matches)

    def _averaged(self, own: LossDict, groups: Sequence[LossDict]) -> Float[Tensor, ""]:
        """The mean over all groups; the mask losses are the first group's alone, and count whole."""
        total = self.set_loss.weighted(own)
        if not groups:
            return total
        of_masks = {name: part for name, part in own.items() if name in _OF_MASKS}
        masks = self.set_loss.weighted(of_masks) if of_masks else torch.zeros_like(total)
        return masks + torch.stack([total - masks, *(self.set_loss.weighted(group) for group in groups)]).mean()

    def _repeated(self, targets: Sequence[Target]) -> list[Target]:
        times = self.hybrid_repeats
        return [Target(target.boxes.repeat(times, 1), target.labels.repeat(times)) for target in targets]

    def _denoising(self, predictions: Predictions, targets: Sequence[Target], norms: Normalizers) -> LossDict:
        """Query i of a copy answers for object i; then come the negatives; what is left is not judged."""
        counts = [len(target.labels) for target in targets]
        size = predictions.boxes.shape[1] // self.copies
        judged = self._judged(to_device(counts, predictions.boxes.device), size)
        num_boxes = norms.num_boxes * self.copies
        weight = 1 + self.set_loss.eos_coef if self.has_negatives else 1.0
        of_copies = Normalizers(num_boxes, num_boxes * weight)
        matches = self._known(counts, size, predictions.layer_boxes)
        return self.set_loss.loss_for_matches(predictions, matches, targets, of_copies, judged)

    def _known(self, counts: Sequence[int], size: int, layer_boxes: Float[Tensor, "T B Q 4"]) -> Matches:
        """Who answers for whom in all copies, after every layer alike."""
        device = layer_boxes.device
        images = to_device([image for image, count in enumerate(counts) for _ in range(count)], device)
        objects = to_device([number for count in counts for number in range(count)], device)
        layers = torch.arange(len(layer_boxes), device=device)[:, None, None]
        starts = (torch.arange(self.copies, device=device) * size)[None, :, None]
        nothing = torch.zeros_like(layers + starts + objects)
        rows = (layers + nothing, images + nothing, starts + objects + nothing, objects + nothing)
        return Matches(*(row.flatten() for row in rows))

    def _judged(self, counts: Int64[Tensor, "B"], size: int) -> Bool[Tensor, "B Q"]:
        """Which queries stand for an object, or for a box that is none."""
        sides = 1 + self.has_negatives
        place = torch.arange(size // sides, device=counts.device).repeat(sides * self.copies)
        return place[None] < counts[:, None]


def _of(predictions: Predictions, helper: AuxiliaryKind) -> list[Predictions]:
    return [one.predictions for one in predictions.extra if one.helper == helper]


def _mean(groups: Sequence[LossDict]) -> LossDict:
    if not groups:
        return {}
    return {name: torch.stack([group[name] for group in groups]).mean() for name in groups[0]}


def _renamed(parts: LossDict, helper: str) -> LossDict:
    """loss_ce_0 -> loss_ce_dn_0; what is no loss is left out."""
    names = {name: published_name(name) for name in parts if name.startswith("loss")}
    return {f"{base}_{helper}{name[len(base) :]}": parts[name] for name, base in names.items()}
