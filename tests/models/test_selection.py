"""Cells that the queries are from: levels, positions, scores, anchors and boxes in pixels of the image."""

import pytest
import torch

from detrkit.models.feature_maps import FeatureMaps
from detrkit.models.queries.selection import QuerySelection, query_selections
from detrkit.models.queries.two_stage import SelectedQueries, TwoStageQueries
from tests.models.test_two_stage import WIDTH

SIZES = ((4, 8), (2, 4))  # of an image of 40 x 80 px: cells of 10 and 20 px


def make_memory(**changes: object) -> FeatureMaps:
    torch.manual_seed(1)
    tokens = torch.randn(2, 40, WIDTH)
    return FeatureMaps(tokens, torch.zeros_like(tokens), None, SIZES, **changes)  # type: ignore[arg-type]


def selected(num_queries: int, memory: FeatureMaps) -> tuple[QuerySelection, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    source = SelectedQueries(num_queries, WIDTH, 3)
    torch.nn.init.normal_(source.box_head.last.weight)
    with torch.no_grad():
        queries = source(memory)
    assert queries.proposals is not None
    assert queries.proposals.cells is not None
    selection = query_selections(queries.proposals, memory, num_queries, [(40, 80), (20, 40)])[0]
    return selection, queries.proposals.cells[0], queries.reference[0].sigmoid()  # type: ignore[index]


def test_cells_have_level_position_area_and_anchor() -> None:
    selection, cells, references = selected(40, make_memory())
    assert sorted(cells.tolist()) == list(range(40))
    rank = cells.tolist().index(32 + 5)  # second row, second column of the coarser map
    assert selection.levels[rank] == 1
    assert selection.positions[rank].tolist() == [1, 1]
    assert selection.areas[rank].tolist() == [20, 20, 40, 40]
    torch.testing.assert_close(selection.anchors[rank], torch.tensor([26.0, 28.0, 34.0, 32.0]))  # 0.1 of the image
    rank = cells.tolist().index(9)  # second row, second column of the finer map
    assert selection.levels[rank] == 0
    assert selection.areas[rank].tolist() == [10, 10, 20, 20]
    torch.testing.assert_close(selection.anchors[rank], torch.tensor([13.0, 14.0, 17.0, 16.0]))  # 0.05 of the image
    assert selection.is_valid.all()
    assert selection.scores.tolist() == sorted(selection.scores.tolist(), reverse=True)
    assert selection.labels is not None
    center = (selection.boxes[:, :2] + selection.boxes[:, 2:]) / 2
    torch.testing.assert_close(center, references[:, :2] * torch.tensor([80.0, 40.0]))


def test_padding_is_not_part_of_the_image() -> None:
    """The image of the batch covers 6 of 8 columns."""
    extents = torch.tensor([[[0.75, 1.0], [0.75, 1.0]]]).expand(2, -1, -1)
    cells = torch.tensor([[[6.0, 4.0], [3.0, 2.0]]]).expand(2, -1, -1)
    mask = torch.cat([torch.arange(8).expand(4, -1).flatten() >= 6, torch.arange(4).expand(2, -1).flatten() >= 3])
    memory = make_memory(image_cells=cells, image_extents=extents, padding_invariant=True)
    memory = FeatureMaps(**{**vars(memory), "padding_mask": mask.expand(2, -1)})
    selection, chosen, _ = selected(40, memory)
    rank = chosen.tolist().index(9)
    torch.testing.assert_close(selection.areas[rank], torch.tensor([80 / 6, 10, 160 / 6, 20]))
    in_padding = mask[chosen]
    assert in_padding.tolist() == [False] * 30 + [True] * 10
    assert not selection.scores[30:].any()
    assert not selection.is_valid[30:].any()


def test_anchors_at_the_edge_are_not_valid() -> None:
    torch.manual_seed(1)
    tokens = torch.randn(2, 120, WIDTH)
    memory = FeatureMaps(tokens, torch.zeros_like(tokens), None, ((2, 60),))
    selection, cells, _ = selected(120, memory)
    assert sorted(cells[~selection.is_valid].tolist()) == [0, 59, 60, 119]


def test_queries_beyond_the_number_of_cells_have_no_cell() -> None:
    selection, cells, _ = selected(50, make_memory())
    assert len(selection.levels) == len(selection.boxes) == len(selection.scores) == 40
    assert sorted(cells[:40].tolist()) == list(range(40))


@pytest.mark.parametrize("num_queries", [5, 50])
def test_class_agnostic_proposals_of_all_cells_give_the_queries_that_the_model_selected(num_queries: int) -> None:
    torch.manual_seed(0)
    source, memory = TwoStageQueries(num_queries, WIDTH, 3), make_memory()
    torch.nn.init.normal_(source.box_head.last.weight)
    with torch.no_grad():
        queries = source(memory)
    assert queries.proposals is not None
    assert queries.reference is not None
    sizes = [(40, 80), (20, 40)]
    for index, selection in enumerate(query_selections(queries.proposals, memory, num_queries, sizes)):
        count = min(num_queries, 40)
        boxes = queries.reference[index, :count].sigmoid()
        height, width = sizes[index]
        center = (selection.boxes[:, :2] + selection.boxes[:, 2:]) / 2
        torch.testing.assert_close(center, boxes[:, :2] * torch.tensor([float(width), float(height)]))
        assert selection.labels is None
        assert len(selection.scores) == count
