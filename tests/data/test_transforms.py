"""Geometric transforms: boxes stay inside the image and match the masks; results equal torchvision's."""

from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from detrkit.data.batching import collate
from detrkit.data.dataset import unannotated
from detrkit.data.synthetic import SyntheticShapes, SyntheticStyle
from detrkit.data.transforms.geometry import (
    CropParams,
    EvalTransform,
    Interpolation,
    RandomOrientation,
    RandomSizeCrop,
    TrainTransform,
    crop,
    horizontal_flip,
    image_size,
    resize,
    resize_masks,
    resized_size,
    rotate90,
    vertical_flip,
)
from detrkit.structures import Annotations, Sample

DRAWN = [SyntheticShapes(1, seed, SyntheticStyle(size=48 + seed))[0] for seed in range(20)]
drawn = st.sampled_from(DRAWN)


def check_consistent(sample: Sample, slack: int = 3) -> None:
    """Check that boxes are inside the image, have an area, and surround their masks up to the rounding of two resizes."""
    height, width = sample.image.shape[1:]
    boxes, masks = sample.annotations.boxes, sample.annotations.masks
    assert masks is not None
    assert len(boxes) == len(masks) == len(sample.annotations.labels)
    assert (boxes[:, :2] >= -1e-3).all()
    assert (boxes[:, 2:] <= torch.tensor([width, height]) + 1e-3).all()
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    assert masks.shape[1:] == (height, width)
    for box, mask in zip(boxes, masks, strict=True):
        rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
        if len(rows):
            inner = torch.tensor([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
            assert (inner[:2] >= box[:2].floor() - slack).all()
            assert (inner[2:] <= box[2:].ceil() + slack).all()


@settings(deadline=None)
@given(drawn)
def test_flipping_twice_restores_the_sample(sample: Sample) -> None:
    twice = horizontal_flip(horizontal_flip(sample))
    assert torch.equal(twice.image, sample.image)
    torch.testing.assert_close(twice.annotations.boxes, sample.annotations.boxes)
    check_consistent(horizontal_flip(sample))


def test_vertical_flip_moves_boxes_and_masks() -> None:
    sample = DRAWN[3]
    turned = RandomOrientation(horizontal_flip=0, vertical_flip=1)(sample)
    height = sample.image.shape[1]
    left, top, right, bottom = sample.annotations.boxes.unbind(1)
    expected = torch.stack([left, height - bottom, right, height - top], dim=1)
    torch.testing.assert_close(turned.annotations.boxes, expected)
    assert torch.equal(turned.image, sample.image.flip(1))
    check_consistent(turned)
    assert RandomOrientation(horizontal_flip=0)(sample) is sample
    torch.manual_seed(0)
    halves = [RandomOrientation(horizontal_flip=0, vertical_flip=0.5)(sample) is sample for _ in range(100)]
    assert 30 < sum(halves) < 70


@settings(deadline=None)
@given(drawn)
def test_rotate90_moves_the_right_side_to_the_top(sample: Sample) -> None:
    turned = rotate90(sample)
    width = sample.image.shape[2]
    assert torch.equal(turned.image[:, 0], sample.image[:, :, -1])
    assert turned.image.permute(1, 2, 0).is_contiguous()
    left, top, right, bottom = sample.annotations.boxes.unbind(1)
    expected = torch.stack([top, width - right, bottom, width - left], dim=1)
    assert torch.equal(turned.annotations.boxes, expected)
    check_consistent(turned)
    twice, half = rotate90(turned), vertical_flip(horizontal_flip(sample))
    assert torch.equal(twice.image, half.image)
    torch.testing.assert_close(twice.annotations.boxes, half.annotations.boxes)
    whole = rotate90(rotate90(twice))
    assert torch.equal(whole.image, sample.image)
    torch.testing.assert_close(whole.annotations.boxes, sample.annotations.boxes)


def test_images_of_a_batch_rotate_together() -> None:
    nothing = Annotations(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    sample = Sample(torch.zeros(3, 60, 100, dtype=torch.uint8), nothing, 1, (60, 100))
    transform = TrainTransform(80, 0.0, RandomOrientation(horizontal_flip=0, rotate90=0.5))
    turned = 0
    for seed in range(100):
        torch.manual_seed(seed)
        params = CropParams.sample()
        shapes = {transform(sample, params).image.shape for _ in range(2)}
        assert len(shapes) == 1
        _, height, width = shapes.pop()
        turned += height > width
    assert 30 < turned < 70
    assert RandomOrientation(horizontal_flip=0, rotate90=1)(sample).image.shape == (3, 100, 60)


@settings(max_examples=30, deadline=None)
@given(drawn, st.integers(0, 10_000), st.sampled_from([64, 120, 200]))
def test_train_transform_keeps_boxes_consistent_with_masks(sample: Sample, seed: int, size: int) -> None:
    torch.manual_seed(seed)
    transformed = TrainTransform(size)(sample)
    check_consistent(transformed)
    assert transformed.original_size == sample.original_size
    assert max(transformed.image.shape[1:]) <= round(1333 * size / 800) + 1


@given(drawn, st.integers(0, 10_000))
def test_crop_larger_than_the_image_keeps_it(sample: Sample, seed: int) -> None:
    torch.manual_seed(seed)
    cropped = RandomSizeCrop(384, 600)(sample)
    assert torch.equal(cropped.image, sample.image)
    torch.testing.assert_close(cropped.annotations.boxes, sample.annotations.boxes)


def test_crop_drops_objects_outside() -> None:
    sample = SyntheticShapes(1, 0)[0]
    x1, y1, x2, y2 = (int(v) for v in sample.annotations.boxes[0].tolist())
    inside = crop(sample, y1, x1, y2 - y1, x2 - x1)
    assert inside.annotations.boxes[0].tolist() == [0, 0, x2 - x1, y2 - y1]
    corner = crop(sample, 0, 0, 1, 1)
    assert len(corner.annotations.boxes) == len(corner.annotations.labels) == 0


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(32, 1000))
def test_resized_size_respects_the_maximum(height: int, width: int, short_side: int) -> None:
    limit = short_side * 5 // 3
    resized = resized_size((height, width), short_side, limit)
    ratio = max(height, width) / min(height, width)
    if short_side * ratio > limit:  # the shorter side is rounded, and the longer follows it
        assert abs(max(resized) - limit) <= ratio / 2 + 1
        assert min(resized) >= 1
    else:
        assert min(resized) == short_side
        assert abs(max(resized) - short_side * ratio) <= 1
    assert (resized[0] > resized[1]) <= (height > width)
    assert (resized[0] < resized[1]) <= (height < width)


def test_eval_transform_scales_with_the_image_size() -> None:
    assert EvalTransform().image_size == 800
    sample = SyntheticShapes(1, 0, SyntheticStyle(size=64))[0]
    assert tuple(EvalTransform(200)(sample).image.shape[1:]) == (200, 200)


def panorama(height: int, width: int) -> Sample:
    nothing = Annotations(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    return Sample(torch.zeros(3, height, width, dtype=torch.uint8), nothing, 1, (height, width))


def test_maximum_of_the_long_side_scales_with_the_image_size() -> None:
    assert tuple(EvalTransform(80)(panorama(100, 1000)).image.shape[1:]) == (13, 130)
    params = CropParams(crop=0.5, size_before=0.5, height=0.5, width=0.5, size_after=0.999, rotation=1.0)
    largest = TrainTransform(80, crop_probability=0.0)(panorama(100, 1000), params)
    assert tuple(largest.image.shape[1:]) == (13, 130)
    # before cropping, at most four times as long: a line stays a line
    cut = TrainTransform(80, crop_probability=1.0)(panorama(10, 4000), params)
    assert min(cut.image.shape[1:]) < 10


def test_crop_sides_cover_the_whole_range() -> None:
    image = panorama(40, 40)
    assert tuple(RandomSizeCrop(10, 20)(image, (0.0, 0.9999)).image.shape[1:]) == (10, 20)
    torch.manual_seed(0)
    sides = {side for _ in range(100) for side in RandomSizeCrop(10, 12)(image).image.shape[1:]}
    assert sides == {10, 11, 12}


def test_image_is_resized_before_and_after_cropping() -> None:
    box = Annotations(torch.tensor([[100.0, 100, 300, 300]]), torch.zeros(1, dtype=torch.int64))
    sample = replace(panorama(400, 400), annotations=box)
    params = CropParams(crop=0.0, size_before=0.0, height=0.0, width=0.0, size_after=0.999, rotation=1.0)
    cut = TrainTransform(80, crop_probability=1.0)(sample, params)
    assert tuple(cut.image.shape[1:]) == (80, 80)
    # 400 px become 40, of which 38 are kept and become 80; half of the image is 20 of them
    left, top, right, bottom = cut.annotations.boxes[0].tolist()
    assert abs(right - left - 20 * 80 / 38) < 1e-3
    assert abs(bottom - top - 20 * 80 / 38) < 1e-3


def test_image_of_one_pixel_height_stays_small() -> None:
    assert resized_size((1, 170_000_000), 800, 1333) == (1, 1333)
    assert resized_size((20_000, 2), 800, 1333) == (1333, 1)


def test_masks_are_resized_by_nearest_neighbor() -> None:
    torch.manual_seed(0)
    for count, size in ((1, (31, 40)), (8, (9, 80)), (19, (50, 13)), (3, (20, 30))):
        masks = torch.rand(count, 20, 30) > 0.4
        expected = F.interpolate(masks[None].float(), size, mode="nearest")[0] > 0
        assert torch.equal(resize_masks(masks, size), expected)
    assert resize_masks(masks[:0], (5, 6)).shape == (0, 5, 6)
    part = masks[:, 3:17, 5:]  # a view, as crops are
    assert torch.equal(resize_masks(part, (28, 50)), F.interpolate(part[None].float(), (28, 50))[0] > 0)


def test_mask_too_thin_for_nearest_neighbor_is_kept() -> None:
    masks = torch.zeros(2, 60, 60, dtype=torch.bool)
    masks[0, 5:50, 7] = True  # column 7 is nearest to none of 12
    assert not F.interpolate(masks[None].float(), (12, 12)).any()
    small = resize_masks(masks, (12, 12))
    assert small[0].nonzero().unique(dim=0).tolist() == [[row, 1] for row in range(1, 10)]
    assert not small[1].any(), "an empty mask stays empty"


def test_cut_object_gets_the_box_of_its_remaining_mask() -> None:
    """An L, a frame and a whole square, by hand."""
    masks = torch.zeros(3, 20, 20, dtype=torch.bool)
    masks[0, 2:18, 2:4] = masks[0, 16:18, 2:18] = True
    masks[1, 0:20, 19] = masks[1, 0, :] = True
    masks[2, 11:14, 6:9] = True
    boxes = torch.tensor([[2.0, 2, 18, 18], [0, 0, 20, 20], [6.25, 11, 9, 14]])
    sample = Sample(torch.zeros(3, 20, 20, dtype=torch.uint8), Annotations(boxes, torch.arange(3), masks), 1, (20, 20))
    cropped = crop(sample, 10, 5, 10, 10)
    # only the foot of the L is inside, nothing of the frame; an object that is not cut keeps its box
    assert cropped.annotations.labels.tolist() == [0, 2]
    assert cropped.annotations.boxes.tolist() == [[0, 6, 10, 8], [1.25, 1, 4, 4]]
    assert cropped.annotations.masks is not None
    assert torch.equal(cropped.annotations.masks, masks[[0, 2], 10:20, 5:15])
    without = replace(sample, annotations=replace(sample.annotations, masks=None))
    assert crop(without, 10, 5, 10, 10).annotations.boxes[:2].tolist() == [[0, 0, 10, 8], [0, 0, 10, 10]]


def test_targets_hold_masks_of_their_size_without_the_cropped_storage() -> None:
    large, small = (SyntheticShapes(1, 0, SyntheticStyle(size=size))[0] for size in (64, 48))
    batch = collate([crop(large, 0, 0, 40, 60), small])
    first, second = (target.masks for target in batch.targets)
    assert first is not None
    assert second is not None
    assert first.dtype == torch.bool
    assert (first.shape[1:], second.shape[1:]) == ((40, 60), (48, 48))
    assert first.untyped_storage().nbytes() == first.numel()


@settings(max_examples=40, deadline=None)
@given(drawn, st.integers(0, 10_000))
def test_results_equal_those_of_torchvision(sample: Sample, seed: int) -> None:
    from torchvision import tv_tensors
    from torchvision.transforms.v2 import functional as reference

    generator = torch.Generator().manual_seed(seed)
    height, width = image_size(sample)
    new_height, new_width, top, left = torch.randint(1, 40, (4,), generator=generator).tolist()
    assume((new_height, new_width) != (1, 1))  # which torchvision does not support for three channels
    size, part = (new_height, new_width), (top, left, height - top, width - left)
    channels_last = seed % 2 == 0
    image = sample.image.permute(1, 2, 0).contiguous().permute(2, 0, 1) if channels_last else sample.image.contiguous()
    sample = replace(sample, image=image, annotations=replace(sample.annotations, masks=None))
    boxes = tv_tensors.BoundingBoxes(sample.annotations.boxes, format="XYXY", canvas_size=(height, width))  # type: ignore[call-overload]
    for own, expected in (
        (resize(sample, size), lambda x: reference.resize(x, list(size), antialias=True)),
        (horizontal_flip(sample), reference.horizontal_flip),
        (vertical_flip(sample), reference.vertical_flip),
        (crop(sample, *part), lambda x: reference.crop(x, *part)),
    ):
        pixels = expected(image)
        assert torch.equal(own.image, pixels)
        assert own.image.stride() == pixels.stride()
        theirs = expected(boxes).as_subclass(torch.Tensor)
        assert torch.equal(own.annotations.boxes, theirs[(theirs[:, 2:] > theirs[:, :2]).all(1)])


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_image_is_resized_to_a_single_pixel(interpolation: Interpolation, channels: int) -> None:
    image = torch.full((channels, 24, 32), 77, dtype=torch.uint8)
    resized = resize(unannotated(image), (1, 1), interpolation)
    assert resized.image.flatten().tolist() == [77] * channels
