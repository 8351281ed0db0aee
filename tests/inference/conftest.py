"""A small detector with random weights."""

import pytest
import torch

from detrkit import Detector, build_model


@pytest.fixture(scope="module")
def detector() -> Detector:
    torch.manual_seed(0)
    model = build_model("detr-tiny", num_classes=3)
    with torch.no_grad():
        model.heads.class_head.weight.mul_(20)  # spread the scores
    return Detector.from_model(model, ["circle", "square", "star"], image_size=64)
