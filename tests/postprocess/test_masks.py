"""Resized and binary masks, by hand and compared with golden numbers of the published code."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from detrkit.ops.masks import binarize_masks, resize_mask_logits, resize_nearest
from detrkit.postprocess.masks import reference_instance_masks


def test_reference_instance_masks_equal_the_published_ones_exactly(shared: Path) -> None:
    golden = np.load(shared / "golden" / "postprocess_masks.npz")
    sizes = [tuple(size) for size in golden["processed_sizes"].tolist()]
    padded = (max(height for height, _ in sizes), max(width for _, width in sizes))
    for image, (processed, original) in enumerate(zip(sizes, golden["original_sizes"].tolist(), strict=True)):
        logits = torch.from_numpy(golden["pred_masks"][image])
        masks = reference_instance_masks(logits, padded, processed, tuple(original))
        packed = golden[f"instance_masks_image{image}_packed"]
        assert golden[f"instance_masks_image{image}_shape"].tolist() == [12, 1, *original]
        np.testing.assert_array_equal(np.packbits(masks.numpy()), packed)


def test_corrected_masks_overlap_the_published_ones_by_90_percent(shared: Path) -> None:
    golden = np.load(shared / "golden" / "postprocess_masks.npz")
    logits = torch.from_numpy(golden["pred_masks"][0])
    corrected = binarize_masks(logits, (160, 208), (160, 208), (321, 417))
    published = reference_instance_masks(logits, (160, 208), (160, 208), (321, 417))
    overlap = (corrected & published).sum((1, 2)) / (corrected | published).sum((1, 2)).clamp(min=1)
    assert (overlap[published.sum((1, 2)) > 2000] > 0.9).all()


def test_masks_without_padding_are_resized_as_by_torch() -> None:
    logits = torch.randn(3, 8, 12, generator=torch.Generator().manual_seed(0))
    expected = F.interpolate(logits[None], (32, 48), mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(resize_mask_logits(logits, (32, 48), (32, 48), (32, 48)), expected)


def test_resized_masks_are_independent_of_the_padding() -> None:
    """A ramp has the same values for every size of the batch."""
    ramp = torch.arange(12.0).expand(1, 8, 12) * 4 + 2  # x of the center of each cell, in pixels of the padded image
    ramp = ramp.clone()
    ramp[:, :, 8:] = torch.arange(8.0, 12.0) * 4 + 2
    alone = resize_mask_logits(ramp[:, :6, :8], (24, 32), (24, 32), (48, 64))
    padded = resize_mask_logits(ramp, (32, 48), (24, 32), (48, 64))
    # pixel 5 of 64 is at (5 + 0.5) / 2 pixels of the processed image
    assert padded[0, 20, 5] == pytest.approx(5.5 / 2, abs=1e-5)
    torch.testing.assert_close(padded[..., 4:-4, 4:-4], alone[..., 4:-4, 4:-4])


def test_threshold_of_binary_masks_is_a_probability() -> None:
    logits = torch.tensor([-2.0, 0.0, 2.0]).view(3, 1, 1).expand(3, 4, 4)
    binary = [
        binarize_masks(logits, (4, 4), (4, 4), (4, 4), threshold)[:, 0, 0].tolist() for threshold in (0.1, 0.5, 0.9)
    ]
    assert binary == [[True, True, True], [False, False, True], [False, False, False]]


def test_masks_computed_in_chunks_equal_those_computed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(5, 8, 8, generator=torch.Generator().manual_seed(1))
    whole = binarize_masks(logits, (32, 32), (30, 28), (60, 57))
    monkeypatch.setattr("detrkit.ops.masks.MAX_PIXELS_PER_CHUNK", 1)
    assert torch.equal(binarize_masks(logits, (32, 32), (30, 28), (60, 57)), whole)


@pytest.mark.parametrize(
    ("before", "after"), [((7, 5), (21, 4)), ((160, 208), (321, 417)), ((97, 3), (50, 1)), ((1, 1), (3, 2))]
)
def test_resized_ids_equal_those_of_pillow(before: tuple[int, int], after: tuple[int, int]) -> None:
    ids = torch.arange(before[0] * before[1], dtype=torch.int32).view(before)
    expected = Image.fromarray(ids.numpy()).resize((after[1], after[0]), Image.Resampling.NEAREST)
    assert np.array_equal(resize_nearest(ids, after).numpy(), np.asarray(expected))
