"""Losses of edge distributions (D-FINE): exact small numbers, gradients, and transformers' formulas."""

import math

import pytest
import torch
from torch import Tensor

from detrkit.losses.distributions import distillation_focal, edge_targets, fine_grained_localization, matched_share
from detrkit.losses.matcher import MatchedObjects, Matches
from detrkit.structures import EdgeDistributions

BINS = torch.tensor([-4.0, -1.0, 0.0, 1.0, 4.0])


def distributions(logits: Tensor, references: Tensor, reg_scale: float = 4.0) -> EdgeDistributions:
    layers, images, queries = logits.shape[:3]
    nothing = torch.zeros(images, queries, 1)
    return EdgeDistributions(
        logits,
        references,
        BINS.to(logits.dtype),
        torch.tensor(reg_scale),
        nothing,
        references,
        torch.zeros(layers, images, queries),
    )


def test_targets_of_edges_lie_between_bins() -> None:
    # reference 0.4 by 0.2 around the middle, one unit of distance: 0.1 and 0.05
    references = torch.tensor([[0.5, 0.5, 0.4, 0.2]])
    # edges moved outwards by 0.5, -0.25, 2.5 and 0 units
    corners = (0.3 - 0.05, 0.4 + 0.0125, 0.7 + 0.25, 0.6)
    boxes = torch.tensor(
        [
            [
                (corners[0] + corners[2]) / 2,
                (corners[1] + corners[3]) / 2,
                corners[2] - corners[0],
                corners[3] - corners[1],
            ]
        ]
    )
    left, weight = edge_targets(references, boxes, BINS, 4.0)
    assert left[0, :3].tolist() == [2, 1, 3]
    position = left + weight
    torch.testing.assert_close(position, torch.tensor([[2.5, 1.75, 3.5, 2.0]]), atol=1e-5, rtol=0)


def test_edges_beyond_the_bins_are_at_the_first_and_the_last_one() -> None:
    references = torch.tensor([[0.5, 0.5, 0.1, 0.1]])
    left, weight = edge_targets(references, torch.tensor([[0.8, 0.5, 0.3, 0.9]]), BINS, 4.0)
    # to the left the object begins 0.65 - 0.45 = 0.2 inside: -8 units
    assert left.tolist() == [[0, 3, 3, 3]]
    assert weight.tolist() == [[0.0, 1.0, 1.0, 1.0]]


def test_fine_grained_localization_of_one_pair_is_exact() -> None:
    """Uniform distributions: every edge costs log 5, whichever bins it lies between."""
    references = torch.tensor([[[0.5, 0.5, 0.4, 0.2]]])
    objects = MatchedObjects(torch.tensor([[0.52, 0.5, 0.42, 0.2]]), torch.tensor([0]))
    matches = Matches(*(torch.tensor([0]) for _ in range(4)))
    loss = fine_grained_localization(
        distributions(torch.zeros(1, 1, 1, 4, 5), references), matches, objects, torch.tensor([[[0.5]]]), 2.0
    )
    assert float(loss) == pytest.approx(0.5 * 4 * math.log(5) / 2)


def test_distillation_of_two_queries_is_exact() -> None:
    """Two bins. Logits of T log 3 at temperature T are probabilities of 3/4 and 1/4."""
    strong = torch.tensor([5 * math.log(3), 0.0])
    teacher = strong.expand(1, 2, 4, 2)
    student = torch.zeros(1, 1, 2, 4, 2)
    divergence = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    iou, scores = torch.tensor([[[0.8, 0.0]]]), torch.tensor([[0.9, 0.1]])
    loss = distillation_focal(student, teacher, iou, torch.tensor([[True, False]]), scores, matched_share(1, 2))
    assert float(loss) == pytest.approx(25 * divergence * (0.8 + 0.1) / 2, rel=1e-5)
    assert matched_share(1, 2) == 0.5
    assert matched_share(0, 300) == 0
    assert matched_share(4, 40) == pytest.approx(2 / (2 + 6))


def test_last_layer_teaches_itself_nothing() -> None:
    logits = torch.randn(1, 3, 4, 5)
    everything = torch.ones(1, 1, 3), torch.tensor([[True, False, True]]), torch.ones(1, 3)
    assert float(distillation_focal(logits[None], logits, *everything, 0.5)) == 0


def test_gradients_are_exact() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    references = 0.3 + 0.2 * torch.rand(2, 3, 4, dtype=torch.float64)
    boxes = 0.3 + 0.2 * torch.rand(4, 4, dtype=torch.float64)
    matches = Matches(*(torch.tensor(row) for row in ([0, 0, 1, 1], [0, 1, 0, 1], [2, 0, 2, 0], [0, 0, 0, 0])))
    iou = torch.rand(2, 2, 3, dtype=torch.float64)
    objects = MatchedObjects(boxes, torch.zeros(4, dtype=torch.int64))
    scale = torch.tensor(4.0, dtype=torch.float64)

    def localization(values: Tensor) -> Tensor:
        both = distributions(values, references)
        return fine_grained_localization(both, matches, objects, iou, 3.0)

    def distillation(values: Tensor) -> Tensor:
        is_matched = torch.tensor([[True, False, False], [False, True, True]])
        return distillation_focal(values, fixed, iou, is_matched, iou[0], 0.3)

    fixed = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    assert float(scale) == 4
    torch.autograd.gradcheck(localization, (logits,))
    torch.autograd.gradcheck(distillation, (logits,))


def test_teacher_receives_no_gradient() -> None:
    teacher = torch.randn(1, 2, 4, 5, requires_grad=True)
    student = torch.randn(1, 1, 2, 4, 5, requires_grad=True)
    loss = distillation_focal(
        student, teacher, torch.ones(1, 1, 2), torch.tensor([[True, False]]), torch.ones(1, 2), 0.5
    )
    loss.sum().backward()
    assert student.grad is not None
    assert teacher.grad is None


def test_targets_equal_those_of_transformers() -> None:
    from transformers.loss.loss_d_fine import bbox2distance
    from transformers.models.d_fine.modeling_d_fine import weighting_function

    torch.manual_seed(0)
    up, reg_scale = torch.tensor([0.5]), torch.tensor([4.0])
    bins = weighting_function(32, up, reg_scale)
    references = torch.cat([torch.rand(200, 2), 0.02 + 0.5 * torch.rand(200, 2)], dim=1)
    boxes = torch.cat([references[:, :2] + 0.1 * torch.randn(200, 2), 0.02 + 0.5 * torch.rand(200, 2)], dim=1)
    corners = torch.cat([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], dim=1)
    bin_and_more, right, _ = bbox2distance(references, corners, 32, reg_scale, up)
    left, weight = edge_targets(references, boxes, bins, 4.0)
    assert torch.equal(left.flatten(), bin_and_more.long())
    torch.testing.assert_close(weight.flatten(), right, atol=1e-5, rtol=0)
