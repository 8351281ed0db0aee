"""Masks and panoptic segments of a detector with a mask head."""

import pytest
import torch

from detrkit import ConfigError, Detector, build_model
from detrkit.structures import Detections


@pytest.fixture(scope="module")
def detector() -> Detector:
    torch.manual_seed(3)
    model = build_model("detr-tiny", mask_head=True, num_classes=3, num_queries=12)
    return Detector.from_model(model, ["sky", "cat", "dog"], image_size=64)


@pytest.fixture(scope="module")
def images() -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    sizes = [(75, 120), (130, 64), (64, 64)]
    return [torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=random) for size in sizes]


def test_masks_have_the_image_size_and_do_not_depend_on_the_batch(
    detector: Detector, images: list[torch.Tensor]
) -> None:
    together = detector.predict(images, threshold=0.1)
    for image, detections in zip(images, together, strict=True):
        alone = detector.predict(image, threshold=0.1)
        assert isinstance(alone, Detections)
        assert detections.masks is not None
        assert detections.masks.shape == (len(detections), *image.shape[1:])
        assert torch.equal(detections.queries, alone.queries)
        assert (detections.masks != alone.masks).float().mean() < 1e-3


def test_selected_detections_keep_their_masks(detector: Detector, images: list[torch.Tensor]) -> None:
    detections = detector.predict(images[0], threshold=0.0)
    assert isinstance(detections, Detections)
    chosen = detections[[3, 1]]
    assert torch.equal(chosen.masks, detections.masks[[3, 1]])
    assert chosen.queries.tolist() == [detections.queries[3], detections.queries[1]]
    assert detections.scale(2.0).masks.shape == (len(detections), 150, 240)
    assert detections.translate((5, 5)).masks is None


def test_empty_detections_have_empty_masks(detector: Detector, images: list[torch.Tensor]) -> None:
    detections = detector.predict(images[0], threshold=1.0)
    assert isinstance(detections, Detections)
    assert detections.masks.shape == (0, 75, 120)


@pytest.mark.parametrize("style", ["corrected", "reference", "huggingface"])
def test_segments_cover_the_image(detector: Detector, images: list[torch.Tensor], style: str) -> None:
    together = detector.predict_segments(images, threshold=0.2, style=style)
    assert isinstance(together, list)
    for image, detections in zip(images, together, strict=True):
        assert detections.ids.shape == image.shape[1:]
        assert {int(number) for number in detections.ids.unique()} - {0} == {one.id for one in detections.segments}
        assert [one.area for one in detections.segments] == [
            int(detections.mask(one).sum()) for one in detections.segments
        ]
        assert detections.draw().size == (image.shape[2], image.shape[1])
    if style == "corrected":
        alone = detector.predict_segments(images[1], threshold=0.2)
        assert (alone.ids != together[1].ids).float().mean() < 1e-3


def test_segments_need_a_mask_head_and_a_valid_threshold(detector: Detector) -> None:
    boxes_only = Detector.from_model(build_model("detr-tiny", num_classes=3), ["sky", "cat", "dog"], image_size=64)
    image = torch.zeros(3, 64, 64, dtype=torch.uint8)
    with pytest.raises(ConfigError, match="no mask head"):
        boxes_only.predict_segments(image)
    with pytest.raises(ConfigError, match="is not a score"):
        detector.predict_segments(image, threshold=2)
    assert detector.predict_segments([]) == []
