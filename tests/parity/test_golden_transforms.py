"""Sizes and geometry of the published transforms (../shared/golden/transforms.npz)."""

from pathlib import Path

import numpy as np
import pytest
import torch

from detrkit.data.batching import normalize, to_target
from detrkit.data.transforms.geometry import EvalTransform, crop, horizontal_flip, resize, resized_size
from detrkit.structures import Annotations, Sample


@pytest.fixture
def golden(shared: Path) -> dict[str, np.ndarray]:
    return dict(np.load(shared / "golden" / "transforms.npz"))


@pytest.fixture
def sample(golden: dict[str, np.ndarray]) -> Sample:
    image = torch.from_numpy(golden["geom_image"]).permute(2, 0, 1).contiguous()
    annotations = Annotations(*(torch.from_numpy(golden[f"geom_in/{key}"]) for key in ("boxes", "labels", "masks")))
    return Sample(image, annotations, 1, (120, 160))


def test_resized_sizes_are_exact(golden: dict[str, np.ndarray]) -> None:
    rows = golden["resize_w_h_size_maxsize_outw_outh"]
    assert len(rows) > 400
    for width, height, short_side, limit, out_width, out_height in rows.tolist():
        assert resized_size((height, width), short_side, limit or None) == (out_height, out_width)


def check(actual: Sample, golden: dict[str, np.ndarray], name: str, largest: float, mean: float) -> None:
    np.testing.assert_allclose(actual.annotations.boxes, golden[f"{name}/boxes"], rtol=0, atol=1e-4)
    np.testing.assert_array_equal(actual.annotations.labels, golden[f"{name}/labels"])
    expected = golden[f"{name}/image"].astype(np.int64)
    difference = np.abs(actual.image.permute(1, 2, 0).numpy().astype(np.int64) - expected)
    assert difference.max() <= largest, difference.max()
    assert difference.mean() <= mean, difference.mean()
    assert actual.annotations.masks is not None
    # masks: torchvision's nearest pixel is not the published code's where a cell's centre lies between two
    assert np.mean(actual.annotations.masks.numpy() != golden[f"{name}/masks"]) < 0.003


def test_flip_is_exact(sample: Sample, golden: dict[str, np.ndarray]) -> None:
    check(horizontal_flip(sample), golden, "geom_hflip", 0, 0)


def test_crop_is_exact_and_drops_objects_outside(sample: Sample, golden: dict[str, np.ndarray]) -> None:
    check(crop(sample, 20, 30, 60, 70), golden, "geom_crop_top20_left30_h60_w70", 0, 0)


def test_resize_differs_by_at_most_one_grey_level(sample: Sample, golden: dict[str, np.ndarray]) -> None:
    size = resized_size((120, 160), 200, 250)
    check(resize(sample, size), golden, "geom_resize_200_max250", 1, 0.5)


def test_eval_transform_gives_the_published_boxes_and_pixels(sample: Sample, golden: dict[str, np.ndarray]) -> None:
    resized = resize(sample, resized_size((120, 160), 200, 250))
    np.testing.assert_allclose(to_target(resized).boxes, golden["geom_val_200_normalised/boxes"], rtol=0, atol=1e-4)
    difference = np.abs(normalize(resized.image).numpy() - golden["geom_val_200_normalised/image"])
    assert difference.max() <= 1.01 / 255 / 0.224  # one grey level, after normalisation


def test_longer_side_is_limited_in_the_proportion_of_the_paper() -> None:
    image = torch.zeros(3, 100, 400, dtype=torch.uint8)
    nothing = Annotations(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    resized = EvalTransform(800)(Sample(image, nothing, 1, (100, 400)))
    assert tuple(resized.image.shape[1:]) == (333, 1332)  # 1333 * 100 / 400 rounds to 333; 333 * 4 = 1332
