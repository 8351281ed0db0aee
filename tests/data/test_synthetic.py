"""Synthetic images: exact boxes, variety, reproducibility."""

import pytest
import torch

from detrkit.data.synthetic import SHAPES, SyntheticShapes, SyntheticStyle


def test_sample_depends_on_seed_and_index_only() -> None:
    first, second = SyntheticShapes(10, seed=3), SyntheticShapes(5, seed=3)
    assert torch.equal(first[4].image, second[4].image)
    assert not torch.equal(first[4].image, first[5].image)
    assert not torch.equal(first[4].image, SyntheticShapes(5, seed=4)[4].image)
    with pytest.raises(IndexError):
        second[5]


def test_boxes_surround_the_visible_pixels() -> None:
    for sample in SyntheticShapes(30, seed=0).draw_all():
        masks = sample.annotations.masks
        assert masks is not None
        assert (masks.sum(0) <= 1).all()  # a pixel shows one shape
        for box, mask in zip(sample.annotations.boxes.int().tolist(), masks, strict=True):
            x1, y1, x2, y2 = box
            assert mask[y1:y2, x1:x2].sum() == mask.sum() > 0
            assert mask[y1, x1:x2].any()
            assert mask[y2 - 1, x1:x2].any()
            assert mask[y1:y2, x1].any()
            assert mask[y1:y2, x2 - 1].any()


def test_samples_vary() -> None:
    samples = SyntheticShapes(200, seed=1, style=SyntheticStyle(size=64)).draw_all()
    counts = {len(sample.annotations.labels) for sample in samples}
    labels = torch.cat([sample.annotations.labels for sample in samples])
    assert counts == {1, 2, 3, 4, 5, 6}
    assert labels.bincount(minlength=len(SHAPES)).min() > 0.15 * len(labels)
    overlaps = 0
    for sample in samples:
        boxes = sample.annotations.boxes
        corner = torch.minimum(boxes[:, None, 2:], boxes[:, 2:]) - torch.maximum(boxes[:, None, :2], boxes[:, :2])
        overlaps += int((corner.clamp(min=0).prod(-1) > 0).sum() > len(boxes))
    assert overlaps > 20
