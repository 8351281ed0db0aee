"""Any sequence of transforms keeps boxes inside and in step with masks; strong ones by hand and by switch."""

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
from detrkit.structures import Annotations, Sample
from tests.data.test_transforms import DRAWN, check_in_step


def mosaic(sample: Sample) -> Sample:
    return Mosaic(96)([sample, *DRAWN[:3]])


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
    mixup,
]


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(DRAWN), st.lists(st.sampled_from(TRANSFORMS), max_size=5), st.integers(0, 10_000))
def test_any_sequence_keeps_boxes_inside_and_in_step(
    sample: Sample, sequence: list[Callable[[Sample], Sample]], seed: int
) -> None:
    torch.manual_seed(seed)
    before = sample.image.clone(), sample.annotations.boxes.clone()
    changed = sample
    for transform in sequence:
        changed = transform(changed)
    assert changed.annotations.masks is not None
    assert len(changed.annotations.boxes) == len(changed.annotations.labels) == len(changed.annotations.masks)
    check_in_step(changed, slack=3 * max(1, len(sequence)))
    assert torch.equal(sample.image, before[0])
    assert torch.equal(sample.annotations.boxes, before[1])
    assert (changed.image_id, changed.original_size) == (sample.image_id, sample.original_size)


def plain(value: int, box: list[float], size: tuple[int, int] = (10, 10)) -> Sample:
    image = torch.full((3, *size), value, dtype=torch.uint8)
    return Sample(image, Annotations(torch.tensor([box]), torch.tensor([value])), value, size)


def test_mixup_by_hand() -> None:
    torch.manual_seed(0)
    mixed = MixUp()(plain(100, [1.0, 1, 4, 4]), plain(200, [0.0, 0, 19, 5], (5, 20)))
    assert mixed.image.shape == (3, 10, 20)
    share = (200 - mixed.image[0, 0, 0].item()) / 100
    assert 0.25 < share < 0.75
    assert mixed.image[0, 9, 0].item() == pytest.approx(100 * share, abs=1)
    assert mixed.image[0, 9, 19].item() == 0
    assert mixed.annotations.boxes.tolist() == [[1, 1, 4, 4], [0, 0, 19, 5]]
    assert mixed.annotations.labels.tolist() == [100, 200]


def test_a_mosaic_shows_four_photos_in_their_quarters() -> None:
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


def test_mosaics_meet_anywhere_and_show_other_photos() -> None:
    torch.manual_seed(1)
    samples = [plain(value, [0.0, 0, 10, 10]) for value in (10, 20, 30, 40)]
    middles = [Mosaic(100)(samples).annotations.boxes[0, 2:].tolist() for _ in range(5)]
    assert any(x != y for x, y in middles)
    strong = StrongAugmentation(100, mosaic=1.0)
    photos = AugmentedDataset(SampleDataset(samples), EvalTransform(100), seed=0, strong=strong, strong_epochs=9)
    assert len(photos[SampleKey(0, 1)].image.unique()) > 1


@pytest.mark.parametrize("is_portrait", [False, True])
def test_objects_of_a_quarter_are_dropped_where_too_little_of_them_is_left(is_portrait: bool) -> None:
    columns = torch.arange(30, dtype=torch.uint8).expand(3, 10, 30)
    # two thirds of the photo are cut out, from some column on, and halved
    boxes = torch.tensor([[0.0, 0, 10, 10], [10, 0, 20, 10], [20, 0, 30, 10]])
    if is_portrait:
        columns, boxes = columns.mT, boxes[:, [1, 0, 3, 2]]
    size = (10, 5) if is_portrait else (5, 10)
    sample = Sample(columns.contiguous(), Annotations(boxes, torch.arange(3)), 1, tuple(columns.shape[1:]))
    numbers_of_objects = set()
    for seed in range(40):
        torch.manual_seed(seed)
        quarter = _fill(sample, size)
        first = round(float(quarter.image.float().mean()) - 9.5)
        ends = {label: (max(10 * label - first, 0), min(10 * label + 10 - first, 20)) for label in range(3)}
        expected = {label: (start / 2, end / 2) for label, (start, end) in ends.items() if end - start >= 1}
        along = slice(1, 4, 2) if is_portrait else slice(0, 3, 2)
        found = quarter.annotations
        placed = zip(found.labels.tolist(), found.boxes[:, along].tolist(), strict=True)
        assert {label: tuple(ends) for label, ends in placed} == expected
        numbers_of_objects.add(len(expected))
    assert numbers_of_objects == {2, 3}


def filled(value: int, size: tuple[int, int] = (10, 10)) -> Sample:
    """A photo with one object, whose mask is all of it."""
    sample = plain(value, [0.0, 0, size[1], size[0]], size)
    return replace(sample, annotations=replace(sample.annotations, masks=torch.ones(1, *size, dtype=torch.bool)))


def test_masks_of_a_mosaic_are_its_quarters() -> None:
    torch.manual_seed(1)
    made = Mosaic(100)([filled(value) for value in (10, 20, 30, 40)])
    masks = made.annotations.masks
    assert masks is not None
    assert masks.dtype == torch.bool
    assert masks.int().sum(0).unique().tolist() == [1], "every pixel is in one of them"
    for mask, value in zip(masks, (10, 20, 30, 40), strict=True):
        assert torch.equal(mask, made.image[0] == value)
    without = [filled(10), filled(20), plain(30, [0.0, 0, 10, 10]), filled(40)]
    assert Mosaic(100)(without).annotations.masks is None, "a photo without masks would have objects without"


def test_masks_of_mixup_lie_where_their_photos_do() -> None:
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


def test_photometric_distortion_changes_colours_only() -> None:
    torch.manual_seed(2)
    sample = DRAWN[0]
    changed = [PhotometricDistortion()(sample) for _ in range(8)]
    assert any(not torch.equal(one.image, sample.image) for one in changed)
    assert all(one.annotations is sample.annotations and one.image.dtype == torch.uint8 for one in changed)


def test_colours_change_as_often_as_asked() -> None:
    photos = AugmentedDataset(
        SampleDataset([DRAWN[0]]),
        EvalTransform(48),
        seed=0,
        strong=StrongAugmentation(48, photometric=0.5),
        strong_epochs=99,
    )
    untouched = EvalTransform(48)(DRAWN[0]).image
    same = sum(torch.equal(photos[SampleKey(0, epoch)].image, untouched) for epoch in range(1, 61))
    assert 18 < same < 48


def test_scale_jitter_of_a_panorama_keeps_to_the_limit_of_tests() -> None:
    jittered = ScaleJitter(80, 1.0, 1.0)(plain(1, [0.0, 0, 10, 10], (100, 1000)))
    assert tuple(jittered.image.shape[1:]) == (13, 130)


def test_scale_jitter_never_exceeds_the_size_of_tests() -> None:
    torch.manual_seed(3)
    shapes = [tuple(ScaleJitter(64)(DRAWN[3]).image.shape[1:]) for _ in range(40)]
    assert max(max(shape) for shape in shapes) == 64
    assert min(min(shape) for shape in shapes) < 30


@pytest.mark.parametrize("name", ["photometric", "scale_jitter", "mosaic", "mixup"])
def test_each_is_switched_off_for_the_last_epochs(name: str) -> None:
    photos = AugmentedDataset(
        SampleDataset(DRAWN[:6]),
        EvalTransform(48),
        seed=0,
        strong=StrongAugmentation(48, **{name: 1.0}),
        strong_epochs=3,
    )
    for index in range(6):
        untouched = EvalTransform(48)(DRAWN[index])
        assert torch.equal(photos[SampleKey(index, 4)].image, untouched.image)
    assert any(
        photos[SampleKey(index, 3)].image.shape != EvalTransform(48)(DRAWN[index]).image.shape
        or not torch.equal(photos[SampleKey(index, 3)].image, EvalTransform(48)(DRAWN[index]).image)
        for index in range(6)
    )


def test_samples_depend_on_seed_epoch_and_photo_alone() -> None:
    drawn = SyntheticShapes(8, 0, SyntheticStyle(size=64)).draw_all()
    images = []
    for workers in (0, 2):
        chosen = TrainingConfig(batch_size=2, workers=workers, image_size=48)
        photos = AugmentedDataset(SampleDataset(drawn), TrainTransform(48), seed=1)
        loader = train_loader(photos, BatchGrouping.ungrouped(8), chosen, torch.device("cpu"))
        torch.manual_seed(workers)
        state = torch.get_rng_state()
        images.append([])
        for epoch in (1, 2):
            loader.start_at(epoch, 0)
            images[-1] += [batch.images for batch in loader]
        if not workers:
            assert torch.equal(torch.get_rng_state(), state), "the model's own randomness is left alone"
    assert len(images[0]) == 8
    for one, other in zip(*images, strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(images[0][0], images[0][4])


def test_a_batch_of_one_shape_needs_no_padding() -> None:
    whole = [plain(number, [10.0, 10, 60, 50], (90, 120)) for number in range(40)]
    photos = AugmentedDataset(SampleDataset(whole), TrainTransform(48), seed=3)
    sizes, places = set(), set()
    for number in range(40):
        batch = [photos[SampleKey(index, 1, number)] for index in range(number, number + 4) if index < 40]
        assert len({sample.image.shape for sample in batch}) == 1
        sizes.add(batch[0].image.shape)
        places |= {tuple(sample.annotations.boxes.flatten().tolist()) for sample in batch}
    assert len(sizes) > 15
    assert len(places) > 2 * len(sizes)  # where they are cut and mirrored is their own
    alone = {photos[SampleKey(index, 1)].image.shape for index in range(4)}
    assert len(alone) > 1
    assert len({photos[SampleKey(0, epoch, 0)].image.shape for epoch in range(1, 20)}) > 5


def test_sizes_of_batches_are_as_likely_as_those_of_photos() -> None:
    photos = AugmentedDataset(SampleDataset([plain(1, [10.0, 10, 60, 50], (90, 120))]), TrainTransform(48), seed=3)
    alike = [photos[SampleKey(0, 1, number)].image.shape[1:] for number in range(600)]
    own = [photos[SampleKey(0, epoch)].image.shape[1:] for epoch in range(600)]
    for axis in (0, 1):
        quartiles = [sorted(size[axis] for size in sizes)[150::150] for sizes in (alike, own)]
        assert quartiles[0] == pytest.approx(quartiles[1], rel=0.1)


def test_scale_jitter_keeps_the_flip() -> None:
    strong = StrongAugmentation(48, scale_jitter=1.0)
    plain_photos = SampleDataset([plain(1, [0.0, 0, 4, 10])])
    photos = AugmentedDataset(plain_photos, EvalTransform(48), seed=0, strong=strong, strong_epochs=200)
    whole = [photos[SampleKey(0, epoch)] for epoch in range(1, 100)]
    at_left = [one.annotations.boxes[0, 0] == 0 for one in whole if one.image.shape[2] < 48]
    assert any(at_left)
    assert not all(at_left)
    always = replace(strong, orientation=RandomOrientation(horizontal_flip=1.0))
    photos = AugmentedDataset(plain_photos, EvalTransform(48), seed=0, strong=always, strong_epochs=200)
    whole = [photos[SampleKey(0, epoch)] for epoch in range(1, 50)]
    assert not any(one.annotations.boxes[0, 0] == 0 for one in whole if one.image.shape[2] < 48)


def test_a_panorama_in_a_mosaic_is_cut_before_it_is_enlarged(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_preparing_samples_leaves_the_gpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the model's randomness on the GPU was touched")

    monkeypatch.setattr(torch.cuda, "manual_seed_all", refuse)
    AugmentedDataset(SampleDataset(DRAWN[:1]), TrainTransform(48), seed=0)[SampleKey(0, 1)]
