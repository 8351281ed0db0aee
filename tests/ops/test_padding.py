"""Padding at the bottom and on the right, and its mask at the stride of the features."""

import pytest
import torch

from detrkit.ops.padding import pad_to_batch, padding_mask_at, stride_of


def test_images_lie_at_the_top_left_and_the_rest_is_zero() -> None:
    batch, mask = pad_to_batch([torch.ones(3, 2, 5), torch.full((3, 4, 3), 2.0)])
    assert batch.shape == (2, 3, 4, 5)
    assert batch[0, 0].tolist() == [[1.0] * 5] * 2 + [[0.0] * 5] * 2
    assert mask[1].tolist() == [[False] * 3 + [True] * 2] * 4
    assert (batch.sum(1)[mask] == 0).all()


def test_rounded_mask_depends_on_the_batch_and_exact_mask_does_not() -> None:
    # a photo of 800 rows has 25 cells of 32; in a batch of 810 rows the published rounding gives it 26
    mask = torch.arange(810)[None, :, None].expand(1, 810, 810) >= 800
    assert (~padding_mask_at(mask, (26, 26), stride=None))[:, :, 0].sum() == 26
    assert (~padding_mask_at(mask, (26, 26), stride=32))[:, :, 0].sum() == 25


def test_both_agree_where_the_padded_side_is_a_multiple_of_the_stride() -> None:
    mask = torch.rand(2, 64, 96) > 0.5
    assert torch.equal(padding_mask_at(mask, (2, 3), stride=32), padding_mask_at(mask, (2, 3), stride=None))


@pytest.mark.parametrize("stride", [1, 4, 32, 128])
def test_the_stride_of_a_map_is_told_from_its_size_rounded_up_or_down(stride: int) -> None:
    for pixels in range(stride, 40 * stride, max(1, stride // 8)):
        assert stride_of(pixels, -(-pixels // stride)) == stride
        if pixels >= 3 * stride:
            assert stride_of(pixels, pixels // stride) == stride
