"""What queries beside the model's own add to the loss: by hand, and by the set loss that it is made of."""

import math

import pytest
import torch

from detrkit.losses.auxiliary_queries import AuxiliaryCriterion
from detrkit.losses.classification import IoUAwareClassification, SigmoidFocalClassification
from detrkit.losses.criterion import Normalizers, SetCriterion
from detrkit.structures import AuxiliaryKind, AuxiliaryPredictions, ClassScores, EncoderProposals, Predictions, Target


def said(layers: int, photos: int, queries: int, seed: int = 0, scores: ClassScores = "softmax") -> Predictions:
    torch.manual_seed(seed)
    outputs = 3 + (scores == "softmax")
    logits, boxes = torch.randn(layers, photos, queries, outputs), torch.rand(layers, photos, queries, 4)
    return Predictions(logits, boxes, class_scores=scores)


def objects(*counts: int) -> list[Target]:
    torch.manual_seed(9)
    return [Target(torch.rand(count, 4) / 2 + 0.1, torch.randint(3, (count,))) for count in counts]


def with_extra(own: Predictions, **extra: list[Predictions]) -> Predictions:
    kinds: dict[str, AuxiliaryKind] = {"group": "group", "hybrid": "hybrid", "denoising": "denoising"}
    blocks = [AuxiliaryPredictions(kinds[kind], one) for kind, several in extra.items() for one in several]
    return Predictions(own.layer_class_logits, own.layer_boxes, class_scores=own.class_scores, extra=tuple(blocks))


def test_one_object_noised_by_hand() -> None:
    """Two copies of the object, each with a box that is none; logits of 0 are probabilities of a quarter."""
    boxes = torch.tensor([[0.5, 0.5, 0.2, 0.2], [0.9, 0.9, 0.1, 0.1], [0.5, 0.5, 0.4, 0.2], [0.1, 0.1, 0.1, 0.1]])
    block = Predictions(torch.zeros(1, 1, 4, 4), boxes[None, None])
    target = Target(torch.tensor([[0.5, 0.5, 0.2, 0.2]]), torch.tensor([1]))
    loss = AuxiliaryCriterion(SetCriterion(3), copies=2, has_negatives=True)
    own = said(1, 1, 5)
    report = loss(with_extra(own, denoising=[block]), [target])
    assert float(report.parts["loss_ce_dn"]) == pytest.approx(math.log(4))  # the same for all, whatever the weights
    assert float(report.parts["loss_bbox_dn"]) == pytest.approx((0 + 0.2) / 2)
    assert float(report.parts["loss_giou_dn"]) == pytest.approx((0 + 0.5) / 2)
    alone = SetCriterion(3)(own, [target])
    assert float(report.total) == pytest.approx(float(alone.total) + math.log(4) + 5 * 0.1 + 2 * 0.25, rel=1e-5)


def test_objects_and_negatives_are_told_apart() -> None:
    """The object's query must say its class, the other no object; and neither what the other should."""
    loss = AuxiliaryCriterion(SetCriterion(3), copies=1, has_negatives=True)
    target = Target(torch.tensor([[0.5, 0.5, 0.2, 0.2]]), torch.tensor([1]))
    right = torch.tensor([[0.0, 9.0, 0.0, 0.0], [0.0, 0.0, 0.0, 9.0]])
    boxes = target.boxes.expand(2, -1)[None, None]
    good, bad = (
        float(
            loss(with_extra(said(1, 1, 5), denoising=[Predictions(logits[None, None], boxes)]), [target]).parts[
                "loss_ce_dn"
            ]
        )
        for logits in (right, right.flip(0))
    )
    assert good < 0.001 < 8 < bad


@pytest.mark.parametrize("scores", ["softmax", "sigmoid"])
@pytest.mark.parametrize("negatives", [False, True])
def test_places_without_an_object_are_not_judged(scores: ClassScores, negatives: bool) -> None:
    targets, sides = objects(1, 3, 0), 1 + negatives
    block = said(2, 3, 2 * sides * 3, scores=scores)
    loss = AuxiliaryCriterion(SetCriterion(3, class_scores=scores), copies=2, has_negatives=negatives)
    own = said(2, 3, 5, seed=1, scores=scores)
    before = loss(with_extra(own, denoising=[block]), targets).parts
    place = torch.arange(3).repeat(sides * 2)
    is_filler = place[None] >= torch.tensor([1, 3, 0])[:, None]
    logits = torch.where(is_filler[None, ..., None], 7.0, block.layer_class_logits)
    changed = Predictions(logits, block.layer_boxes, class_scores=scores)
    after = loss(with_extra(own, denoising=[changed]), targets).parts
    for name in ("loss_ce_dn", "loss_bbox_dn", "loss_giou_dn", "loss_ce_dn_0"):
        assert torch.equal(before[name], after[name])
    logits = torch.where(is_filler[None, ..., None], block.layer_class_logits, 7.0)
    changed = Predictions(logits, block.layer_boxes, class_scores=scores)
    assert loss(with_extra(own, denoising=[changed]), targets).parts["loss_ce_dn"] != before["loss_ce_dn"]


def test_without_negatives_copies_are_divided_by_their_objects_alone() -> None:
    target = Target(torch.tensor([[0.5, 0.5, 0.2, 0.2]]), torch.tensor([1]))
    block = Predictions(torch.zeros(1, 1, 2, 4), target.boxes.expand(2, -1)[None, None])
    report = AuxiliaryCriterion(SetCriterion(3), copies=2)(with_extra(said(1, 1, 5), denoising=[block]), [target])
    assert float(report.parts["loss_ce_dn"]) == pytest.approx(math.log(4))


def test_copies_that_say_the_same_add_what_one_does() -> None:
    targets = objects(2, 1)
    one, own = said(2, 2, 2), said(2, 2, 5, seed=1)
    three = Predictions(one.layer_class_logits.repeat(1, 1, 3, 1), one.layer_boxes.repeat(1, 1, 3, 1))
    single = AuxiliaryCriterion(SetCriterion(3), copies=1)(with_extra(own, denoising=[one]), targets)
    triple = AuxiliaryCriterion(SetCriterion(3), copies=3)(with_extra(own, denoising=[three]), targets)
    torch.testing.assert_close(triple.total, single.total)


@pytest.mark.parametrize("scores", ["softmax", "sigmoid"])
def test_groups_are_the_mean_of_separate_losses(scores: ClassScores) -> None:
    targets, set_loss = objects(2, 0, 4), SetCriterion(3, class_scores=scores)
    own, *groups = [said(2, 3, 5, seed=seed, scores=scores) for seed in range(4)]
    report = AuxiliaryCriterion(set_loss)(with_extra(own, group=groups), targets)
    reports = [set_loss(one, targets) for one in (own, *groups)]
    torch.testing.assert_close(report.total, torch.stack([one.total for one in reports]).mean())
    assert torch.equal(report.parts["loss_ce"], reports[0].parts["loss_ce"])
    others = torch.stack([one.parts["loss_bbox_0"] for one in reports[1:]]).mean()
    torch.testing.assert_close(report.parts["loss_bbox_group_0"], others)
    assert torch.equal(report.matches.queries, reports[0].matches.queries)


def test_masks_are_not_divided_by_the_groups() -> None:
    (target,) = objects(1)
    target = Target(target.boxes, target.labels, torch.ones(1, 8, 8, dtype=torch.bool))
    own = said(1, 1, 3)
    own = Predictions(own.layer_class_logits, own.layer_boxes, masks=torch.zeros(1, 3, 4, 4))
    group, without = said(1, 1, 3, seed=1), SetCriterion(3, mask_loss_coef=0, dice_loss_coef=0)
    with_auxiliary_queries = Predictions(
        own.layer_class_logits, own.layer_boxes, masks=own.masks, extra=(AuxiliaryPredictions("group", group),)
    )
    report = AuxiliaryCriterion(SetCriterion(3))(with_auxiliary_queries, [target])
    boxes = (without(own, [target]).total + without(group, [target]).total) / 2
    torch.testing.assert_close(report.total, boxes + report.parts["loss_mask"] + report.parts["loss_dice"])


def test_hybrid_queries_answer_for_repeated_objects() -> None:
    targets, own, block = objects(2, 0), said(2, 2, 5), said(2, 2, 9, seed=1)
    loss = AuxiliaryCriterion(SetCriterion(3), hybrid_queries=9, hybrid_repeats=3)
    report = loss(with_extra(own, hybrid=[block]), targets)
    repeated = [Target(one.boxes.repeat(3, 1), one.labels.repeat(3)) for one in targets]
    alone, beside = SetCriterion(3)(own, targets), SetCriterion(3)(block, repeated)
    torch.testing.assert_close(report.total, alone.total + beside.total)
    torch.testing.assert_close(report.parts["loss_ce_hybrid_0"], beside.parts["loss_ce_0"])


def test_without_extra_queries_it_is_the_set_loss() -> None:
    targets, own = objects(2, 1), said(3, 2, 5)
    with_auxiliary_queries, plain = AuxiliaryCriterion(SetCriterion(3))(own, targets), SetCriterion(3)(own, targets)
    assert with_auxiliary_queries.parts.keys() == plain.parts.keys()
    assert torch.equal(with_auxiliary_queries.total, plain.total)


def test_aligned_scores_by_hand() -> None:
    """A score of 1/2 and an IoU of 1/4 should become (1/2)^(1/4) * (1/4)^(3/4) = 2^(-7/4)."""
    judge = IoUAwareClassification(2)
    losses = judge.query_losses(torch.zeros(3, 2), torch.tensor([0, 2, 0]), torch.tensor([0.25, 0.0, 0.0]))
    other = 0.25 * math.log(2)  # of a class that is not there: 1/2 squared times its entropy
    torch.testing.assert_close(losses, torch.tensor([math.log(2) + other, 2 * other, math.log(2) + other]))

    logits = torch.zeros(2, 2, requires_grad=True)
    judge.query_losses(logits, torch.tensor([0, 0]), torch.tensor([0.25, 0.0]))[:].sum().backward()
    assert logits.grad is not None
    # the gradient of an entropy is score - truth; the worst box still asks for a hundredth
    torch.testing.assert_close(logits.grad[:, 0], torch.tensor([0.5 - 2**-1.75, 0.5 - 0.01]))


def test_aligned_scores_learn_the_overlap_that_the_loss_measures() -> None:
    box = torch.tensor([0.5, 0.5, 0.2, 0.2])
    wider = torch.tensor([0.5, 0.5, 0.4, 0.2])  # IoU 1/2
    loss = SetCriterion(1, class_scores="sigmoid", classification=IoUAwareClassification(1))
    logits = torch.full((1, 1, 1, 1), math.log(4), requires_grad=True)  # a score of 0.8
    predictions = Predictions(logits, wider.view(1, 1, 1, 4), class_scores="sigmoid")
    parts, _ = loss.judge(predictions, [Target(box[None], torch.tensor([0]))], Normalizers(1.0, 1.0))
    parts["loss_ce"].backward()
    assert logits.grad is not None
    assert float(logits.grad) == pytest.approx(0.8 - 0.8**0.25 * 0.5**0.75, rel=1e-5)
    assert loss.matcher.class_cost == SigmoidFocalClassification(1).weight


def test_scores_of_proposals_learn_the_overlap_too() -> None:
    box, wider = torch.tensor([0.5, 0.5, 0.2, 0.2]), torch.tensor([0.5, 0.5, 0.4, 0.2])  # IoU 1/2
    logits = torch.full((1, 1, 1), math.log(4), requires_grad=True)  # a score of 0.8
    loss = SetCriterion(1, class_scores="sigmoid", classification=IoUAwareClassification(1))
    proposals = EncoderProposals(logits, wider.view(1, 1, 4))
    own = torch.zeros(1, 1, 1, 1)
    predictions = Predictions(own, box.view(1, 1, 1, 4), class_scores="sigmoid", proposals=proposals)
    parts, _ = loss.judge(predictions, [Target(box[None], torch.tensor([0]))], Normalizers(1.0, 1.0))
    parts["loss_ce_enc"].backward()
    assert logits.grad is not None
    assert float(logits.grad) == pytest.approx(0.8 - 0.8**0.25 * 0.5**0.75, rel=1e-5)
