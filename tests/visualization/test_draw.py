"""Boxes, masks and panoptic segments drawn on images."""

import numpy as np
import torch
from PIL import Image

from detrkit.structures import Detections, PanopticSegment, PanopticSegments
from detrkit.visualization.draw import color_of, draw_detections, draw_masks, draw_segments


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
