"""Conversions between segment ids, colors, masks and boxes."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from detrkit.ops.segments import (
    MAX_ID,
    ids_to_masks,
    ids_to_rgb,
    masks_to_boxes,
    nonempty_masks,
    rgb_to_ids,
    unique_ids,
)


def test_ids_of_colors_are_red_plus_256_green_plus_65536_blue() -> None:
    pixels = torch.tensor([[[1, 2, 3], [255, 0, 0]], [[0, 255, 0], [255, 255, 255]]], dtype=torch.uint8)
    assert rgb_to_ids(pixels).tolist() == [[1 + 512 + 196_608, 255], [65_280, MAX_ID]]
    assert ids_to_rgb(torch.tensor([[70_000]], dtype=torch.int32)).tolist() == [[[112, 17, 1]]]


@given(st.lists(st.integers(0, MAX_ID), min_size=1, max_size=30))
def test_ids_encoded_as_colors_are_decoded_unchanged(numbers: list[int]) -> None:
    ids = torch.tensor([numbers], dtype=torch.int32)
    assert torch.equal(rgb_to_ids(ids_to_rgb(ids)), ids)


def test_masks_of_ids_equal_values_by_hand() -> None:
    ids = torch.tensor([[0, 5, 5], [9, 9, 0]], dtype=torch.int32)
    masks = ids_to_masks(ids, torch.tensor([9, 5, 1]))
    assert masks.int().tolist() == [[[0, 0, 0], [1, 1, 0]], [[0, 1, 1], [0, 0, 0]], [[0, 0, 0], [0, 0, 0]]]
    assert nonempty_masks(masks).tolist() == [True, True, False]
    assert unique_ids(ids) == {0, 5, 9}


def test_boxes_of_masks_include_the_last_pixel() -> None:
    masks = torch.zeros(4, 5, 7, dtype=torch.bool)
    masks[0, 2, 3] = True  # a single pixel has an area of one
    masks[1, 0, :] = True
    masks[2, :, 6] = True
    assert masks_to_boxes(masks).tolist() == [[3, 2, 4, 3], [0, 0, 7, 1], [6, 0, 7, 5], [0, 0, 0, 0]]
    assert masks_to_boxes(masks[:0]).shape == (0, 4)
    assert nonempty_masks(masks[:0]).tolist() == []


def test_boolean_arrays_with_bytes_other_than_one_are_read_as_true() -> None:
    """Arrays converted from binary Pillow images contain 255 instead of 1."""
    content = np.zeros((1, 3, 4), np.uint8)
    content[0, 1, 1], content[0, 1, 2] = 1, 255
    assert masks_to_boxes(torch.from_numpy(content.view(bool))).tolist() == [[1, 1, 3, 2]]


@pytest.mark.parametrize("seed", range(5))
def test_boxes_are_the_smallest_that_contain_their_masks(seed: int) -> None:
    torch.manual_seed(seed)
    masks = torch.rand(6, 9, 11) > 0.9
    for mask, (x1, y1, x2, y2) in zip(masks, masks_to_boxes(masks).int().tolist(), strict=True):
        outside = mask.clone()
        outside[y1:y2, x1:x2] = False
        assert not outside.any()
        edges = (mask[y1, :], mask[y2 - 1, :], mask[:, x1], mask[:, x2 - 1])
        assert not mask.any() or all(edge.any() for edge in edges)
