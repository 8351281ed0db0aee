"""Placement and drawing of captions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from detrkit.visualization.captions import caption_size, draw_caption, font_for, place_captions
from detrkit.visualization.fonts import Font

SIZE = (320, 240)
FONT = Font(11)


def placed(boxes: list[list[float]], captions: list[tuple[str, ...]]) -> list[tuple[str, tuple[float, float]] | None]:
    return place_captions(np.array(boxes, dtype=float).reshape(-1, 4), captions, FONT, SIZE)


def intersection(first: list[float], second: list[float]) -> float:
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    return max(width, 0) * max(height, 0)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 300), st.integers(0, 220), st.integers(2, 90), st.integers(2, 90)), max_size=25)
)
def test_captions_do_not_overlap_leave_the_image_or_cover_objects(rectangles: list[tuple[int, int, int, int]]) -> None:
    boxes = [[float(x), float(y), float(min(x + w, 320)), float(min(y + h, 240))] for x, y, w, h in rectangles]
    backgrounds: list[list[float]] = []
    for one in placed(boxes, [("RBC 0.98", "0.98")] * len(boxes)):
        if one is None:
            continue
        text, (left, top) = one
        width, height = caption_size(text, FONT)
        background = [left, top, left + width, top + height]
        assert min(background) >= 0
        assert background[2] <= SIZE[0]
        assert background[3] <= SIZE[1]
        assert all(intersection(background, other) == 0 for other in backgrounds)
        for box in boxes:
            assert intersection(background, box) <= 0.2 * (box[2] - box[0]) * (box[3] - box[1]) + 1e-6
        backgrounds.append(background)


def test_caption_is_above_its_box_or_inside_a_box_that_fills_the_image() -> None:
    height = caption_size("cat 0.98", FONT)[1]
    assert placed([[50, 50, 150, 150]], [("cat 0.98",)]) == [("cat 0.98", (50, 50 - height))]
    assert placed([[0, 0, 320, 240]], [("cat 0.98",)]) == [("cat 0.98", (0, 0))]
    assert placed([[50, 50, 150, 150]], [()]) == [None]


def test_shorter_caption_is_used_if_the_longer_does_not_fit() -> None:
    width = caption_size("0.98", FONT)[0]
    narrow = (int(width) + 1, 240)
    box = np.array([[0.0, 50, width, 150]])
    alternatives = [("a long name 0.98", "0.98")]
    assert place_captions(box, alternatives, FONT, narrow) == [("0.98", (0, 50 - caption_size("0.98", FONT)[1]))]
    assert place_captions(box, alternatives, FONT, (int(width) - 1, 240)) == [None]


def test_first_box_has_precedence() -> None:
    twice = [[50.0, 50, 150, 150], [50.0, 50, 150, 150]]
    first, second = placed(twice, [("cat 0.98",), ("dog 0.50",)])
    assert first is not None
    assert second is not None
    assert first == placed(twice[:1], [("cat 0.98",)])[0]
    assert second[1] != first[1]


def test_small_boxes_have_a_smaller_font() -> None:
    few, many = np.array([[0.0, 0, 600, 600]]), np.array([[10.0 * i, 0, 10 * i + 8, 8] for i in range(50)])
    heights = [caption_size("x", font_for((800, 800), boxes))[1] for boxes in (many, few)]
    assert heights[0] < heights[1]


@pytest.mark.parametrize("top", [0, 0.4, 0.6, 10.4])
def test_caption_is_complete_at_fractional_positions_and_the_upper_edge(top: float) -> None:
    def bright_pixels(top: float) -> int:
        image = Image.new("RGB", (60, 40))
        draw_caption(ImageDraw.Draw(image), (2, top), "RBC", (0, 0, 200), FONT)
        return int((np.asarray(image)[..., 0] > 120).sum())

    assert bright_pixels(top) == bright_pixels(5)
