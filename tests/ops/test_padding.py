"""Padding of batches at the bottom and right, and padding masks of feature maps."""

import pytest
import torch

from detrkit.ops.padding import infer_stride, pad_to_batch, resize_padding_mask


def test_padded_images_are_at_the_top_left_and_padding_is_zero() -> None:
    batch, mask = pad_to_batch([torch.ones(3, 2, 5), torch.full((3, 4, 3), 2.0)])
    assert batch.shape == (2, 3, 4, 5)
    assert batch[0, 0].tolist() == [[1.0] * 5] * 2 + [[0.0] * 5] * 2
    assert mask[1].tolist() == [[False] * 3 + [True] * 2] * 4
    assert (batch.sum(1)[mask] == 0).all()


def test_padding_mask_by_stride_is_independent_of_the_batch_and_the_published_one_is_not() -> None:
    # an image of 800 rows has 25 cells of stride 32; in a batch of 810 rows, the published rescaling gives 26
    mask = torch.arange(810)[None, :, None].expand(1, 810, 810) >= 800
    assert (~resize_padding_mask(mask, (26, 26), stride=None))[:, :, 0].sum() == 26
    assert (~resize_padding_mask(mask, (26, 26), stride=32))[:, :, 0].sum() == 25


def test_padding_masks_are_equal_if_the_padded_side_is_a_multiple_of_the_stride() -> None:
    mask = torch.rand(2, 64, 96) > 0.5
    assert torch.equal(resize_padding_mask(mask, (2, 3), stride=32), resize_padding_mask(mask, (2, 3), stride=None))


@pytest.mark.parametrize("stride", [1, 4, 32, 128])
def test_stride_is_inferred_from_sizes_rounded_up_or_down(stride: int) -> None:
    for pixels in range(stride, 40 * stride, max(1, stride // 8)):
        assert infer_stride(pixels, -(-pixels // stride)) == stride
        if pixels >= 3 * stride:
            assert infer_stride(pixels, pixels // stride) == stride
