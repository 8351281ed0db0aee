"""Queries that start from the encoder's best boxes: where they stand, what they hold, and who teaches whom."""

import pytest
import torch

from detrkit.models.feature_maps import FeatureMaps
from detrkit.models.queries.queries import MAX_LOGIT
from detrkit.models.queries.two_stage import TwoStageQueries, generate_anchors

WIDTH = 8
# logits of padded cells and anchors: their sigmoid is 1 or 0
NOWHERE = 1e4


def source(num_queries: int, *, content_from_memory: bool) -> TwoStageQueries:
    torch.manual_seed(0)
    return TwoStageQueries(num_queries, WIDTH, 2, content_from_memory=content_from_memory)


def scene(height: int, width: int, padded: tuple[int, ...] = (), *, padding_invariant: bool = True) -> FeatureMaps:
    """A photo on one map of cells, some of which are padding."""
    torch.manual_seed(1)
    tokens = torch.randn(1, height * width, WIDTH)
    mask = torch.zeros(1, height * width, dtype=torch.bool)
    mask[0, list(padded)] = True
    return FeatureMaps(
        tokens,
        torch.zeros_like(tokens),
        mask if padded else None,
        ((height, width),),
        padding_invariant=padding_invariant,
    )


@pytest.mark.parametrize("content_from_memory", [False, True])
def test_the_decoder_starts_from_boxes_and_does_not_teach_them(content_from_memory: bool) -> None:
    queries_of = source(3, content_from_memory=content_from_memory)
    queries = queries_of(scene(3, 3))
    assert queries.reference is not None
    assert queries.proposals is not None
    head, started = list(queries_of.box_head.parameters()), queries.content + queries.positions
    assert not queries.reference.requires_grad
    assert all(one is None for one in torch.autograd.grad(started.sum(), head, allow_unused=True))
    assert all(one.any() for one in torch.autograd.grad(queries.proposals.boxes.sum(), head[-2:])), "the loss does"


def test_cells_learn_from_the_queries_that_hold_them() -> None:
    for content_from_memory in (False, True):
        queries_of = source(3, content_from_memory=content_from_memory)
        content = queries_of(scene(3, 3)).content
        asked = (content * torch.randn_like(content)).sum()
        (gradient,) = torch.autograd.grad(asked, queries_of.memory_projection.weight, allow_unused=True)
        assert (gradient is not None and bool(gradient.any())) == content_from_memory


def test_untrained_boxes_are_their_anchors_as_published_and_not_in_our_own() -> None:
    assert not source(3, content_from_memory=False).box_head.last.weight.any()
    assert source(3, content_from_memory=True).box_head.last.weight.any()


@pytest.mark.parametrize("is_exact", [True, False])
def test_padding_is_not_chosen_even_where_emptiness_scores_best(is_exact: bool) -> None:
    queries_of = source(2, content_from_memory=False)
    empty = queries_of.memory_norm(queries_of.memory_projection.bias)  # all that a cell of padding holds
    with torch.no_grad():
        queries_of.class_head.weight.copy_(empty.expand(2, -1))
    queries = queries_of(scene(2, 2, padded=(1, 3), padding_invariant=is_exact))
    assert queries.reference is not None
    assert queries.proposals is not None
    is_nowhere = queries.proposals.class_logits[0, :, 0] == -NOWHERE
    assert is_nowhere.tolist() == [False, is_exact, False, is_exact]
    across = queries.reference[0, :, 0].sigmoid()
    # as published, padding competes with the cells, and wins here
    torch.testing.assert_close(across, torch.full((2,), 0.25 if is_exact else 1.0), rtol=0, atol=1e-4)


def test_what_the_mask_hides_has_no_anchor_wherever_it_lies() -> None:
    anchors, is_valid = generate_anchors(scene(3, 3, padded=(4,)))
    assert is_valid[0].tolist() == [True] * 4 + [False] + [True] * 4
    assert (anchors[0] == NOWHERE).all(-1).tolist() == (~is_valid[0]).tolist()


@pytest.mark.parametrize("content_from_memory", [False, True])
def test_queries_without_a_cell_hold_nothing_and_lie_nowhere(content_from_memory: bool) -> None:
    queries_of = source(4, content_from_memory=content_from_memory)
    torch.nn.init.zeros_(queries_of.box_head.last.weight)
    torch.nn.init.zeros_(queries_of.box_head.last.bias)
    queries = queries_of(scene(1, 2))
    assert queries.reference is not None
    assert sorted(queries.reference[0, :2, 0].sigmoid().tolist()) == pytest.approx([0.25, 0.75])
    # the furthest that logits of boxes go, and not the 10000 of an anchor that is nowhere
    assert torch.equal(queries.reference[0, 2:], torch.full((2, 4), MAX_LOGIT))
    if queries_of.weight is not None:
        _, of_place = queries_of.encode_boxes(queries.reference, torch.float32)
        held = queries.content[0, 2:] - of_place[0, 2:] - queries_of.weight[2:]
        empty = queries_of.memory_norm(queries_of.memory_projection.bias)
        torch.testing.assert_close(held, empty.expand(2, -1))


def test_boxes_to_start_from_are_never_thinner_than_logits_can_say() -> None:
    queries_of = source(2, content_from_memory=False)
    torch.nn.init.constant_(queries_of.box_head.last.bias, -50.0)
    reference = queries_of(scene(1, 2)).reference
    assert reference is not None
    assert torch.equal(reference, torch.full((1, 2, 4), -MAX_LOGIT))
