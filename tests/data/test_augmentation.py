"""Augmentation: any sequence of transforms keeps boxes consistent with masks; strong augmentation by hand."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detrkit.config.training import TrainingConfig
from detrkit.data.dataset import SampleDataset
from detrkit.data.loaders import train_loader
from detrkit.data.samplers import BatchGrouping, SampleKey
from detrkit.data.synthetic import SyntheticShapes, SyntheticStyle
from detrkit.data.transforms.augmentation import (
    AugmentedDataset,
    MixUp,
    Mosaic,
    PhotometricDistortion,
    ScaleJitter,
    StrongAugmentation,
    _fill,
)
from detrkit.data.transforms.geometry import (
    EvalTransform,
    RandomOrientation,
    RandomResize,
    RandomSizeCrop,
    TrainTransform,
    horizontal_flip,
)
from detrkit.data.transforms.preprocessing import StretchTransform
from detrkit.data.transforms.torchvision_ops import GridMosaic, iou_crop, zoom_out
from detrkit.structures import Annotations, Normalization, Sample
from tests.data.test_transforms import DRAWN, check_consistent


def mosaic(sample: Sample) -> Sample:
    return Mosaic(96)([sample, *DRAWN[:3]])


def zoomed_out(sample: Sample) -> Sample:
    return zoom_out(sample, 96)


def mixup(sample: Sample) -> Sample:
    return MixUp()(sample, DRAWN[4])


TRANSFORMS: list[Callable[[Sample], Sample]] = [
    horizontal_flip,
    RandomOrientation(),
    RandomResize((40, 64, 90), 120),
    RandomSizeCrop(24, 60),
    EvalTransform(72),
    TrainTransform(80),
    PhotometricDistortion(),
    ScaleJitter(64, 0.3, 2.0),
    mosaic,
    zoomed_out,
    iou_crop,
    mixup,
]


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(DRAWN), st.lists(st.sampled_from(TRANSFORMS), max_size=5), st.integers(0, 10_000))
def test_any_sequence_keeps_boxes_consistent_with_masks(
    sample: Sample, sequence: list[Callable[[Sample], Sample]], seed: int
) -> None:
    torch.manual_seed(seed)
    before = sample.image.clone(), sample.annotations.boxes.clone()
    changed = sample
    for transform in sequence:
        changed = transform(changed)
    assert changed.annotations.masks is not None
    assert len(changed.annotations.boxes) == len(changed.annotations.labels) == len(changed.annotations.masks)
    check_consistent(changed, slack=3 * max(1, len(sequence)))
    assert torch.equal(sample.image, before[0])
    assert torch.equal(sample.annotations.boxes, before[1])
    assert (changed.image_id, changed.original_size) == (sample.image_id, sample.original_size)


def plain(value: int, box: list[float], size: tuple[int, int] = (10, 10)) -> Sample:
    image = torch.full((3, *size), value, dtype=torch.uint8)
    return Sample(image, Annotations(torch.tensor([box]), torch.tensor([value])), value, size)


def test_mixup_blends_images_and_keeps_all_objects() -> None:
    torch.manual_seed(0)
    mixed = MixUp()(plain(100, [1.0, 1, 4, 4]), plain(200, [0.0, 0, 19, 5], (5, 20)))
    assert mixed.image.shape == (3, 10, 20)
    weight = (200 - mixed.image[0, 0, 0].item()) / 100
    assert 0.25 < weight < 0.75
    assert mixed.image[0, 9, 0].item() == pytest.approx(100 * weight, abs=1)
    assert mixed.image[0, 9, 19].item() == 0
    assert mixed.annotations.boxes.tolist() == [[1, 1, 4, 4], [0, 0, 19, 5]]
    assert mixed.annotations.labels.tolist() == [100, 200]


def test_mosaic_shows_four_images_in_its_quarters() -> None:
    torch.manual_seed(1)
    samples = [plain(value, [0.0, 0, 10, 10]) for value in (10, 20, 30, 40)]
    made = Mosaic(100)(samples)
    assert made.image.shape == (3, 100, 100)
    assert [int(made.image[0, y, x]) for y, x in ((0, 0), (0, 99), (99, 0), (99, 99))] == [10, 20, 30, 40]
    boxes = made.annotations.boxes
    middle = boxes[0, 2:]
    assert ((middle >= 30) & (middle <= 70)).all()
    assert boxes[3].tolist() == [*middle.tolist(), 100, 100]
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    assert float(areas.sum()) == pytest.approx(100 * 100)
    assert made.annotations.labels.tolist() == [10, 20, 30, 40]


def test_mosaics_have_random_centers_and_other_images() -> None:
    torch.manual_seed(1)
    samples = [plain(value, [0.0, 0, 10, 10]) for value in (10, 20, 30, 40)]
    middles = [Mosaic(100)(samples).annotations.boxes[0, 2:].tolist() for _ in range(5)]
    assert any(x != y for x, y in middles)
    strong = StrongAugmentation(100, mosaic=1.0)
    images = AugmentedDataset(SampleDataset(samples), EvalTransform(100), seed=0, strong=strong)
    assert len(images[SampleKey(0, 1)].image.unique()) > 1


@pytest.mark.parametrize("is_portrait", [False, True])
def test_mosaic_drops_objects_of_which_too_little_remains(is_portrait: bool) -> None:
    columns = torch.arange(30, dtype=torch.uint8).expand(3, 10, 30)
    # two thirds of the image are cropped, from a random column, and halved
    boxes = torch.tensor([[0.0, 0, 10, 10], [10, 0, 20, 10], [20, 0, 30, 10]])
    if is_portrait:
        columns, boxes = columns.mT, boxes[:, [1, 0, 3, 2]]
    size = (10, 5) if is_portrait else (5, 10)
    sample = Sample(columns.contiguous(), Annotations(boxes, torch.arange(3)), 1, tuple(columns.shape[1:]))
    object_counts = set()
    for seed in range(40):
        torch.manual_seed(seed)
        quarter = _fill(sample, size)
        first = round(float(quarter.image.float().mean()) - 9.5)
        ends = {label: (max(10 * label - first, 0), min(10 * label + 10 - first, 20)) for label in range(3)}
        expected = {label: (start / 2, end / 2) for label, (start, end) in ends.items() if end - start >= 1}
        along = slice(1, 4, 2) if is_portrait else slice(0, 3, 2)
        kept = quarter.annotations
        placed = zip(kept.labels.tolist(), kept.boxes[:, along].tolist(), strict=True)
        assert {label: tuple(ends) for label, ends in placed} == expected
        object_counts.add(len(expected))
    assert object_counts == {2, 3}


def filled(value: int, size: tuple[int, int] = (10, 10)) -> Sample:
    """An image with one object, whose mask covers it."""
    sample = plain(value, [0.0, 0, size[1], size[0]], size)
    return replace(sample, annotations=replace(sample.annotations, masks=torch.ones(1, *size, dtype=torch.bool)))


def test_masks_of_a_mosaic_fill_its_quarters() -> None:
    torch.manual_seed(1)
    made = Mosaic(100)([filled(value) for value in (10, 20, 30, 40)])
    masks = made.annotations.masks
    assert masks is not None
    assert masks.dtype == torch.bool
    assert masks.int().sum(0).unique().tolist() == [1], "every pixel is in one mask"
    for mask, value in zip(masks, (10, 20, 30, 40), strict=True):
        assert torch.equal(mask, made.image[0] == value)
    without = [filled(10), filled(20), plain(30, [0.0, 0, 10, 10]), filled(40)]
    assert Mosaic(100)(without).annotations.masks is None, "one image has no masks"


def test_masks_of_mixup_are_where_their_images_are() -> None:
    mixed = MixUp()(filled(100), filled(200, (5, 20)))
    masks = mixed.annotations.masks
    assert masks is not None
    assert masks.shape == (2, 10, 20)
    assert masks[0, :, :10].all()
    assert masks[1, :5].all()
    assert masks.flatten(1).sum(1).tolist() == [100, 100]


def test_scale_jitter_and_flips_move_masks_with_their_pixels() -> None:
    torch.manual_seed(4)
    sample = filled(250, (40, 40))
    half = replace(
        sample,
        image=torch.where(torch.arange(40) < 20, sample.image, 0),
        annotations=Annotations(
            torch.tensor([[0.0, 0, 20, 40]]), torch.tensor([0]), (torch.arange(40) < 20).expand(1, 40, 40)
        ),
    )
    for _ in range(20):
        changed = RandomOrientation()(ScaleJitter(64, 0.5, 2.0)(half))
        if len(changed.annotations.labels):
            assert changed.annotations.masks is not None
            bright = changed.image[0] > 125
            assert (changed.annotations.masks[0] != bright).float().mean() < 0.04


def test_photometric_distortion_changes_pixels_only() -> None:
    torch.manual_seed(2)
    sample = DRAWN[0]
    changed = [PhotometricDistortion()(sample) for _ in range(8)]
    assert any(not torch.equal(one.image, sample.image) for one in changed)
    assert all(one.annotations is sample.annotations and one.image.dtype == torch.uint8 for one in changed)


def test_photometric_distortion_has_its_probability() -> None:
    images = AugmentedDataset(
        SampleDataset([DRAWN[0]]),
        EvalTransform(48),
        seed=0,
        strong=StrongAugmentation(48, photometric=0.5),
    )
    untouched = EvalTransform(48)(DRAWN[0]).image
    same = sum(torch.equal(images[SampleKey(0, epoch)].image, untouched) for epoch in range(1, 61))
    assert 18 < same < 48


def test_scale_jitter_limits_the_long_side_as_evaluation() -> None:
    jittered = ScaleJitter(80, 1.0, 1.0)(plain(1, [0.0, 0, 10, 10], (100, 1000)))
    assert tuple(jittered.image.shape[1:]) == (13, 130)


def test_scale_jitter_never_exceeds_the_evaluation_size() -> None:
    torch.manual_seed(3)
    shapes = [tuple(ScaleJitter(64)(DRAWN[3]).image.shape[1:]) for _ in range(40)]
    assert max(max(shape) for shape in shapes) == 64
    assert min(min(shape) for shape in shapes) < 30


@pytest.mark.parametrize("name", ["photometric", "scale_jitter", "mosaic", "mixup"])
def test_strong_augmentation_is_off_in_the_last_epochs(name: str) -> None:
    images = AugmentedDataset(
        SampleDataset(DRAWN[:6]),
        EvalTransform(48),
        seed=0,
        strong=StrongAugmentation(48, **{name: 1.0}),
    )
    images.strong_epochs = range(1, 4)
    for index in range(6):
        untouched = EvalTransform(48)(DRAWN[index])
        assert torch.equal(images[SampleKey(index, 4)].image, untouched.image)
        assert torch.equal(images[SampleKey(index, 3, is_closing=True)].image, untouched.image)
    assert any(
        images[SampleKey(index, 3)].image.shape != EvalTransform(48)(DRAWN[index]).image.shape
        or not torch.equal(images[SampleKey(index, 3)].image, EvalTransform(48)(DRAWN[index]).image)
        for index in range(6)
    )


def test_samples_depend_on_seed_epoch_and_image_only() -> None:
    drawn = SyntheticShapes(8, 0, SyntheticStyle(size=64)).draw_all()
    batches: list[list[torch.Tensor]] = []
    for workers in (0, 2):
        chosen = TrainingConfig(batch_size=2, workers=workers, image_size=48)
        images = AugmentedDataset(SampleDataset(drawn), TrainTransform(48), seed=1)
        loader = train_loader(images, BatchGrouping.ungrouped(8), chosen, torch.device("cpu"))
        torch.manual_seed(workers)
        state = torch.get_rng_state()
        batches.append([])
        for epoch in (1, 2):
            loader.start_at(epoch, 0)
            batches[-1] += [batch.images for batch in loader]
        if not workers:
            assert torch.equal(torch.get_rng_state(), state), "the global generator is not used"
    assert len(batches[0]) == 8
    for one, other in zip(*batches, strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(batches[0][0], batches[0][4])


def test_batch_of_images_of_one_size_needs_no_padding() -> None:
    whole = [plain(number, [10.0, 10, 60, 50], (90, 120)) for number in range(40)]
    images = AugmentedDataset(SampleDataset(whole), TrainTransform(48), seed=3)
    sizes, positions = set(), set()
    for number in range(40):
        batch = [images[SampleKey(index, 1, number)] for index in range(number, number + 4) if index < 40]
        assert len({sample.image.shape for sample in batch}) == 1
        sizes.add(batch[0].image.shape)
        positions |= {tuple(sample.annotations.boxes.flatten().tolist()) for sample in batch}
    assert len(sizes) > 15
    assert len(positions) > 2 * len(sizes)  # the position of the crop and the flip differ
    alone = {images[SampleKey(index, 1)].image.shape for index in range(4)}
    assert len(alone) > 1
    assert len({images[SampleKey(0, epoch, 0)].image.shape for epoch in range(1, 20)}) > 5


def test_sizes_are_distributed_alike_for_batches_and_images() -> None:
    images = AugmentedDataset(SampleDataset([plain(1, [10.0, 10, 60, 50], (90, 120))]), TrainTransform(48), seed=3)
    shared = [images[SampleKey(0, 1, number)].image.shape[1:] for number in range(400)]
    own = [images[SampleKey(0, epoch)].image.shape[1:] for epoch in range(400)]
    for axis in (0, 1):
        quartiles = [sorted(size[axis] for size in sizes)[100::100] for sizes in (shared, own)]
        assert quartiles[0] == pytest.approx(quartiles[1], rel=0.1)


def test_scale_jitter_is_combined_with_flips() -> None:
    strong = StrongAugmentation(48, scale_jitter=1.0)
    plain_images = SampleDataset([plain(1, [0.0, 0, 4, 10])])
    images = AugmentedDataset(plain_images, EvalTransform(48), seed=0, strong=strong)
    whole = [images[SampleKey(0, epoch)] for epoch in range(1, 100)]
    at_left = [one.annotations.boxes[0, 0] == 0 for one in whole if one.image.shape[2] < 48]
    assert any(at_left)
    assert not all(at_left)
    always = replace(strong, orientation=RandomOrientation(horizontal_flip=1.0))
    images = AugmentedDataset(plain_images, EvalTransform(48), seed=0, strong=always)
    whole = [images[SampleKey(0, epoch)] for epoch in range(1, 50)]
    assert not any(one.annotations.boxes[0, 0] == 0 for one in whole if one.image.shape[2] < 48)


def test_mosaic_crops_a_panorama_before_enlarging_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from detrkit.data.transforms import augmentation

    sizes: list[tuple[int, ...]] = []
    original = augmentation.resize
    monkeypatch.setattr(
        augmentation, "resize", lambda s, size: sizes.append(tuple(s.image.shape[1:])) or original(s, size)
    )
    thin = plain(1, [0.0, 0, 1000, 4], (4, 1000))
    made = Mosaic(200)([thin] * 4)
    assert made.image.shape == (3, 200, 200)
    assert max(max(size) for size in sizes) < 20


def test_augmentation_does_not_seed_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the generator of the GPU was seeded")

    monkeypatch.setattr(torch.cuda, "manual_seed_all", refuse)
    AugmentedDataset(SampleDataset(DRAWN[:1]), TrainTransform(48), seed=0)[SampleKey(0, 1)]


def square(side: int = 8, image_id: int = 1) -> Sample:
    """A white image with one object, its left half."""
    annotations = Annotations(torch.tensor([[0.0, 0.0, side / 2, side]]), torch.tensor([3]))
    return Sample(torch.full((3, side, side), 255, dtype=torch.uint8), annotations, image_id, (side, side))


def test_zoom_out_places_the_image_and_its_boxes_on_black() -> None:
    torch.manual_seed(0)
    zoomed = zoom_out(square(), 100)
    height, width = zoomed.image.shape[1:]
    assert 8 <= height <= 32
    assert 8 <= width <= 32
    rows, columns = zoomed.image[0].nonzero(as_tuple=True)
    assert len(rows) == 64
    left, top = int(columns.min()), int(rows.min())
    assert zoomed.annotations.boxes.tolist() == [[left, top, left + 4, top + 8]]


def test_large_images_are_made_smaller_before_they_are_zoomed_out() -> None:
    torch.manual_seed(0)
    zoomed = zoom_out(square(400), 40)
    assert max(zoomed.image.shape[1:]) <= 160
    left, top, right, bottom = zoomed.annotations.boxes[0].tolist()
    assert (right - left, bottom - top) == (20, 40)


def test_crop_by_iou_keeps_objects_with_a_pixel_inside() -> None:
    for seed in range(20):
        torch.manual_seed(seed)
        cropped = iou_crop(square())
        height, width = cropped.image.shape[1:]
        boxes = cropped.annotations.boxes
        assert (boxes[:, 2:] - boxes[:, :2] >= 1).all()
        assert (boxes <= torch.tensor([width, height, width, height])).all()
    empty = replace(square(), annotations=Annotations(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)))
    assert iou_crop(empty) is empty


def test_grid_mosaic_holds_four_images_of_half_the_size() -> None:
    torch.manual_seed(3)
    mosaic = GridMosaic(16)([square(image_id=number) for number in range(4)])
    assert mosaic.image_id == 0
    assert mosaic.image.shape == (3, 16, 16)
    assert 1 <= len(mosaic.annotations.labels) <= 4
    assert set(mosaic.annotations.labels.tolist()) == {3}


def test_images_are_stretched_to_one_size() -> None:
    sample = replace(square(), image=torch.zeros(3, 8, 16, dtype=torch.uint8))
    stretched = StretchTransform(32, RandomOrientation(horizontal_flip=0.0))(sample)
    assert stretched.image.shape == (3, 32, 32)
    assert stretched.annotations.boxes.tolist() == [[0, 0, 8, 32]]


def test_epochs_of_strong_augmentation_and_of_mosaics() -> None:
    """Before the first, images are as they are; mosaics end before the rest."""
    strong = StrongAugmentation(16, mosaic=1.0, zoom_out=1.0, stretches=True)
    images = AugmentedDataset(
        SampleDataset([square()] * 4),
        lambda sample: sample,
        seed=0,
        strong=strong,
        normalization=Normalization(1 / 255),
    )
    images.strong_epochs, images.mosaic_epochs = range(2, 5), range(2, 4)
    samples = [images[SampleKey(0, epoch)] for epoch in range(1, 6)]
    sizes = [tuple(sample.image.shape[1:]) for sample in samples]
    assert [sample.is_strong for sample in samples] == [False, True, True, True, False]
    assert sizes[0] == sizes[4] == (8, 8)
    assert sizes[1] == sizes[2] == (16, 16)
    assert sizes[3] not in ((8, 8), (16, 16))
    assert images[SampleKey(0, 1)].normalization == Normalization(1 / 255)
