"""Classification losses and matching costs, and the losses of the encoder's proposals."""

import math

import pytest
import torch

from detrkit import ConfigError, SetCriterion
from detrkit.losses.classification import (
    MatchabilityAwareClassification,
    SigmoidFocalClassification,
    SoftmaxClassification,
    VarifocalClassification,
)
from detrkit.structures import EncoderProposals, Predictions, Target


def logit(probability: float) -> float:
    return math.log(probability / (1 - probability))


# one query, two classes: the first at 0.8, the second at 0.1
LOGITS = torch.tensor([[logit(0.8), logit(0.1)]], dtype=torch.float64)


def test_focal_loss_of_one_query_is_exact() -> None:
    focal = SigmoidFocalClassification(2)
    correct = 0.25 * 0.2**2 * -math.log(0.8) + 0.75 * 0.1**2 * -math.log(0.9)
    wrong = 0.75 * 0.8**2 * -math.log(0.2) + 0.25 * 0.9**2 * -math.log(0.1)
    no_object = 0.75 * 0.8**2 * -math.log(0.2) + 0.75 * 0.1**2 * -math.log(0.9)
    for target_class, expected in ((0, correct), (1, wrong), (2, no_object)):
        assert focal.query_losses(LOGITS, torch.tensor([target_class])).item() == pytest.approx(expected)


def test_focal_matching_costs_are_exact() -> None:
    costs = SigmoidFocalClassification(2).costs(LOGITS[None, None].float(), torch.tensor([[0, 1]]))
    positive = [0.25 * 0.2**2 * -math.log(0.8), 0.25 * 0.9**2 * -math.log(0.1)]
    negative = [0.75 * 0.8**2 * -math.log(0.2), 0.75 * 0.1**2 * -math.log(0.9)]
    assert costs[0, 0, 0].tolist() == pytest.approx([positive[0] - negative[0], positive[1] - negative[1]], abs=1e-6)


def test_objects_and_labels_predicted_from_logits() -> None:
    sigmoid = torch.tensor([[-1.0, 0.1], [-1.0, -0.1]])
    assert SigmoidFocalClassification(2).is_object(sigmoid).tolist() == [True, False]
    assert SigmoidFocalClassification(2).predicted_labels(sigmoid).tolist() == [1, 1]
    softmax = torch.tensor([[0.0, 2.0, 1.0], [0.0, 1.0, 2.0]])
    assert SoftmaxClassification(2).is_object(softmax).tolist() == [True, False]
    assert SoftmaxClassification(2).predicted_labels(softmax).tolist() == [1, 2]


def predictions(**changes: object) -> Predictions:
    generator = torch.Generator().manual_seed(0)
    given: dict[str, object] = {
        "layer_class_logits": torch.randn(2, 2, 4, 3, generator=generator),
        "layer_boxes": torch.rand(2, 2, 4, 4, generator=generator) * 0.4 + 0.2,
        "class_scores": "sigmoid",
    }
    return Predictions(**{**given, **changes})


TARGETS = [
    Target(torch.tensor([[0.3, 0.3, 0.2, 0.2], [0.7, 0.6, 0.3, 0.2]]), torch.tensor([2, 0])),
    Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)),
]


def test_focal_loss_is_divided_by_the_number_of_objects() -> None:
    output = SetCriterion(3, class_scores="sigmoid")(predictions(), TARGETS)
    queries, objects = output.matches.pairs(-1, 0)
    target_classes = torch.full((2, 4), 3)
    target_classes[0, queries] = TARGETS[0].labels[objects]
    expected = SigmoidFocalClassification(3).query_losses(predictions().class_logits, target_classes).sum() / 2
    torch.testing.assert_close(output.losses["loss_ce"], expected)
    weights = {"loss_ce": 2.0, "loss_bbox": 5.0, "loss_giou": 2.0}  # the published ones
    total = sum(
        weights[name.removesuffix("_0")] * part for name, part in output.losses.items() if name.startswith("loss")
    )
    torch.testing.assert_close(output.total, total)


def test_default_classification_costs_are_the_published_ones() -> None:
    assert SetCriterion(3, class_scores="sigmoid").matcher.cost_class == 2
    assert SetCriterion(3).matcher.cost_class == 1


def test_proposals_are_matched_by_boxes_and_the_first_logit() -> None:
    # proposals 1 and 3 are the boxes of the objects; their other logits have no effect
    boxes = torch.tensor([[0.1, 0.1, 0.1, 0.1], [0.7, 0.6, 0.3, 0.2], [0.9, 0.1, 0.1, 0.1], [0.3, 0.3, 0.2, 0.2]])
    logits = torch.zeros(2, 4, 3)
    logits[..., 0] = torch.tensor([-5.0, 5.0, -5.0, 5.0])
    proposals = EncoderProposals(logits, boxes.expand(2, -1, -1))
    output = SetCriterion(3, class_scores="sigmoid")(predictions(proposals=proposals), TARGETS)
    assert output.losses["loss_bbox_enc"].item() == pytest.approx(0, abs=1e-6)
    assert output.losses["loss_giou_enc"].item() == pytest.approx(0, abs=1e-6)
    target_classes = torch.tensor([[3, 0, 3, 0], [3, 3, 3, 3]])
    expected = SigmoidFocalClassification(3).query_losses(logits, target_classes).sum() / 2
    torch.testing.assert_close(output.losses["loss_ce_enc"], expected)
    assert output.losses["cardinality_error_enc"].item() == 1  # no error in the first image, two in the second
    without = SetCriterion(3, class_scores="sigmoid")(predictions(), TARGETS)
    parts = ("loss_ce_enc", "loss_bbox_enc", "loss_giou_enc")
    added = sum(weight * output.losses[name] for weight, name in zip((2, 5, 2), parts, strict=True))
    torch.testing.assert_close(output.total, without.total + added)


def test_photos_without_objects_teach_that_nothing_is_there() -> None:
    empty = [TARGETS[1], TARGETS[1]]
    given = predictions(layer_class_logits=torch.zeros(2, 2, 4, 3, requires_grad=True))
    output = SetCriterion(3, class_scores="sigmoid")(given, empty)
    output.total.backward()
    # 8 queries of 3 classes, each at one half: 0.75 * 0.25 * log 2; divided by 1
    assert output.losses["loss_ce"].item() == pytest.approx(24 * 0.75 * 0.25 * math.log(2), rel=1e-5)
    assert (given.layer_class_logits.grad > 0).all()


def test_criterion_for_other_class_scores_is_rejected() -> None:
    with pytest.raises(ConfigError, match=r"class_scores='softmax' of the criterion .* Pass class_scores='sigmoid'"):
        SetCriterion(3)(predictions(), TARGETS)


def test_varifocal_loss_of_two_queries_is_exact() -> None:
    """Logits of 0: scores of 1/2 and cross-entropies of log 2 for every target."""
    losses = VarifocalClassification(2).query_losses(torch.zeros(2, 2), torch.tensor([1, 2]), torch.tensor([0.6, 0.9]))
    negative = 0.75 * 0.25 * math.log(2)
    torch.testing.assert_close(losses, torch.tensor([negative + 0.6 * math.log(2), 2 * negative]))


def test_matchability_aware_loss_of_two_queries_is_exact() -> None:
    """Logits of 0; a matched query weighs as much at a low IoU as at a high one."""
    loss = MatchabilityAwareClassification(2)
    losses = loss.query_losses(torch.zeros(2, 2), torch.tensor([1, 2]), torch.tensor([0.6, 0.9]))
    negative = 0.5**1.5 * math.log(2)
    torch.testing.assert_close(losses, torch.tensor([negative + math.log(2), 2 * negative]))
    logits = torch.tensor([[-30.0, 1.0]])
    target = 0.6**1.5
    expected = -(target * math.log(1 / (1 + math.exp(-1))) + (1 - target) * math.log(1 / (1 + math.exp(1))))
    assert float(loss.query_losses(logits, torch.tensor([1]), torch.tensor([0.6]))) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", [VarifocalClassification, MatchabilityAwareClassification])
def test_weights_and_targets_are_constants_for_the_gradient(
    kind: type[VarifocalClassification | MatchabilityAwareClassification],
) -> None:
    """At logits of 0 the gradient of a cross-entropy is 1/2 minus its target; that of its weight is not added."""
    logits = torch.zeros(1, 2, requires_grad=True)
    iou = torch.tensor([0.25])
    kind(2).query_losses(logits, torch.tensor([0]), iou).sum().backward()
    assert logits.grad is not None
    if kind is VarifocalClassification:
        expected = [0.25 * (0.5 - 0.25), 0.75 * 0.25 * 0.5]
    else:
        expected = [0.5 - 0.125, 0.5**1.5 * 0.5]
    torch.testing.assert_close(logits.grad, torch.tensor([expected]))


def test_cost_of_iou_aware_losses_is_that_of_the_focal_loss_with_twice_the_weight() -> None:
    logits, labels = torch.randn(1, 1, 4, 3), torch.tensor([[2, 0]])
    for kind in (VarifocalClassification, MatchabilityAwareClassification):
        assert (kind(3).default_coef, kind(3).default_cost) == (1, 2)
        assert torch.equal(kind(3).costs(logits, labels), SigmoidFocalClassification(3).costs(logits, labels))
