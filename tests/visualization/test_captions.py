"""Captions stand where there is room, and hide neither each other nor objects."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFont

from detrkit.structures import Detections
from detrkit.visualization.captions import extent_of, font_for, place_captions, write_caption
from detrkit.visualization.draw import colour_of, draw_detections

SIZE = (320, 240)
FONT = ImageFont.load_default(size=11)


def placed(boxes: list[list[float]], captions: list[tuple[str, ...]]) -> list[tuple[str, tuple[float, float]] | None]:
    return place_captions(np.array(boxes, dtype=float).reshape(-1, 4), captions, FONT, SIZE)


def area_in_common(first: list[float], second: list[float]) -> float:
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    return max(width, 0) * max(height, 0)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 300), st.integers(0, 220), st.integers(2, 90), st.integers(2, 90)), max_size=25)
)
def test_captions_lie_inside_beside_each_other_and_hide_a_fifth_of_an_object_at_most(
    places: list[tuple[int, int, int, int]],
) -> None:
    boxes = [[float(x), float(y), float(min(x + w, 320)), float(min(y + h, 240))] for x, y, w, h in places]
    found = [one for one in placed(boxes, [("RBC 0.98", "0.98")] * len(boxes)) if one is not None]
    grounds = []
    for text, (left, top) in found:
        width, height = extent_of(text, FONT)
        grounds.append([left, top, left + width, top + height])
    for number, ground in enumerate(grounds):
        assert ground[0] >= 0
        assert ground[1] >= 0
        assert ground[2] <= SIZE[0]
        assert ground[3] <= SIZE[1]
        assert all(area_in_common(ground, other) == 0 for other in grounds[:number])
        for box in boxes:
            assert area_in_common(ground, box) <= 0.2 * (box[2] - box[0]) * (box[3] - box[1]) + 1e-6


def test_a_caption_stands_above_its_box_and_inside_a_box_that_fills_the_photo() -> None:
    height = extent_of("cat 0.98", FONT)[1]
    assert placed([[50, 50, 150, 150]], [("cat 0.98",)]) == [("cat 0.98", (50, 50 - height))]
    assert placed([[0, 0, 320, 240]], [("cat 0.98",)]) == [("cat 0.98", (0, 0))]
    assert placed([[50, 50, 150, 150]], [()]) == [None]


def test_where_the_long_words_do_not_fit_the_short_ones_stand_and_else_nothing() -> None:
    width = extent_of("0.98", FONT)[0]
    narrow = (int(width) + 1, 240)
    box = np.array([[0.0, 50, width, 150]])
    words = [("a long name 0.98", "0.98")]
    assert place_captions(box, words, FONT, narrow) == [("0.98", (0, 50 - extent_of("0.98", FONT)[1]))]
    assert place_captions(box, words, FONT, (int(width) - 1, 240)) == [None]


def test_the_first_box_has_the_first_choice() -> None:
    twice = [[50.0, 50, 150, 150], [50.0, 50, 150, 150]]
    first, second = placed(twice, [("cat 0.98",), ("dog 0.50",)])
    assert first is not None
    assert second is not None
    assert first == placed(twice[:1], [("cat 0.98",)])[0]
    assert second[1] != first[1]


def test_many_small_objects_get_small_captions_and_thin_lines() -> None:
    few, many = np.array([[0.0, 0, 600, 600]]), np.array([[10.0 * i, 0, 10 * i + 8, 8] for i in range(50)])
    sizes = [extent_of("x", font_for((800, 800), boxes))[1] for boxes in (many, few)]
    assert sizes[0] < sizes[1]
    photo = Image.new("RGB", (800, 800))
    boxes = torch.tensor([[100.0, 100, 110, 110], [300.0, 300, 600, 600]])
    ones = torch.tensor([1, 1])
    drawn = draw_detections(photo, Detections(boxes, torch.tensor([0.9, 0.8]), ones, ones, ("a", "b")))
    assert [drawn.getpixel(place) == colour_of(1) for place in ((100, 105), (102, 105), (300, 450), (302, 450))] == [
        True, False, True, True,
    ]  # fmt: skip


@pytest.mark.parametrize("top", [0, 0.4, 0.6, 10.4])
def test_captions_are_whole_between_pixels_and_at_the_photos_edge(top: float) -> None:
    def ink(at: float) -> int:
        photo = Image.new("RGB", (60, 40))
        write_caption(ImageDraw.Draw(photo), (2, at), "RBC", (0, 0, 200), FONT)
        return int((np.asarray(photo)[..., 0] > 120).sum())

    assert ink(top) == ink(5)
