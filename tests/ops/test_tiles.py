"""Tiles cover the image with at least the requested overlap."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detrkit.errors import ConfigError
from detrkit.ops.tiles import Tiling


def test_tiles_of_small_images_equal_values_by_hand() -> None:
    assert Tiling(100, 0.2).views((100, 100)) == [(0, 0, 100, 100)]
    assert Tiling(100, 0.2).views((80, 180)) == [(0, 0, 180, 80), (0, 0, 100, 80), (80, 0, 180, 80)]
    # one more pixel needs a third tile; tiles are evenly spaced
    assert [view[0] for view in Tiling(100, 0.2).views((80, 181))[1:]] == [0, 40, 81]
    assert Tiling(100, 0).views((200, 200))[1:] == [
        (0, 0, 100, 100),
        (100, 0, 200, 100),
        (0, 100, 100, 200),
        (100, 100, 200, 200),
    ]


@given(
    st.integers(1, 900),
    st.integers(1, 900),
    st.integers(32, 400),
    st.floats(0, 0.5),
)
def test_tiles_cover_every_pixel_and_neighbors_overlap(height: int, width: int, side: int, overlap: float) -> None:
    whole, *tiles = Tiling(side, overlap).views((height, width))
    assert whole == (0, 0, width, height)
    for low, high, end in ((0, 2, width), (1, 3, height)):
        intervals = sorted({(tile[low], tile[high]) for tile in tiles or [whole]})
        assert intervals[0][0] == 0
        assert intervals[-1][1] == end
        assert all(last - first == min(side, end) for first, last in intervals)
        for (_, last), (first, _) in pairwise(intervals):
            assert last - first >= side * overlap - 1


@pytest.mark.parametrize(
    ("size", "overlap", "message"), [(8, 0.2, "tile=8 is"), (64, 0.6, "overlap=0.6 is"), (64, -1, "overlap=-1 is")]
)
def test_tile_size_or_overlap_out_of_range_is_rejected(size: int, overlap: float, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Tiling(size, overlap)
