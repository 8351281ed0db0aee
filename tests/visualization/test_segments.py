"""Pictures of segments: every one in its colour, nothing else touched."""

import numpy as np
import torch
from PIL import Image

from detrkit.structures import PanopticSegment, PanopticSegments
from detrkit.visualization.mask_overlay import draw_masks
from detrkit.visualization.segments import draw_segments


def test_segments_are_coloured_and_the_rest_is_left_alone() -> None:
    ids = torch.zeros(60, 90, dtype=torch.int32)
    ids[:30, :40] = 1
    ids[:30, 40:80] = 2
    segments = tuple(PanopticSegment(number, 0, 3, True, 0.9, 1200, "cat") for number in (1, 2))
    photo = Image.new("RGB", (90, 60), "grey")
    picture = np.asarray(draw_segments(photo, PanopticSegments(ids, segments)))
    assert (picture[40:, :] == 128).all()  # no segment there
    assert (picture[2, 2] != 128).any()
    assert (picture[2, 2] != picture[2, 60]).any()  # two cats, two shades
    assert np.asarray(photo).min() == 128  # the photo is not drawn on


def test_the_first_mask_lies_on_top() -> None:
    masks = np.zeros((2, 10, 10), dtype=bool)
    masks[0, 2:5, 2:5] = masks[1] = True
    picture = np.asarray(draw_masks(Image.new("RGB", (10, 10)), masks, [(255, 0, 0), (0, 255, 0)]))
    alone = np.asarray(draw_masks(Image.new("RGB", (10, 10)), masks[:1], [(255, 0, 0)]))
    assert (picture[3, 3] == alone[3, 3]).all()
    assert (picture[8, 8] != picture[3, 3]).any()
