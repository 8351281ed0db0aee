"""A small model with something to say, and a photo, for all tests of this room."""

import pytest
import torch

from detrkit import Detector, Sample, SetCriterion, build_model
from detrkit.data.categories import Categories
from detrkit.data.synthetic import SyntheticShapes, SyntheticStyle
from detrkit.explain.explanation import Explanation, explain

NAMES = ("circle", "</script><img src=x onerror=alert(1)>", "star")


def small_detector(**overrides: object) -> Detector:
    """Random weights, drawn so that scores, boxes and attention differ from query to query."""
    torch.manual_seed(3)
    model = build_model("detr-tiny", num_classes=3, num_queries=9, **overrides)
    with torch.no_grad():
        model.queries.weight.mul_(3)
        for name, parameter in model.named_parameters():
            if name.endswith(("query_projection.weight", "key_projection.weight")):
                parameter.mul_(4)
            elif name.endswith("bias"):
                parameter.add_(0.1 * torch.randn_like(parameter))
        for layer in model.encoder.layers:  # cells look at what is like them, so that each looks elsewhere
            layer.self_attention.key_projection.weight.copy_(layer.self_attention.query_projection.weight)
        head = model.heads.class_head
        logits = model.eval()(torch.randn(1, 3, 64, 64)).class_logits[0] - head.bias
        scale = 1.5 / logits.std(0).mean()  # scores of all sizes, and no class that all queries name
        head.weight.mul_(scale)
        head.bias.copy_(-scale * logits.mean(0))
    return Detector.from_model(model, Categories((1, 2, 5), NAMES), image_size=64)


@pytest.fixture(scope="session")
def detector() -> Detector:
    return small_detector()


@pytest.fixture(scope="session")
def sampling_detector() -> Detector:
    """A model that looks at sampled points."""
    torch.manual_seed(0)
    model = build_model("detrkit-s", num_classes=3, num_queries=6, hidden_dim=64, dim_feedforward=64).eval()
    return Detector.from_model(model, Categories((1, 2, 5), NAMES), image_size=64)


@pytest.fixture(scope="session")
def sample() -> Sample:
    return SyntheticShapes(3, 5, SyntheticStyle(size=96))[2]


@pytest.fixture(scope="session")
def explanation(detector: Detector, sample: Sample) -> Explanation:
    return explain(detector.model, detector.preprocessing, detector.categories, sample, loss=SetCriterion(3))
