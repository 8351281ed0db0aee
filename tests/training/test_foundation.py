"""LW-DETR and RF-DETR are trained, predict and can be loaded again."""

from pathlib import Path

import pytest
import torch

import detrkit
from tests.datasets import write_coco

pytestmark = pytest.mark.slow
SMALL = {"num_queries": 10, "group_detr": 2, "dim_feedforward": 32, "num_windows": 2, "backbone_layers": 3}
SMALL |= {"global_layers": (1,), "out_layers": (2, 3), "decoder_layers": 2}


@pytest.mark.parametrize("preset", ["lwdetr-tiny", "rfdetr-nano"])
def test_a_run_trains_all_groups_and_its_detector_predicts(preset: str, tmp_path: Path) -> None:
    data = write_coco(tmp_path / "data")
    result = detrkit.train(data, model=preset, output=tmp_path / "run", steps=2, batch_size=2, image_size=64, **SMALL)
    assert result.metrics
    detector = detrkit.Detector.load(tmp_path / "run")
    assert detector.model.config.group_detr == 2
    detections = detector.predict(torch.randint(0, 256, (3, 50, 70), dtype=torch.uint8), threshold=0.0)
    assert len(detections) == min(detector.model.config.detections_per_image, 10 * len(detector.categories))
