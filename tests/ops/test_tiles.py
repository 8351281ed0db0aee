"""Tiles cover the photo, overlap as asked, and none is larger than asked."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as some

from detrkit.errors import ConfigError
from detrkit.ops.tiles import Tiling


def test_tiles_by_hand() -> None:
    assert Tiling(100, 0.2).views((100, 100)) == [(0, 0, 100, 100)]
    assert Tiling(100, 0.2).views((80, 180)) == [(0, 0, 180, 80), (0, 0, 100, 80), (80, 0, 180, 80)]
    # one pixel more takes a third tile, and they are spread evenly
    assert [view[0] for view in Tiling(100, 0.2).views((80, 181))[1:]] == [0, 40, 81]
    assert Tiling(100, 0).views((200, 200))[1:] == [
        (0, 0, 100, 100),
        (100, 0, 200, 100),
        (0, 100, 100, 200),
        (100, 100, 200, 200),
    ]


@given(
    some.integers(1, 900),
    some.integers(1, 900),
    some.integers(32, 400),
    some.floats(0, 0.5),
)
def test_every_pixel_is_seen_and_neighbours_overlap(height: int, width: int, side: int, overlap: float) -> None:
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
    ("size", "overlap", "says"), [(8, 0.2, "--tile"), (64, 0.6, "--overlap"), (64, -1, "--overlap")]
)
def test_senseless_tiles_are_refused(size: int, overlap: float, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Tiling(size, overlap)
