"""Mask losses: exact small numbers, padding, chunks, and masks of matched queries only."""

import math
from dataclasses import replace

import pytest
import torch

from detrkit import SetCriterion, Target, build_model
from detrkit.losses.masks import mask_losses
from detrkit.ops.padding import pad_to_batch
from detrkit.structures import ComputedMasks


def square(size: tuple[int, int], *corners: tuple[int, int, int, int]) -> Target:
    """Target of an image with filled rectangles: x1, y1, x2, y2 in pixels."""
    height, width = size
    masks = torch.zeros(len(corners), height, width, dtype=torch.bool)
    boxes = []
    for mask, (x1, y1, x2, y2) in zip(masks, corners, strict=True):
        mask[y1:y2, x1:x2] = True
        boxes.append([(x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height])
    labels = torch.arange(len(corners)) % 3
    return Target(torch.tensor(boxes).reshape(-1, 4), labels, masks)


def test_losses_of_a_constant_mask_are_exact() -> None:
    """Logit 0 everywhere, a quarter of the pixels inside."""
    focal, dice = mask_losses(
        torch.zeros(1, 2, 2), [torch.tensor([0])], [square((8, 8), (0, 0, 4, 4))], padding_invariant=True
    )
    entropy = 0.25 * math.log(2)  # (1 - 0.5)^2 log 2
    assert focal.item() == pytest.approx(0.25 * 0.25 * entropy + 0.75 * 0.75 * entropy)
    assert dice.item() == pytest.approx(1 - (2 * 0.5 * 16 + 1) / (0.5 * 64 + 16 + 1))


def test_published_loss_counts_padding_below_and_right_as_outside() -> None:
    small, large = square((8, 8), (0, 0, 8, 8)), square((16, 16), (0, 0, 8, 8))
    drawn = torch.full((16, 16), -40.0)
    drawn[:8, :8] = 40.0
    losses = mask_losses(drawn.expand(2, 16, 16), [torch.tensor([0])] * 2, [small, large], padding_invariant=False)
    torch.testing.assert_close(losses, torch.zeros(2, 2), atol=1e-4, rtol=0)


def test_padding_invariant_loss_does_not_depend_on_padding() -> None:
    torch.manual_seed(0)
    small, large = square((16, 16), (2, 2, 9, 12)), square((16, 32), (4, 0, 20, 8))
    logits = torch.randn(1, 4, 4)
    padded = torch.cat([logits, torch.randn(1, 4, 4)], dim=2)
    alone = mask_losses(logits, [torch.tensor([0])], [small], padding_invariant=True)
    objects, both = [torch.tensor([0])] * 2, torch.cat([padded, torch.randn(1, 4, 8)])
    together = mask_losses(both, objects, [small, large], padding_invariant=True)
    published = mask_losses(both, objects, [small, large], padding_invariant=False)
    # except for the columns at the edge, which interpolate with a cell of the padding
    torch.testing.assert_close(together[:, 0], alone[:, 0], rtol=0.1, atol=0.02)
    assert (published[0, 0] - together[0, 0]).abs() > 0.01
    torch.testing.assert_close(published[:, 1], together[:, 1])  # the larger image has no padding


def test_chunks_change_neither_losses_nor_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    target = square((24, 40), (0, 0, 9, 9), (5, 5, 30, 20), (1, 8, 39, 23))
    results = []
    for max_pixels in (2**22, 1):
        monkeypatch.setattr("detrkit.losses.masks.MAX_PIXELS", max_pixels)
        logits = torch.linspace(-3, 3, 3 * 6 * 10).view(3, 6, 10).requires_grad_()
        losses = mask_losses(logits, [torch.tensor([2, 0, 1])], [target], padding_invariant=True)
        losses.sum().backward()
        results.append((losses, logits.grad))
    torch.testing.assert_close(results[0], results[1])


def test_masks_of_matched_queries_only_give_the_same_losses_and_gradients() -> None:
    torch.manual_seed(2)
    model = build_model("detr-tiny", mask_head=True, num_queries=9, num_classes=3, backbone_normalization="frozen")
    images, padding_mask = pad_to_batch([torch.randn(3, 64, 96), torch.randn(3, 48, 64), torch.randn(3, 64, 64)])
    targets = [square((64, 96), (0, 0, 50, 30), (40, 20, 90, 60)), square((48, 64)), square((64, 64), (9, 9, 40, 50))]
    loss = SetCriterion(3, padding_invariant=True)
    totals, gradients = [], []
    for all_masks in (True, False):
        model.zero_grad()
        predictions = model(images, padding_mask)
        if all_masks:
            predictions = replace(predictions, mask_source=ComputedMasks(predictions.masks))
        output = loss(predictions, targets)
        output.total.backward()
        totals.append(output.total)
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(totals[0], totals[1])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-3, atol=1e-5)


def test_mask_head_gets_matched_queries_only() -> None:
    model = build_model("detr-tiny", mask_head=True, num_queries=9, num_classes=3)
    calls = []
    model.mask_head.register_forward_pre_hook(lambda _, inputs: calls.append((inputs[1].tolist(), inputs[2])))
    targets = [square((64, 64), (0, 0, 50, 30), (40, 20, 60, 60)), square((64, 64), (9, 9, 40, 50))]
    output = SetCriterion(3)(model(torch.randn(2, 3, 64, 64)), targets)
    queries = [output.matches.pairs(-1, image)[0].tolist() for image in (0, 1)]
    assert calls == [([*queries[0], *queries[1]], [2, 1])]


def test_mask_head_has_zero_gradients_without_objects() -> None:
    """Distributed training waits for the gradients of all parameters, also on a rank without objects."""
    model = build_model("detr-tiny", mask_head=True, num_queries=9, num_classes=3)
    output = SetCriterion(3)(model(torch.randn(1, 3, 64, 64)), [square((64, 64))])
    output.total.backward()
    assert output.losses["loss_mask"].item() == output.losses["loss_dice"].item() == 0
    assert all(p.grad is not None and not p.grad.any() for p in model.mask_head.parameters())


def test_masks_only_criterion_computes_no_other_loss() -> None:
    model = build_model("detr-tiny", mask_head=True, num_queries=9, num_classes=3)
    predictions = model(torch.randn(1, 3, 64, 64))
    output = SetCriterion(3, masks_only=True)(predictions, [square((64, 64), (9, 9, 40, 50))])
    assert set(output.losses) == {"loss_mask", "loss_dice"}
    torch.testing.assert_close(output.total.detach(), output.losses["loss_mask"] + output.losses["loss_dice"])


def test_masks_with_more_objects_than_queries() -> None:
    model = build_model("detr-tiny", mask_head=True, num_queries=2, num_classes=3)
    many = square((64, 64), *((x, x, x + 20, x + 20) for x in range(5)))
    predictions = model(torch.randn(2, 3, 64, 64))
    output = SetCriterion(3)(predictions, [many, square((64, 64), (9, 9, 40, 50))])
    assert output.losses["loss_dice"].isfinite()
