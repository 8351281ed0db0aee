"""Boxes, masks and panoptic segments drawn on images."""

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from detrkit.structures import Detections, PanopticSegment, PanopticSegments
from detrkit.visualization.draw import color_of, draw_boxes, draw_detections, draw_masks, draw_segments
from detrkit.visualization.figures import DrawnBox, show_box


def test_small_boxes_have_thin_lines() -> None:
    boxes, ones = torch.tensor([[100.0, 100, 110, 110], [300.0, 300, 600, 600]]), torch.tensor([1, 1])
    detections = Detections(boxes, torch.tensor([0.9, 0.8]), ones, ones, ("a", "b"))
    drawn = draw_detections(Image.new("RGB", (800, 800)), detections)
    is_line = [drawn.getpixel(place) == color_of(1) for place in ((100, 105), (102, 105), (300, 450), (302, 450))]
    assert is_line == [True, False, True, True]


def test_segments_are_coloured_and_other_pixels_unchanged() -> None:
    ids = torch.zeros(60, 90, dtype=torch.int32)
    ids[:30, :40] = 1
    ids[:30, 40:80] = 2
    segments = tuple(PanopticSegment(number, 0, 3, True, 0.9, 1200, "cat") for number in (1, 2))
    image = Image.new("RGB", (90, 60), "grey")
    drawn = np.asarray(draw_segments(image, PanopticSegments(ids, segments)))
    assert (drawn[40:, :] == 128).all()
    assert (drawn[2, 2] != 128).any()
    assert (drawn[2, 2] != drawn[2, 60]).any(), "two cats have different shades"
    assert np.asarray(image).min() == 128, "the image itself is not changed"


def test_first_mask_is_on_top() -> None:
    masks = np.zeros((2, 10, 10), dtype=bool)
    masks[0, 2:5, 2:5] = masks[1] = True
    drawn = np.asarray(draw_masks(Image.new("RGB", (10, 10)), masks, [(255, 0, 0), (0, 255, 0)]))
    alone = np.asarray(draw_masks(Image.new("RGB", (10, 10)), masks[:1], [(255, 0, 0)]))
    assert (drawn[3, 3] == alone[3, 3]).all()
    assert (drawn[8, 8] != drawn[3, 3]).any()


@pytest.mark.parametrize("background", [*(color_of(number) for number in range(6)), (0, 0, 0), (255, 255, 255)])
@pytest.mark.parametrize("number", range(6))
def test_boxes_are_visible_on_any_colour(background: tuple[int, int, int], number: int) -> None:
    drawn = draw_boxes(Image.new("RGB", (300, 300), background), [[50.0, 50, 250, 250]], [number], [()])
    across = np.asarray(drawn, dtype=int)[150, 40:60]  # the left side of the box
    luminance = across @ np.array([0.299, 0.587, 0.114])
    assert np.ptp(luminance) > 80


def test_ground_truth_is_dashed_and_named_below_detections() -> None:
    image, empty = Image.new("RGB", (300, 300), "grey"), torch.zeros(0, dtype=torch.int64)
    nothing = Detections(torch.zeros(0, 4), torch.zeros(0), empty, empty, ())
    drawn = np.asarray(draw_detections(image, nothing, [[50.0, 100, 250, 250]], ["cat"]))
    side = drawn[110:240, 50]
    assert {tuple(pixel) for pixel in side.tolist()} == {(255, 255, 255), (0, 0, 0)}
    assert (drawn[80:99, 50:70] == 255).all(2).any(), "a caption on white above the box"
    ones = torch.tensor([1])
    found = Detections(torch.tensor([[50.0, 100, 250, 250]]), torch.tensor([0.9]), ones, ones, ("cat",))
    over = np.asarray(draw_detections(image, found, [[50.0, 100, 250, 250]], ["cat"]))
    assert tuple(over[175, 50]) == color_of(1)


@pytest.mark.parametrize("left", [0.0, 30.0, 71.0, 96.0])
def test_caption_of_a_box_in_a_figure_is_inside_the_image(left: float) -> None:
    figure = Figure(figsize=(4, 4))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 100), ylim=(100, 0))
    show_box(axes, DrawnBox((left, 50.0, 99.0, 80.0), "scissors", (200, 0, 0)))
    drawn = axes.texts[0].get_window_extent()
    assert axes.bbox.x0 <= drawn.x0
    assert drawn.x1 <= axes.bbox.x1
