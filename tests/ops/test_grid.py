"""Conversion between tokens and pixels: exact examples, and properties for all sizes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from detrkit import ConfigError
from detrkit.ops.grid import Grid, stride_of

# 2 x 3 cells of 8 px over an image of 16 x 20, resized from 32 x 40
GRID = Grid(cells=(2, 3), stride=8, resized=(16, 20), padded=(16, 24), original=(32, 40))


def test_boxes_and_tokens_of_a_small_grid_equal_values_by_hand() -> None:
    boxes = GRID.boxes()
    assert boxes.shape == (6, 4)
    assert boxes[0].tolist() == [0, 0, 16, 16]
    assert boxes[4].tolist() == [16, 16, 32, 32]
    assert boxes[5].tolist() == [32, 16, 40, 32]  # clipped to the image
    assert GRID.token_at(0, 0) == 0
    assert GRID.token_at(15.9, 16) == 3
    assert GRID.token_at(39, 31) == 5


def test_mass_inside_a_box_equals_values_by_hand() -> None:
    box = torch.tensor([8.0, 0.0, 16.0, 32.0])  # half of tokens 0 and 3
    assert GRID.share_inside(box).tolist() == [0.5, 0, 0, 0.5, 0, 0]
    assert GRID.mass_inside(torch.tensor([0.6, 0.1, 0.1, 0.2, 0, 0]), box).item() == pytest.approx(0.4)
    assert GRID.area_share(box) == pytest.approx(8 * 32 / (32 * 40))
    assert GRID.area_share(torch.tensor([-50.0, -50.0, 400.0, 400.0])) == 1


def test_cells_in_the_padding_are_empty() -> None:
    padded = Grid(cells=(2, 2), stride=8, resized=(8, 10), padded=(16, 16), original=(8, 10))
    areas = (padded.boxes()[:, 2:] - padded.boxes()[:, :2]).prod(1)
    assert areas.tolist() == [64, 16, 0, 0]
    assert padded.share_inside(torch.tensor([0.0, 0.0, 10.0, 8.0])).tolist() == [1, 1, 0, 0]


@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 300), st.integers(1, 300))
def test_cells_tile_the_image(height: int, width: int, tall: int, wide: int) -> None:
    cells = (-(-height // 16), -(-width // 16))
    grid = Grid(cells, stride_of((height, width), cells, 16), (height, width), (height, width), (tall, wide))
    boxes = grid.boxes()
    assert float((boxes[:, 2:] - boxes[:, :2]).prod(1).sum()) == pytest.approx(tall * wide, rel=1e-4)
    for token, box in enumerate(boxes.tolist()):
        assert grid.token_at((box[0] + box[2]) / 2, (box[1] + box[3]) / 2) == token


@pytest.mark.parametrize("point", [(-1, 0), (40, 0), (0, 32), (0, -0.1)])
def test_points_outside_the_image_are_rejected(point: tuple[float, float]) -> None:
    with pytest.raises(ConfigError, match="expected x from 0 to 39 and y from 0 to 31"):
        GRID.token_at(*point)


def test_stride_of_backbones_that_round_sizes_differently_is_inferred() -> None:
    assert stride_of((800, 1066), (25, 34), 32) == 32
    assert stride_of((800, 1066), (50, 67), 32) == 16
    assert stride_of((70, 70), (10, 10), 32) == 7
