"""Losses of RT-DETR (arXiv:2304.08069), RT-DETRv2 (2407.17140), D-FINE (2410.13842), DEIM (2412.04234) and DEIMv2.

Decoder layers, D-FINE's first boxes and the encoder's selected cells are sets of predictions that are matched separately
and computed in one batched call; so are those of denoising queries, whose objects are known.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, distributed

from detrkit.distributed.collectives import is_distributed
from detrkit.losses.auxiliary_queries import StepNormalizers, auxiliary_of, denoising_matches
from detrkit.losses.boxes import box_losses, matched_ious
from detrkit.losses.classification import class_error
from detrkit.losses.criterion import LossDict, LossOutput, Normalizers, SetCriterion, detached
from detrkit.losses.distributions import distillation_focal, fine_grained_localization, matched_share
from detrkit.losses.matcher import Matches, MatchingInput, repeat_for_layers, to_matches, union_of_matches
from detrkit.ops.transfer import to_device
from detrkit.structures import AuxiliaryPredictions, EdgeDistributions, Predictions, Target


@dataclass(frozen=True)
class _PredictionSets:
    """Predictions that are matched separately: of every decoder layer, then of D-FINE's first boxes and of the encoder.

    Attributes:
        names: suffix of the losses of each set; "" for the last decoder layer.
        logits: class logits.
        boxes: cxcywh.
        num_layers: number of decoder layers.
        distributions: of the decoder layers.
    """

    names: tuple[str, ...]
    logits: Float[Tensor, "L B Q K"]
    boxes: Float[Tensor, "L B Q 4"]
    num_layers: int
    distributions: EdgeDistributions | None


@dataclass(frozen=True)
class _Matching:
    """Pairs of queries and objects, equally many in every set, and the divisor of their losses."""

    matches: Matches
    num_boxes: Float[Tensor, ""] | float

    def first(self, num_sets: int, of: int) -> Matches:
        """Return the pairs of the first `num_sets` of all sets.

        Args:
            num_sets: to keep.
            of: number of all sets.
        """
        count = len(self.matches.layers) // of * num_sets
        matches = self.matches
        return Matches(*(each[:count] for each in (matches.layers, matches.images, matches.queries, matches.objects)))


class RealTimeCriterion:
    """Criterion of RT-DETR, RT-DETRv2, D-FINE, DEIM and DEIMv2, with their losses of denoising queries.

    Boxes of D-FINE are trained on the union of all matchings, their classes on each set's own. Losses have the published
    names: loss_vfl (or loss_mal), loss_bbox, loss_giou, and with distributions loss_fgl and loss_ddf, of the last layer;
    with _aux_0 .. of the other layers, _pre of D-FINE's first boxes, _enc_0 of the encoder, and of denoising queries _dn_0
    .. and _dn_pre. Published RT-DETR (v1) names the encoder's losses as those of a further auxiliary layer. Mask losses are
    those of `SetCriterion`.

    Published code counts non-finite losses as 0; here such a step is skipped.

    Args:
        criterion: whose matcher, classification and weights are used.
        fgl_loss_coef: weight of the fine-grained localization loss; 0 omits it.
        ddf_loss_coef: weight of the decoupled distillation focal loss; 0 omits it.
        match_union: train D-FINE's boxes on the union of all matchings, instead of each set's own.
    """

    def __init__(
        self,
        criterion: SetCriterion,
        *,
        fgl_loss_coef: float = 0.15,
        ddf_loss_coef: float = 1.5,
        match_union: bool = True,
    ) -> None:
        self.criterion = criterion
        self.match_union = match_union
        self.class_loss = criterion.classification.name
        self.weight_dict = {
            **criterion.weight_dict,
            self.class_loss: criterion.weight_dict["loss_ce"],
            "loss_fgl": fgl_loss_coef,
            "loss_ddf": ddf_loss_coef,
        }

    def normalizers(self, targets: Sequence[Target], num_queries: int) -> StepNormalizers:
        """Compute the divisors of the losses of a training step; see `SetCriterion.normalizers` (a collective call)."""
        return StepNormalizers(self.criterion.normalizers(targets, num_queries))

    def __call__(
        self, predictions: Predictions, targets: Sequence[Target], normalizers: StepNormalizers | None = None
    ) -> LossOutput:
        """Compute the loss, in float32 also under autocast. It is not finite if predictions are not.

        Args:
            predictions: of a batch, with those of denoising queries in `auxiliary`.
            targets: one per image, on the same device; images without objects have boxes of shape (0, 4).
            normalizers: of the training step; default: those of this batch.
        """
        norms = (normalizers or self.normalizers(targets, predictions.boxes.shape[1])).own
        sets = _prediction_sets(predictions)
        with torch.autocast(sets.boxes.device.type, enabled=False):
            own, of_boxes = self._match(sets, targets, norms)
            layers = own.first(sets.num_layers, of=len(sets.names))
            of_masks = self.criterion.losses_of_masks(predictions, targets, layers, norms)
            if self.criterion.masks_only:
                return LossOutput(self.criterion.weighted_sum(of_masks), detached(of_masks), layers)
            share = matched_share(len(of_boxes.matches.layers) // len(sets.names), sets.boxes[0, ..., 0].numel())
            scale = len(targets) / norms.num_images
            groups = [self._losses(sets, own, of_boxes, targets, share, scale), {"": of_masks}]
            groups += [
                self._denoising_losses(noised, targets, norms, share, scale)
                for noised in auxiliary_of(predictions, "denoising")
            ]
            total = torch.stack([self._weighted_sum(group) for group in groups]).sum()
            losses = {
                name + suffix: loss for group in groups for suffix, of in group.items() for name, loss in of.items()
            }
            losses["class_error"] = self._class_error(sets, layers, targets)
        return LossOutput(total, detached(losses), layers)

    def _match(
        self, sets: _PredictionSets, targets: Sequence[Target], norms: Normalizers
    ) -> tuple[_Matching, _Matching]:
        """Match every set; return the pairs of the class losses and those of the box losses."""
        own = self.criterion.matcher.assign_all([MatchingInput(sets.logits, sets.boxes, targets)])[0]
        device = sets.boxes.device
        if sets.distributions is None or not self.match_union:
            matching = _Matching(to_matches([own], device)[0], norms.num_boxes)
            return matching, matching
        union = union_of_matches(own)
        matches, of_boxes = to_matches([own, repeat_for_layers(union, len(sets.names))], device)
        num_pairs = _step_total(union.shape[1], targets, norms, device)
        return _Matching(matches, norms.num_boxes), _Matching(of_boxes, num_pairs)

    def _losses(
        self,
        sets: _PredictionSets,
        of_classes: _Matching,
        of_boxes: _Matching,
        targets: Sequence[Target],
        share: float,
        scale: Float[Tensor, ""] | float,
    ) -> dict[str, LossDict]:
        """Compute unweighted losses of all sets, by the suffix of the set and the name of the loss.

        Args:
            sets: predictions.
            of_classes: pairs of the class losses.
            of_boxes: pairs of the other losses.
            targets: one per image.
            share: of matched queries in DDF.
            scale: factor of DDF, which is a mean over the batch: its share of the images of the step.
        """
        class_losses = self._class_losses(sets, of_classes, targets)
        objects = of_boxes.matches.gather(targets)
        of_pairs = box_losses(sets.boxes, of_boxes.matches, objects, of_boxes.num_boxes)
        by_name = {self.class_loss: class_losses, **of_pairs}
        if sets.distributions is not None:
            num_layers = sets.num_layers
            matches = of_boxes.first(num_layers, of=len(sets.names))
            objects = matches.gather(targets)
            iou = matched_ious(sets.boxes[:num_layers], matches, objects)
            if self.weight_dict["loss_fgl"]:
                by_name["loss_fgl"] = fine_grained_localization(
                    sets.distributions, matches, objects, iou, of_boxes.num_boxes
                )
            if self.weight_dict["loss_ddf"]:
                by_name["loss_ddf"] = scale * _distillation(sets, matches, iou, share)
        return {
            suffix: {name: values[number] for name, values in by_name.items() if number < len(values)}
            for number, suffix in enumerate(sets.names)
        }

    def _class_losses(
        self, sets: _PredictionSets, matching: _Matching, targets: Sequence[Target]
    ) -> Float[Tensor, "L"]:
        objects = matching.matches.gather(targets)
        losses = self.criterion.query_losses(sets.logits, sets.boxes, matching.matches, objects)
        return losses.sum((1, 2)) / matching.num_boxes

    def _denoising_losses(
        self,
        noised: AuxiliaryPredictions,
        targets: Sequence[Target],
        norms: Normalizers,
        share: float,
        scale: Float[Tensor, ""] | float,
    ) -> dict[str, LossDict]:
        """Losses of denoising queries; 0 in a batch without objects, whose queries are placeholders."""
        sets = _denoising_sets(noised.predictions)
        counts = [len(target.labels) for target in targets]
        matches = denoising_matches(counts, noised.groups, sets.boxes)
        matching = _Matching(matches, norms.num_boxes * noised.groups)
        losses = self._losses(sets, matching, matching, targets, share, scale)
        is_empty = not any(counts)
        return {
            suffix: {name: 0 * loss if is_empty else loss for name, loss in of.items()} for suffix, of in losses.items()
        }

    def _weighted_sum(self, group: dict[str, LossDict]) -> Float[Tensor, ""]:
        weighted = [self.weight_dict[name] * loss for losses in group.values() for name, loss in losses.items()]
        return torch.stack(weighted).sum() if weighted else torch.zeros(())

    def _class_error(self, sets: _PredictionSets, layers: Matches, targets: Sequence[Target]) -> Float[Tensor, ""]:
        predicted = self.criterion.classification.predicted_labels(sets.logits[: sets.num_layers])
        return class_error(predicted, (layers.layers, layers.images, layers.queries), layers.gather(targets).labels)


def _prediction_sets(predictions: Predictions) -> _PredictionSets:
    """Collect the sets of predictions."""
    num_layers = len(predictions.layer_boxes)
    names = [*(f"_aux_{layer}" for layer in range(num_layers - 1)), ""]
    logits, boxes = [predictions.layer_class_logits], [predictions.layer_boxes]
    if predictions.distributions is not None:
        names.append("_pre")
        logits.append(predictions.distributions.initial_class_logits[None])
        boxes.append(predictions.distributions.initial_boxes[None])
    if predictions.proposals is not None:
        names.append("_enc_0")
        logits.append(predictions.proposals.class_logits[None])
        boxes.append(predictions.proposals.boxes[None])
    distributions = _in_float32(predictions.distributions)
    return _PredictionSets(tuple(names), torch.cat(logits).float(), torch.cat(boxes).float(), num_layers, distributions)


def _denoising_sets(predictions: Predictions) -> _PredictionSets:
    """Collect the sets of denoising queries."""
    sets = _prediction_sets(replace(predictions, proposals=None))
    names = [f"_dn_{layer}" for layer in range(sets.num_layers)]
    return replace(sets, names=(*names, "_dn_pre")[: len(sets.names)])


def _in_float32(distributions: EdgeDistributions | None) -> EdgeDistributions | None:
    if distributions is None:
        return None
    return replace(
        distributions,
        layer_logits=distributions.layer_logits.float(),
        references=distributions.references.detach().float(),
        bin_values=distributions.bin_values.detach().float(),
        reg_scale=distributions.reg_scale.detach().float().abs(),
    )


def _distillation(
    sets: _PredictionSets, matches: Matches, iou: Float[Tensor, "T B Q"], share: float
) -> Float[Tensor, "_"]:
    """Compute DDF of all layers but the last, which teaches them."""
    assert sets.distributions is not None
    is_matched = torch.zeros(iou.shape[1:], dtype=torch.bool, device=iou.device)
    is_matched[matches.images, matches.queries] = True
    scores = sets.logits[sets.num_layers - 1].detach().sigmoid().amax(-1)
    logits = sets.distributions.layer_logits
    return distillation_focal(logits[:-1], logits[-1], iou[:-1], is_matched, scores, share)


def _step_total(
    count: int, targets: Sequence[Target], norms: Normalizers, device: torch.device
) -> Float[Tensor, ""] | float:
    """Return the divisor of losses of the union: its pairs in this batch on all ranks, extrapolated to the whole step.

    The step's other batches are not matched yet; their share is that of their objects. A collective call.
    """
    num_objects = sum(len(target.labels) for target in targets)
    if not is_distributed():
        return max(count, 1) * norms.num_boxes / max(num_objects, 1)
    sums = to_device([count, num_objects], device, torch.float32)
    distributed.all_reduce(sums)
    pairs, objects = sums.clamp(min=1) / distributed.get_world_size()
    return pairs * norms.num_boxes / objects
