"""A detector of a model with a mask head: masks of what it finds, and segments, whatever shares the batch."""

import pytest
import torch

from detrkit import ConfigError, Detector, build_model
from detrkit.structures import Detections


@pytest.fixture(scope="module")
def detector() -> Detector:
    torch.manual_seed(3)
    model = build_model("detr-tiny", panoptic=True, num_classes=3, num_queries=12)
    return Detector.from_model(model, ["sky", "cat", "dog"], image_size=64)


@pytest.fixture(scope="module")
def photos() -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    sizes = [(75, 120), (130, 64), (64, 64)]
    return [torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=random) for size in sizes]


def test_masks_have_the_photos_size_and_do_not_depend_on_the_batch(
    detector: Detector, photos: list[torch.Tensor]
) -> None:
    together = detector.predict(photos, threshold=0.1)
    for photo, found in zip(photos, together, strict=True):
        alone = detector.predict(photo, threshold=0.1)
        assert isinstance(alone, Detections)
        assert found.masks is not None
        assert found.masks.shape == (len(found), *photo.shape[1:])
        assert torch.equal(found.queries, alone.queries)
        assert (found.masks != alone.masks).float().mean() < 1e-3


def test_masks_follow_their_objects(detector: Detector, photos: list[torch.Tensor]) -> None:
    found = detector.predict(photos[0], threshold=0.0)
    assert isinstance(found, Detections)
    chosen = found[[3, 1]]
    assert torch.equal(chosen.masks, found.masks[[3, 1]])
    assert chosen.queries.tolist() == [found.queries[3], found.queries[1]]
    assert found.scale(2.0).masks.shape == (len(found), 150, 240)
    assert found.translate((5, 5)).masks is None


def test_no_objects_have_no_masks(detector: Detector, photos: list[torch.Tensor]) -> None:
    found = detector.predict(photos[0], threshold=1.0)
    assert isinstance(found, Detections)
    assert found.masks.shape == (0, 75, 120)


@pytest.mark.parametrize("style", ["corrected", "reference", "huggingface"])
def test_segments_cover_the_photo(detector: Detector, photos: list[torch.Tensor], style: str) -> None:
    together = detector.predict_segments(photos, threshold=0.2, style=style)
    assert isinstance(together, list)
    for photo, found in zip(photos, together, strict=True):
        assert found.ids.shape == photo.shape[1:]
        assert {int(number) for number in found.ids.unique()} - {0} == {one.id for one in found.segments}
        assert [one.area for one in found.segments] == [int(found.mask(one).sum()) for one in found.segments]
        assert found.draw().size == (photo.shape[2], photo.shape[1])
    if style == "corrected":
        alone = detector.predict_segments(photos[1], threshold=0.2)
        assert (alone.ids != together[1].ids).float().mean() < 1e-3


def test_segments_want_a_mask_head_and_a_sensible_threshold(detector: Detector) -> None:
    boxes_only = Detector.from_model(build_model("detr-tiny", num_classes=3), ["sky", "cat", "dog"], image_size=64)
    photo = torch.zeros(3, 64, 64, dtype=torch.uint8)
    with pytest.raises(ConfigError, match="no mask head"):
        boxes_only.predict_segments(photo)
    with pytest.raises(ConfigError, match="expected a score"):
        detector.predict_segments(photo, threshold=2)
    assert detector.predict_segments([]) == []
