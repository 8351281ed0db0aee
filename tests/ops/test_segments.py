"""Ids, colours, masks and boxes of segments: exact by hand, and undone by their inverses."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from detrkit.ops.segments import LARGEST_ID, have_pixels, ids_in, ids_to_masks, ids_to_rgb, masks_to_boxes, rgb_to_ids


def test_ids_are_red_plus_256_green_plus_65536_blue() -> None:
    pixels = torch.tensor([[[1, 2, 3], [255, 0, 0]], [[0, 255, 0], [255, 255, 255]]], dtype=torch.uint8)
    assert rgb_to_ids(pixels).tolist() == [[1 + 512 + 196_608, 255], [65_280, LARGEST_ID]]
    assert ids_to_rgb(torch.tensor([[70_000]], dtype=torch.int32)).tolist() == [[[112, 17, 1]]]


@given(st.lists(st.integers(0, LARGEST_ID), min_size=1, max_size=30))
def test_colours_hold_every_id(numbers: list[int]) -> None:
    ids = torch.tensor([numbers], dtype=torch.int32)
    assert torch.equal(rgb_to_ids(ids_to_rgb(ids)), ids)


def test_masks_of_ids() -> None:
    ids = torch.tensor([[0, 5, 5], [9, 9, 0]], dtype=torch.int32)
    masks = ids_to_masks(ids, torch.tensor([9, 5, 1]))
    assert masks.int().tolist() == [[[0, 0, 0], [1, 1, 0]], [[0, 1, 1], [0, 0, 0]], [[0, 0, 0], [0, 0, 0]]]
    assert have_pixels(masks).tolist() == [True, True, False]
    assert ids_in(ids) == {0, 5, 9}


def test_a_box_holds_its_mask_s_last_pixel() -> None:
    masks = torch.zeros(4, 5, 7, dtype=torch.bool)
    masks[0, 2, 3] = True  # a single pixel has an area of one
    masks[1, 0, :] = True
    masks[2, :, 6] = True
    assert masks_to_boxes(masks).tolist() == [[3, 2, 4, 3], [0, 0, 7, 1], [6, 0, 7, 5], [0, 0, 0, 0]]
    assert masks_to_boxes(masks[:0]).shape == (0, 4)
    assert have_pixels(masks[:0]).tolist() == []


def test_any_byte_but_zero_is_true() -> None:
    """Pillow's arrays of bits hold 255; those of torch 1."""
    content = np.zeros((1, 3, 4), np.uint8)
    content[0, 1, 1], content[0, 1, 2] = 1, 255
    assert masks_to_boxes(torch.from_numpy(content.view(bool))).tolist() == [[1, 1, 3, 2]]


@pytest.mark.parametrize("seed", range(5))
def test_boxes_are_the_smallest_that_hold_their_masks(seed: int) -> None:
    torch.manual_seed(seed)
    masks = torch.rand(6, 9, 11) > 0.9
    for mask, (x1, y1, x2, y2) in zip(masks, masks_to_boxes(masks).int().tolist(), strict=True):
        outside = mask.clone()
        outside[y1:y2, x1:x2] = False
        assert not outside.any()
        edges = (mask[y1, :], mask[y2 - 1, :], mask[:, x1], mask[:, x2 - 1])
        assert not mask.any() or all(edge.any() for edge in edges)
