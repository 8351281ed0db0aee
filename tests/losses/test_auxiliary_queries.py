"""Losses of training-only queries: exact small numbers, and compositions of the set criterion."""

import math

import pytest
import torch

from detrkit.losses.auxiliary_queries import AuxiliaryCriterion
from detrkit.losses.classification import IoUAwareClassification, SigmoidFocalClassification
from detrkit.losses.criterion import Normalizers, SetCriterion
from detrkit.structures import (
    AuxiliaryKind,
    AuxiliaryPredictions,
    ClassScores,
    ComputedMasks,
    EncoderProposals,
    Predictions,
    Target,
)


def predictions(layers: int, images: int, queries: int, seed: int = 0, scores: ClassScores = "softmax") -> Predictions:
    torch.manual_seed(seed)
    outputs = 3 + (scores == "softmax")
    logits, boxes = torch.randn(layers, images, queries, outputs), torch.rand(layers, images, queries, 4)
    return Predictions(logits, boxes, class_scores=scores)


def objects(*counts: int) -> list[Target]:
    torch.manual_seed(9)
    return [Target(torch.rand(count, 4) / 2 + 0.1, torch.randint(3, (count,))) for count in counts]


def with_extra(own: Predictions, copies: int = 1, **extra: list[Predictions]) -> Predictions:
    kinds: dict[str, AuxiliaryKind] = {"group": "group", "hybrid": "hybrid", "denoising": "denoising"}
    blocks = [AuxiliaryPredictions(kinds[kind], one, copies) for kind, several in extra.items() for one in several]
    return Predictions(own.layer_class_logits, own.layer_boxes, class_scores=own.class_scores, auxiliary=tuple(blocks))


def test_denoising_losses_of_one_object_are_exact() -> None:
    """Two copies, each of the object and a negative; logits of 0 are probabilities of 1/4."""
    boxes = torch.tensor([[0.5, 0.5, 0.2, 0.2], [0.9, 0.9, 0.1, 0.1], [0.5, 0.5, 0.4, 0.2], [0.1, 0.1, 0.1, 0.1]])
    block = Predictions(torch.zeros(1, 1, 4, 4), boxes[None, None])
    target = Target(torch.tensor([[0.5, 0.5, 0.2, 0.2]]), torch.tensor([1]))
    criterion = AuxiliaryCriterion(SetCriterion(3), has_negatives=True)
    own = predictions(1, 1, 5)
    output = criterion(with_extra(own, 2, denoising=[block]), [target])
    # the same for all queries, so that weights cancel
    assert float(output.losses["loss_ce_dn"]) == pytest.approx(math.log(4))
    assert float(output.losses["loss_bbox_dn"]) == pytest.approx((0 + 0.2) / 2)
    assert float(output.losses["loss_giou_dn"]) == pytest.approx((0 + 0.5) / 2)
    alone = SetCriterion(3)(own, [target])
    assert float(output.total) == pytest.approx(float(alone.total) + math.log(4) + 5 * 0.1 + 2 * 0.25, rel=1e-5)


def test_negatives_have_the_target_no_object() -> None:
    criterion = AuxiliaryCriterion(SetCriterion(3), has_negatives=True)
    target = Target(torch.tensor([[0.5, 0.5, 0.2, 0.2]]), torch.tensor([1]))
    correct = torch.tensor([[0.0, 9.0, 0.0, 0.0], [0.0, 0.0, 0.0, 9.0]])
    boxes = target.boxes.expand(2, -1)[None, None]
    losses = []
    for logits in (correct, correct.flip(0)):
        block = Predictions(logits[None, None], boxes)
        output = criterion(with_extra(predictions(1, 1, 5), denoising=[block]), [target])
        losses.append(float(output.losses["loss_ce_dn"]))
    assert losses[0] < 0.001 < 8 < losses[1]


@pytest.mark.parametrize("scores", ["softmax", "sigmoid"])
@pytest.mark.parametrize("negatives", [False, True])
def test_padding_queries_have_no_denoising_loss(scores: ClassScores, negatives: bool) -> None:
    targets, sides = objects(1, 3, 0), 1 + negatives
    block = predictions(2, 3, 2 * sides * 3, scores=scores)
    criterion = AuxiliaryCriterion(SetCriterion(3, class_scores=scores), has_negatives=negatives)
    own = predictions(2, 3, 5, seed=1, scores=scores)
    before = criterion(with_extra(own, 2, denoising=[block]), targets).losses
    number = torch.arange(3).repeat(sides * 2)
    is_padding = number[None] >= torch.tensor([1, 3, 0])[:, None]
    logits = torch.where(is_padding[None, ..., None], 7.0, block.layer_class_logits)
    changed = Predictions(logits, block.layer_boxes, class_scores=scores)
    after = criterion(with_extra(own, 2, denoising=[changed]), targets).losses
    for name in ("loss_ce_dn", "loss_bbox_dn", "loss_giou_dn", "loss_ce_dn_0"):
        assert torch.equal(before[name], after[name])
    logits = torch.where(is_padding[None, ..., None], block.layer_class_logits, 7.0)
    changed = Predictions(logits, block.layer_boxes, class_scores=scores)
    assert criterion(with_extra(own, 2, denoising=[changed]), targets).losses["loss_ce_dn"] != before["loss_ce_dn"]


def test_denoising_without_negatives_is_normalized_by_objects() -> None:
    target = Target(torch.tensor([[0.5, 0.5, 0.2, 0.2]]), torch.tensor([1]))
    block = Predictions(torch.zeros(1, 1, 2, 4), target.boxes.expand(2, -1)[None, None])
    output = AuxiliaryCriterion(SetCriterion(3))(with_extra(predictions(1, 1, 5), 2, denoising=[block]), [target])
    assert float(output.losses["loss_ce_dn"]) == pytest.approx(math.log(4))


def test_identical_copies_add_the_loss_of_one() -> None:
    targets = objects(2, 1)
    one, own = predictions(2, 2, 2), predictions(2, 2, 5, seed=1)
    three = Predictions(one.layer_class_logits.repeat(1, 1, 3, 1), one.layer_boxes.repeat(1, 1, 3, 1))
    single = AuxiliaryCriterion(SetCriterion(3))(with_extra(own, denoising=[one]), targets)
    triple = AuxiliaryCriterion(SetCriterion(3))(with_extra(own, 3, denoising=[three]), targets)
    torch.testing.assert_close(triple.total, single.total)


@pytest.mark.parametrize("scores", ["softmax", "sigmoid"])
def test_query_groups_are_averaged_with_own_queries(scores: ClassScores) -> None:
    targets, criterion = objects(2, 0, 4), SetCriterion(3, class_scores=scores)
    own, *groups = [predictions(2, 3, 5, seed=seed, scores=scores) for seed in range(4)]
    output = AuxiliaryCriterion(criterion)(with_extra(own, group=groups), targets)
    outputs = [criterion(one, targets) for one in (own, *groups)]
    torch.testing.assert_close(output.total, torch.stack([one.total for one in outputs]).mean())
    assert torch.equal(output.losses["loss_ce"], outputs[0].losses["loss_ce"])
    others = torch.stack([one.losses["loss_bbox_0"] for one in outputs[1:]]).mean()
    torch.testing.assert_close(output.losses["loss_bbox_group_0"], others)
    assert torch.equal(output.matches.queries, outputs[0].matches.queries)


def test_mask_losses_are_not_averaged_over_groups() -> None:
    (target,) = objects(1)
    target = Target(target.boxes, target.labels, torch.ones(1, 8, 8, dtype=torch.bool))
    own = predictions(1, 1, 3)
    own = Predictions(own.layer_class_logits, own.layer_boxes, mask_source=ComputedMasks(torch.zeros(1, 3, 4, 4)))
    group, without = predictions(1, 1, 3, seed=1), SetCriterion(3, mask_loss_coef=0, dice_loss_coef=0)
    with_auxiliary_queries = Predictions(
        own.layer_class_logits,
        own.layer_boxes,
        mask_source=own.mask_source,
        auxiliary=(AuxiliaryPredictions("group", group),),
    )
    output = AuxiliaryCriterion(SetCriterion(3))(with_auxiliary_queries, [target])
    boxes = (without(own, [target]).total + without(group, [target]).total) / 2
    torch.testing.assert_close(output.total, boxes + output.losses["loss_mask"] + output.losses["loss_dice"])


def test_hybrid_queries_are_matched_with_repeated_objects() -> None:
    targets, own, block = objects(2, 0), predictions(2, 2, 5), predictions(2, 2, 9, seed=1)
    criterion = AuxiliaryCriterion(SetCriterion(3), hybrid_queries=9, hybrid_repeats=3)
    output = criterion(with_extra(own, hybrid=[block]), targets)
    repeated = [Target(one.boxes.repeat(3, 1), one.labels.repeat(3)) for one in targets]
    alone, hybrid = SetCriterion(3)(own, targets), SetCriterion(3)(block, repeated)
    torch.testing.assert_close(output.total, alone.total + hybrid.total)
    torch.testing.assert_close(output.losses["loss_ce_hybrid_0"], hybrid.losses["loss_ce_0"])


def test_criterion_without_auxiliary_queries_is_the_set_criterion() -> None:
    targets, own = objects(2, 1), predictions(3, 2, 5)
    with_auxiliary_queries, plain = AuxiliaryCriterion(SetCriterion(3))(own, targets), SetCriterion(3)(own, targets)
    assert with_auxiliary_queries.losses.keys() == plain.losses.keys()
    assert torch.equal(with_auxiliary_queries.total, plain.total)


def test_iou_aware_losses_and_gradients_are_exact() -> None:
    """The target of score 1/2 and IoU 1/4 is (1/2)^(1/4) * (1/4)^(3/4) = 2^(-7/4)."""
    classification = IoUAwareClassification(2)
    losses = classification.query_losses(torch.zeros(3, 2), torch.tensor([0, 2, 0]), torch.tensor([0.25, 0.0, 0.0]))
    other = 0.25 * math.log(2)  # of another class: 1/2 squared times its entropy
    torch.testing.assert_close(losses, torch.tensor([math.log(2) + other, 2 * other, math.log(2) + other]))

    logits = torch.zeros(2, 2, requires_grad=True)
    classification.query_losses(logits, torch.tensor([0, 0]), torch.tensor([0.25, 0.0]))[:].sum().backward()
    assert logits.grad is not None
    # the gradient of the cross-entropy is score - target; the target of an IoU of 0 is the lower bound 0.01
    torch.testing.assert_close(logits.grad[:, 0], torch.tensor([0.5 - 2**-1.75, 0.5 - 0.01]))


def test_iou_aware_criterion_uses_the_iou_of_the_matched_box() -> None:
    box = torch.tensor([0.5, 0.5, 0.2, 0.2])
    wider = torch.tensor([0.5, 0.5, 0.4, 0.2])  # IoU 1/2
    criterion = SetCriterion(1, class_scores="sigmoid", classification=IoUAwareClassification(1))
    logits = torch.full((1, 1, 1, 1), math.log(4), requires_grad=True)  # a score of 0.8
    predictions = Predictions(logits, wider.view(1, 1, 1, 4), class_scores="sigmoid")
    losses, _ = criterion.compute_losses(predictions, [Target(box[None], torch.tensor([0]))], Normalizers(1.0, 1.0))
    losses["loss_ce"].backward()
    assert logits.grad is not None
    assert float(logits.grad) == pytest.approx(0.8 - 0.8**0.25 * 0.5**0.75, rel=1e-5)
    assert criterion.matcher.cost_class == SigmoidFocalClassification(1).default_coef


def test_iou_aware_criterion_uses_the_iou_of_proposals() -> None:
    box, wider = torch.tensor([0.5, 0.5, 0.2, 0.2]), torch.tensor([0.5, 0.5, 0.4, 0.2])  # IoU 1/2
    logits = torch.full((1, 1, 1), math.log(4), requires_grad=True)  # a score of 0.8
    criterion = SetCriterion(1, class_scores="sigmoid", classification=IoUAwareClassification(1))
    proposals = EncoderProposals(logits, wider.view(1, 1, 4))
    own = torch.zeros(1, 1, 1, 1)
    predictions = Predictions(own, box.view(1, 1, 1, 4), class_scores="sigmoid", proposals=proposals)
    losses, _ = criterion.compute_losses(predictions, [Target(box[None], torch.tensor([0]))], Normalizers(1.0, 1.0))
    losses["loss_ce_enc"].backward()
    assert logits.grad is not None
    assert float(logits.grad) == pytest.approx(0.8 - 0.8**0.25 * 0.5**0.75, rel=1e-5)
