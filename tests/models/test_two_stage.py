"""Two-stage query selection: references, content, gradients, and padding."""

import pytest
import torch

from detrkit.models.feature_maps import FeatureMaps
from detrkit.models.queries.queries import MAX_LOGIT
from detrkit.models.queries.two_stage import TwoStageQueries, generate_anchors

WIDTH = 8
INVALID_LOGIT = 1e4  # of anchors in the padding, and negative, of their scores


def make_source(num_queries: int, *, content_from_memory: bool) -> TwoStageQueries:
    torch.manual_seed(0)
    return TwoStageQueries(num_queries, WIDTH, 2, content_from_memory=content_from_memory)


def make_features(
    height: int, width: int, padded: tuple[int, ...] = (), *, padding_invariant: bool = True
) -> FeatureMaps:
    """Return one feature map, with some cells in the padding."""
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
def test_gradients_of_queries_do_not_reach_the_box_head_of_the_proposals(content_from_memory: bool) -> None:
    source = make_source(3, content_from_memory=content_from_memory)
    queries = source(make_features(3, 3))
    assert queries.reference is not None
    assert queries.proposals is not None
    head, inputs = list(source.box_head.parameters()), queries.content + queries.positions
    assert not queries.reference.requires_grad
    assert all(one is None for one in torch.autograd.grad(inputs.sum(), head, allow_unused=True))
    assert all(one.any() for one in torch.autograd.grad(queries.proposals.boxes.sum(), head[-2:]))


def test_gradients_of_content_reach_the_memory_only_with_content_from_memory() -> None:
    for content_from_memory in (False, True):
        source = make_source(3, content_from_memory=content_from_memory)
        content = source(make_features(3, 3)).content
        output = (content * torch.randn_like(content)).sum()
        (gradient,) = torch.autograd.grad(output, source.memory_projection.weight, allow_unused=True)
        assert (gradient is not None and bool(gradient.any())) == content_from_memory


def test_untrained_proposals_equal_their_anchors_only_as_published() -> None:
    assert not make_source(3, content_from_memory=False).box_head.last.weight.any()
    assert make_source(3, content_from_memory=True).box_head.last.weight.any()


@pytest.mark.parametrize("padding_invariant", [True, False])
def test_padding_with_the_highest_score_is_not_selected_if_padding_invariant(padding_invariant: bool) -> None:
    source = make_source(2, content_from_memory=False)
    empty = source.memory_norm(source.memory_projection.bias)  # the projected memory of a cell in the padding
    with torch.no_grad():
        source.class_head.weight.copy_(empty.expand(2, -1))
    queries = source(make_features(2, 2, padded=(1, 3), padding_invariant=padding_invariant))
    assert queries.reference is not None
    assert queries.proposals is not None
    is_invalid = queries.proposals.class_logits[0, :, 0] == -INVALID_LOGIT
    assert is_invalid.tolist() == [False, padding_invariant, False, padding_invariant]
    x = queries.reference[0, :, 0].sigmoid()
    # as published, cells in the padding take part in the selection, and have the highest score here
    torch.testing.assert_close(x, torch.full((2,), 0.25 if padding_invariant else 1.0), rtol=0, atol=1e-4)


def test_cells_in_the_padding_have_invalid_anchors() -> None:
    anchors, is_valid = generate_anchors(make_features(3, 3, padded=(4,)))
    assert is_valid[0].tolist() == [True] * 4 + [False] + [True] * 4
    assert (anchors[0] == INVALID_LOGIT).all(-1).tolist() == (~is_valid[0]).tolist()


@pytest.mark.parametrize("rounding", [-1e-7, 0.0, 1e-7])
def test_anchors_at_the_margin_are_invalid_however_an_engine_rounds(
    monkeypatch: pytest.MonkeyPatch, rounding: float
) -> None:
    exact = FeatureMaps.cell_centers  # of 50 columns, the first and last have their centers at 0.01 and 0.99
    monkeypatch.setattr(FeatureMaps, "cell_centers", lambda self: [one + rounding for one in exact(self)])
    _, is_valid = generate_anchors(make_features(1, 50))
    assert is_valid[0].tolist() == [False] + [True] * 48 + [False]


@pytest.mark.parametrize("content_from_memory", [False, True])
def test_queries_without_a_cell_have_empty_memory_and_the_maximum_reference(content_from_memory: bool) -> None:
    source = make_source(4, content_from_memory=content_from_memory)
    torch.nn.init.zeros_(source.box_head.last.weight)
    torch.nn.init.zeros_(source.box_head.last.bias)
    queries = source(make_features(1, 2))
    assert queries.reference is not None
    assert sorted(queries.reference[0, :2, 0].sigmoid().tolist()) == pytest.approx([0.25, 0.75])
    # clamped to the maximum logit of boxes, below that of invalid anchors
    assert torch.equal(queries.reference[0, 2:], torch.full((2, 4), MAX_LOGIT))
    if source.weight is not None:
        _, box_content = source.encode_boxes(queries.reference, torch.float32)
        memory = queries.content[0, 2:] - box_content[0, 2:] - source.weight[2:]
        empty = source.memory_norm(source.memory_projection.bias)
        torch.testing.assert_close(memory, empty.expand(2, -1))


def test_references_are_clamped_to_the_minimum_logit() -> None:
    source = make_source(2, content_from_memory=False)
    torch.nn.init.constant_(source.box_head.last.bias, -50.0)
    reference = source(make_features(1, 2)).reference
    assert reference is not None
    assert torch.equal(reference, torch.full((1, 2, 4), -MAX_LOGIT))
