"""Mask losses and matching costs at random points, on numbers by hand and against all pixels."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from detrkit.config.training import TrainingConfig
from detrkit.losses import point_masks
from detrkit.losses.criterion import SetCriterion
from detrkit.losses.matcher import HungarianMatcher
from detrkit.losses.point_masks import MaskSamples, mask_samples, pairwise_mask_costs, point_mask_losses
from detrkit.models.heads.dot_product import DotProductMasks
from detrkit.structures import Predictions, Target
from detrkit.training.build import build_criterion
from tests.models.vit_models import small_vit
from tests.rounding import assert_equal_up_to_rounding


def half_masks() -> Tensor:
    """The left and the upper half of 8 x 8 pixels."""
    masks = torch.zeros(2, 8, 8, dtype=torch.bool)
    masks[0, :, :4], masks[1, :4] = True, True
    return masks


def target(masks: Tensor) -> Target:
    boxes = torch.tensor([[0.25, 0.5, 0.5, 1.0], [0.5, 0.25, 1.0, 0.5]])[: len(masks)]
    return Target(boxes, torch.arange(len(masks)), masks)


def source(logits: Tensor) -> DotProductMasks:
    """Masks with given logits (B Q h w): query i has the i-th channel."""
    queries = torch.eye(logits.shape[1]).expand(1, len(logits), -1, -1)
    return DotProductMasks((logits,), queries, torch.zeros(1))


def test_costs_of_points_are_the_mean_cross_entropy_and_the_dice_loss() -> None:
    samples = MaskSamples(torch.tensor([[[[2.0, -1.0]]]]), torch.tensor([[[[1.0, 0.0], [0.0, 0.0]]]]))
    cross_entropy, dice = pairwise_mask_costs(samples)
    logits = torch.tensor([2.0, -1.0])
    for index, truth in enumerate(([1.0, 0.0], [0.0, 0.0])):
        expected = F.binary_cross_entropy_with_logits(logits, torch.tensor(truth))
        assert float(cross_entropy[0, 0, 0, index]) == pytest.approx(float(expected), rel=1e-5)
    p = logits.sigmoid()
    assert float(dice[0, 0, 0, 0]) == pytest.approx(float(1 - (2 * p[0] + 1) / (p.sum() + 1 + 1)), rel=1e-5)
    assert float(dice[0, 0, 0, 1]) == pytest.approx(float(1 - 1 / (p.sum() + 1)), rel=1e-5)


def test_objects_are_sampled_at_the_nearest_pixel_and_are_absent_in_the_padding() -> None:
    points = torch.tensor([[[0.2, 0.3], [0.45, 0.6], [0.9, 0.9]]])
    samples = mask_samples(source(torch.zeros(2, 1, 4, 4)), points, [target(half_masks()), target(half_masks()[:1])])
    assert samples.masks[0].tolist() == [[[1, 1, 0], [1, 0, 0]], [[1, 1, 0], [0, 0, 0]]]
    wide = torch.ones(1, 8, 16, dtype=torch.bool)
    samples = mask_samples(source(torch.zeros(2, 1, 4, 8)), points, [target(half_masks()[:1]), target(wide)])
    assert samples.masks[0].tolist() == [[[1, 0, 0]], [[1, 1, 1]]]


def test_matching_prefers_the_query_whose_mask_fits() -> None:
    truth = target(half_masks())
    logits = torch.where(half_masks()[[1, 0]], 4.0, -4.0)[None]  # query 0 is the second object, query 1 the first
    boxes = torch.tensor([0.5, 0.5, 1.0, 1.0]).expand(1, 1, 2, 4)
    predictions = Predictions(torch.zeros(1, 1, 2, 3), boxes, "sigmoid", mask_source=source(logits))
    criterion = SetCriterion(3, class_scores="sigmoid", mask_points=True, mask_loss_coef=5.0, dice_loss_coef=5.0)
    (matched,) = criterion.match([(predictions, [truth])])
    assert [one.tolist() for one in matched.queries.pairs(-1, 0)] == [[0, 1], [1, 0]]
    assert (criterion.matcher.cost_mask, criterion.matcher.cost_dice) == (5.0, 5.0)
    assert HungarianMatcher().cost_mask == 0


def test_losses_of_perfect_masks_are_small_and_gradients_reach_uncertain_points() -> None:
    masks = half_masks()
    good = torch.where(masks, 9.0, -9.0)[None].requires_grad_()
    losses = point_mask_losses(good, torch.tensor([[0, 1]]), [2], [target(masks)])
    assert losses.shape == (2, 1)
    assert losses.max() < 0.6  # interpolated logits are around zero at edges
    swapped = point_mask_losses(-good, torch.tensor([[0, 1]]), [2], [target(masks)])
    assert swapped[0] > 4 * losses[0]
    losses.sum().backward()
    assert good.grad is not None
    assert good.grad[:, 0, :, 3:5].abs().sum() > 10 * good.grad[:, 0, :, [0, 7]].abs().sum()


def test_losses_follow_the_order_of_layers_and_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """With all pixels as points, each pair is compared with its own object."""
    rows, columns = torch.meshgrid(*[(torch.arange(8) + 0.5) / 8] * 2, indexing="ij")
    pixels = torch.stack([columns, rows], -1).flatten(0, 1)
    monkeypatch.setattr(point_masks, "_uncertain_points", lambda logits: pixels.expand(len(logits), -1, -1))
    masks, targets = half_masks(), [target(half_masks()), target(half_masks()[:1])]
    truth = torch.stack([masks[1], masks[0], masks[0], masks[0], masks[1], masks[0]]).float()
    logits = torch.where(truth > 0, 3.0, -3.0).unflatten(0, (2, 3))
    objects = torch.tensor([[1, 0, 0], [0, 1, 0]])
    losses = point_mask_losses(logits, objects, [2, 1], targets)
    smallest = 3 * F.softplus(torch.tensor(-3.0))
    assert_equal_up_to_rounding(losses[0], smallest.expand(2))
    assert (losses[1] < 0.2 * 3).all()


def test_images_without_objects_have_losses_of_zero_with_a_gradient() -> None:
    logits = torch.zeros(2, 0, 4, 4, requires_grad=True)
    losses = point_mask_losses(logits, torch.zeros(2, 0, dtype=torch.int64), [0], [target(half_masks()[:0])])
    assert losses.tolist() == [[0, 0], [0, 0]]
    assert losses.requires_grad


def test_losses_of_rfdetr_have_the_published_names_in_all_layers_groups_and_the_encoder() -> None:
    model = small_vit("rfdetr-seg-nano")
    settings = TrainingConfig(cls_loss="ia_bce", mask_loss_coef=5.0, dice_loss_coef=4.0)
    criterion = build_criterion(model.config, settings)
    assert criterion.mask_points
    assert (criterion.matcher.cost_mask, criterion.matcher.cost_dice) == (5.0, 4.0)
    predictions = model(torch.randn(1, 3, 64, 64))
    losses = criterion(predictions, [target(half_masks())]).losses
    assert {name for name in losses if "mask" in name} == {
        f"loss_{kind}{suffix}" for kind in ("mask_ce", "mask_dice") for suffix in ("", "_0", "_enc")
    }
    assert criterion.weight_dict["loss_mask_dice"] == 4.0
    assert not build_criterion(small_vit("rfdetr-nano").config, settings).mask_points
