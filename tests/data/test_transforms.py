"""Properties of the transforms: boxes stay inside and in step with masks; flips undo themselves."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detrkit.data.synthetic import DrawingStyle, DrawnShapes
from detrkit.data.transforms import (
    RandomSizeCrop,
    TestTransform,
    TrainTransform,
    crop,
    flip,
    resized_size,
)
from detrkit.structures import Sample

DRAWN = [DrawnShapes(1, seed, DrawingStyle(size=48 + seed))[0] for seed in range(20)]
drawn = st.sampled_from(DRAWN)


def check_in_step(sample: Sample, slack: int = 3) -> None:
    """Boxes lie inside, have an area, and surround their masks within the rounding of two resizes."""
    height, width = sample.image.shape[1:]
    boxes, masks = sample.annotations.boxes, sample.annotations.masks
    assert masks is not None
    assert len(boxes) == len(masks) == len(sample.annotations.labels)
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] <= torch.tensor([width, height]) + 1e-3).all()
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    assert masks.shape[1:] == (height, width)
    for box, mask in zip(boxes, masks, strict=True):
        rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
        if len(rows):
            inner = torch.tensor([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
            assert (inner[:2] >= box[:2].floor() - slack).all()
            assert (inner[2:] <= box[2:].ceil() + slack).all()


@given(drawn)
def test_flip_undoes_itself(sample: Sample) -> None:
    twice = flip(flip(sample))
    assert torch.equal(twice.image, sample.image)
    torch.testing.assert_close(twice.annotations.boxes, sample.annotations.boxes)
    check_in_step(flip(sample))


@settings(max_examples=30, deadline=None)
@given(drawn, st.integers(0, 10_000), st.sampled_from([64, 120, 200]))
def test_the_train_pipeline_keeps_boxes_in_step(sample: Sample, seed: int, size: int) -> None:
    torch.manual_seed(seed)
    transformed = TrainTransform(size)(sample)
    check_in_step(transformed)
    assert transformed.original_size == sample.original_size
    assert max(transformed.image.shape[1:]) <= round(1333 * size / 800) + 1


@given(drawn, st.integers(0, 10_000))
def test_a_crop_larger_than_the_photo_keeps_all_of_it(sample: Sample, seed: int) -> None:
    torch.manual_seed(seed)
    cropped = RandomSizeCrop(384, 600)(sample)
    assert torch.equal(cropped.image, sample.image)
    torch.testing.assert_close(cropped.annotations.boxes, sample.annotations.boxes)


def test_crop_drops_what_lies_outside() -> None:
    sample = DrawnShapes(1, 0)[0]
    x1, y1, x2, y2 = (int(v) for v in sample.annotations.boxes[0].tolist())
    inside = crop(sample, y1, x1, y2 - y1, x2 - x1)
    assert inside.annotations.boxes[0].tolist() == [0, 0, x2 - x1, y2 - y1]
    beside = crop(sample, 0, 0, 1, 1)
    assert len(beside.annotations.boxes) == len(beside.annotations.labels) == 0


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(32, 1000))
def test_resized_sizes_respect_the_limit(height: int, width: int, short_side: int) -> None:
    limit = short_side * 5 // 3
    resized = resized_size((height, width), short_side, limit)
    assert min(resized) >= 0
    assert max(resized) <= limit + 1 or max(resized) * min(height, width) <= limit * max(height, width)


def test_the_papers_sizes_scale_together() -> None:
    assert TestTransform().image_size == 800
    sample = DrawnShapes(1, 0, DrawingStyle(size=64))[0]
    assert tuple(TestTransform(200)(sample).image.shape[1:]) == (200, 200)


def test_a_photo_that_is_little_more_than_a_line_stays_small() -> None:
    assert resized_size((1, 170_000_000), 800, 1333) == (1, 1333)
    assert resized_size((20_000, 2), 800, 1333) == (1333, 1)
