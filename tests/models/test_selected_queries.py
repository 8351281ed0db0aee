"""Query selection of RT-DETR: which cells, with which content, references and gradients."""

import torch

from detrkit.models.feature_maps import FeatureMaps
from detrkit.models.queries.queries import MAX_LOGIT
from detrkit.models.queries.two_stage import SelectedQueries, generate_anchors
from tests.models.test_two_stage import WIDTH, make_features


def make_source(num_queries: int, num_classes: int = 3) -> SelectedQueries:
    torch.manual_seed(0)
    source = SelectedQueries(num_queries, WIDTH, num_classes)
    torch.nn.init.normal_(source.box_head.last.weight)
    return source


def test_cells_are_ranked_by_their_best_class_and_give_content_and_boxes() -> None:
    source, memory = make_source(4), make_features(3, 4)
    queries = source(memory)
    anchors, is_valid = generate_anchors(memory)
    masked = torch.where(is_valid[..., None], memory.tokens, 0.0)
    projected = source.memory_norm(source.memory_projection(masked))
    order = source.class_head(projected).amax(-1).argsort(dim=1, descending=True)[:, :4]
    assert queries.proposals is not None
    assert torch.equal(queries.proposals.cells, order)
    assert not queries.proposals.class_agnostic
    torch.testing.assert_close(queries.content, projected[:, order[0]])
    boxes = source.box_head(projected[:, order[0]]) + anchors[:, order[0]]
    torch.testing.assert_close(queries.reference, boxes.clamp(-MAX_LOGIT, MAX_LOGIT))
    torch.testing.assert_close(queries.proposals.boxes, boxes.sigmoid())
    torch.testing.assert_close(queries.proposals.class_logits, source.class_head(projected[:, order[0]]))
    assert not queries.positions.any()  # the decoder computes them


def test_only_the_encoders_own_losses_train_the_selection() -> None:
    queries = make_source(4)(make_features(3, 4))
    assert queries.proposals is not None
    assert queries.reference is not None
    assert not queries.content.requires_grad
    assert not queries.reference.requires_grad
    assert queries.proposals.boxes.requires_grad
    assert queries.proposals.class_logits.requires_grad


def test_invalid_anchors_share_one_content_and_have_infinite_boxes() -> None:
    # the outermost of 60 columns is closer to the edge than 0.01
    tokens = torch.randn(1, 120, WIDTH)
    memory = FeatureMaps(tokens, torch.zeros_like(tokens), None, ((2, 60),))
    _, is_valid = generate_anchors(memory)
    assert (~is_valid[0]).nonzero().flatten().tolist() == [0, 59, 60, 119]
    source = make_source(120)
    queries = source(memory)
    assert queries.proposals is not None
    rows = torch.isin(queries.proposals.cells[0], torch.tensor([0, 59, 60, 119]))
    contents = queries.content[0, rows]
    torch.testing.assert_close(contents, contents[:1].expand_as(contents))
    assert (queries.proposals.boxes[0, rows] == 1).all()  # as the published code, whose logits are infinite
    assert queries.reference is not None
    assert queries.reference.isfinite().all()


def test_padding_is_selected_last_and_only_if_there_are_too_few_cells() -> None:
    source = make_source(6)
    padded = source(make_features(2, 4, padded=(3, 7)))
    assert padded.proposals is not None
    assert sorted(padded.proposals.cells[0].tolist()) == [0, 1, 2, 4, 5, 6]
    few = make_source(10)(make_features(2, 4))
    assert few.proposals is not None
    assert few.proposals.class_logits[0, 8:].max() < -1e3
    assert few.content.shape == (1, 10, WIDTH)


def test_embeddings_of_labels_end_with_zeros_for_padding() -> None:
    labels = make_source(4).denoising_labels.weight
    assert labels.shape == (4, WIDTH)
    assert not labels[-1].any()
    assert labels[:-1].std() > 0.5
