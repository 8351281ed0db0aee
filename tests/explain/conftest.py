"""Fixtures of the explain tests: small models and an image."""

import pytest
import torch

from detrkit import Detector, Sample, SetCriterion, build_model
from detrkit.data.categories import Categories
from detrkit.data.synthetic import SyntheticShapes, SyntheticStyle
from detrkit.explain.explain import explain_sample
from detrkit.explain.explanation import Explanation
from tests.detectors import NAMES, realtime_detector, small_detector


@pytest.fixture(scope="session")
def detector() -> Detector:
    return small_detector()


@pytest.fixture(scope="session")
def deformable_detector() -> Detector:
    """A model with deformable cross-attention."""
    torch.manual_seed(0)
    model = build_model("detrkit-s", num_classes=3, num_queries=6, hidden_dim=64, dim_feedforward=64).eval()
    return Detector.from_model(model, Categories((1, 2, 5), NAMES), image_size=64)


@pytest.fixture(scope="session")
def sample() -> Sample:
    return SyntheticShapes(3, 5, SyntheticStyle(size=96))[2]


@pytest.fixture(scope="session")
def explanation(detector: Detector, sample: Sample) -> Explanation:
    """An explanation with ground truth; every query is a detection."""
    return explain_sample(
        detector, sample, criterion=SetCriterion(3), threshold=0, image_name="<image>.png", model_name="tiny"
    )


@pytest.fixture(scope="session")
def fine_grained(sample: Sample) -> Explanation:
    """An explanation of D-FINE, with ground truth; every query is a detection."""
    criterion = SetCriterion(3, class_scores="sigmoid")
    return explain_sample(realtime_detector(), sample, criterion=criterion, threshold=0, model_name="dfine")
