"""`Detector` on folders of Hugging Face gives the scores and boxes of transformers, whatever the image processor does."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from detrkit import Detector
from tests.parity.transformers_models import randomize, small_resnet

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def reference() -> Any:
    config = transformers.DetrConfig(
        backbone_config=small_resnet(),
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        num_queries=9,
        id2label={0: "cat", 1: "dog"},
    )
    torch.manual_seed(0)
    model = transformers.DetrForObjectDetection(config).eval()
    randomize(model)
    return model


@pytest.mark.parametrize(
    "settings",
    [
        {"size": {"shortest_edge": 64, "longest_edge": 70}},
        {"size": {"max_height": 80, "max_width": 64}, "resample": 3},
        {"size": {"height": 64, "width": 96}, "do_normalize": False},
        {"do_resize": False, "do_rescale": False},
        {
            "size": {"shortest_edge": 64, "longest_edge": 106},
            "rescale_factor": 1 / 127.5,
            "image_mean": [0.5, 0.4, 0.3],
        },
    ],
    ids=str,
)
def test_detections_are_those_of_transformers(settings: dict[str, Any], reference: Any, tmp_path: Path) -> None:
    processor = transformers.DetrImageProcessor(**settings)
    reference.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8))
    with torch.no_grad():
        outputs = reference(**processor(images=image, return_tensors="pt"))
    [expected] = processor.post_process_object_detection(outputs, threshold=0.0, target_sizes=[(90, 120)])
    detections = Detector.load(tmp_path).predict(image, threshold=0.0)
    names = [("cat", "dog")[label] for label in expected["labels"].tolist()]
    assert Counter(detections.class_names) == Counter(names)
    assert torch.allclose(detections.scores, expected["scores"].sort(descending=True).values, atol=1e-4)
    inside = expected["boxes"].clamp(min=0).minimum(torch.tensor([120.0, 90.0, 120.0, 90.0]))
    # equal scores may be in another order; 1e-4 of 120 pixels in each of four coordinates
    assert float(torch.cdist(inside, detections.boxes).amin(1).max()) < 0.05
