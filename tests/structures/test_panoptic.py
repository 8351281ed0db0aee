"""Panoptic segments as a collection."""

import numpy as np
import pytest
import torch
from PIL import Image

from detrkit.structures import PanopticSegment, PanopticSegments


@pytest.fixture
def segments() -> PanopticSegments:
    ids = torch.zeros(20, 30, dtype=torch.int32)
    ids[:10, :10], ids[:10, 10:20], ids[10:] = 1, 2, 5
    return PanopticSegments(
        ids,
        (
            PanopticSegment(1, 0, 17, True, 0.9, 100, "cat"),
            PanopticSegment(2, 0, 17, True, 0.8, 100, "cat"),
            PanopticSegment(5, 3, 200, False, 0.95, 300, "sky"),
        ),
    )


def test_length_iteration_and_integer_index(segments: PanopticSegments) -> None:
    assert len(segments) == 3
    assert [one.id for one in segments] == [1, 2, 5]
    assert segments[-1].class_name == "sky"
    assert segments.mask(segments[0]).sum() == 100


def test_selection_clears_the_pixels_of_other_segments(segments: PanopticSegments) -> None:
    things = segments[[one.is_thing for one in segments]]
    assert [one.id for one in things] == [1, 2]
    assert things.ids.unique().tolist() == [0, 1, 2]
    assert torch.equal(things.ids == 1, segments.ids == 1)
    assert len(segments[:0]) == 0
    assert not segments[:0].ids.any()


def test_repr_is_one_line_with_counts_of_classes(segments: PanopticSegments) -> None:
    assert repr(segments) == "PanopticSegments(3 segments: 2 cat, 1 sky; image 20x30)"


def test_enlarged_map_keeps_areas_of_the_original(segments: PanopticSegments) -> None:
    large = segments.enlarge(3)
    assert large.ids.shape == (60, 90)
    assert large[0].area == 100
    assert torch.equal(large.ids[1::3, 1::3], segments.ids)


def test_notebook_shows_a_table_or_the_drawn_image(segments: PanopticSegments) -> None:
    table = segments._repr_html_()
    assert table is not None
    assert table.count("<tr>") == 4
    assert segments._repr_png_() is None
    with pytest.raises(ValueError, match="pass it"):
        segments.draw()
    image = Image.new("RGB", (30, 20))
    shown = PanopticSegments(segments.ids, segments.segments, image)
    assert shown._repr_html_() is None
    assert shown._repr_png_() is not None
    assert np.asarray(segments.draw(image)).any()
