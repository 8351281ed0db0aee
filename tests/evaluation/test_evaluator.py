"""Evaluators: panoptic quality and masks of predictions, and the primary metric."""

import math

import pytest
import torch

from detrkit.data.batching import collate
from detrkit.data.synthetic import SCENES, SyntheticShapes, SyntheticStyle
from detrkit.data.transforms.geometry import EvalTransform
from detrkit.evaluation.coco import CocoMetrics
from detrkit.evaluation.evaluator import PanopticEvaluator, full_size_masks
from detrkit.evaluation.ground_truth import GroundTruthSegments
from detrkit.evaluation.metrics import EvalMetrics
from detrkit.evaluation.panoptic import PanopticCounts
from detrkit.structures import Batch, ComputedMasks, Predictions, Sample

HIGH, LOW = 5.0, 1.2  # logits of the true class and zeros elsewhere: scores of 0.96 and 0.36


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return SyntheticShapes(3, seed=2, style=SyntheticStyle(size=64, stuff=True)).draw_all()


def perfect_predictions(samples: list[Sample], logit: float) -> tuple[Predictions, Batch]:
    """A query for every segment and one for no object, on images of half the size."""
    batch = collate([EvalTransform(32)(sample) for sample in samples])
    most = max(len(target.labels) for target in batch.targets) + 1
    logits = torch.zeros(1, len(samples), most, len(SCENES) + 1)
    logits[..., -1] = 9.0
    for image, target in enumerate(batch.targets):
        queries = torch.arange(len(target.labels))
        logits[0, image, queries, -1] = 0.0
        logits[0, image, queries, target.labels] = logit
    boxes = torch.full((1, len(samples), most, 4), 0.5)
    return Predictions(logits, boxes, mask_source=ground_truth_masks(samples, most)), batch


def ground_truth_masks(samples: list[Sample], num_queries: int) -> ComputedMasks:
    """Return the true masks at a quarter of the image size, and empty masks for further queries."""
    logits = []
    for sample in samples:
        masks = sample.annotations.masks.float()
        padded = torch.cat([masks, torch.zeros(num_queries - len(masks), *masks.shape[1:])])
        logits.append(20 * torch.nn.functional.interpolate(padded[None], (8, 8), mode="area")[0] - 10)
    return ComputedMasks(torch.stack(logits))


def evaluate(samples: list[Sample], logit: float) -> PanopticEvaluator:
    ground_truth = {sample.image_id: GroundTruthSegments.from_annotations(sample.annotations) for sample in samples}
    evaluator = PanopticEvaluator(SCENES, ground_truth.__getitem__, padding_invariant=True)
    evaluator(*perfect_predictions(samples, logit))
    return evaluator


def test_ground_truth_masks_are_nearly_perfect(samples: list[Sample]) -> None:
    threshold, scores = evaluate(samples, HIGH).best()
    assert scores.pq > 0.8  # the masks are eight cells wide
    assert scores.overall.rq == pytest.approx(1.0)
    assert threshold == 0.85  # all thresholds are equal, and the published one is preferred


def test_threshold_with_the_highest_panoptic_quality_is_selected(samples: list[Sample]) -> None:
    threshold, scores = evaluate(samples, LOW).best()
    assert threshold == 0.3
    assert scores.overall.rq == pytest.approx(1.0)


def test_published_threshold_is_kept_without_a_match(samples: list[Sample]) -> None:
    threshold, scores = evaluate(samples, -5.0).best()
    assert threshold == 0.85
    assert scores.pq == 0


def test_counts_of_processes_add_up(samples: list[Sample]) -> None:
    alone = evaluate(samples, HIGH).best()
    parts = [evaluate(samples[:1], HIGH), evaluate(samples[1:], HIGH)]
    assert parts[0].best([part.counts for part in parts]) == alone
    nothing = dict.fromkeys(parts[0].counts, PanopticCounts.zeros(len(SCENES)))
    assert math.isnan(parts[0].best([nothing])[1].pq)


def test_masks_of_all_queries_are_computed_image_by_image(samples: list[Sample]) -> None:
    predictions, batch = perfect_predictions(samples, HIGH)
    made = list(full_size_masks(True)(predictions, batch))
    for masks, sample in zip(made, samples, strict=True):
        assert masks.shape == (predictions.boxes.shape[1], 64, 64)
        count = len(sample.annotations.labels)
        assert (masks[:count] == sample.annotations.masks).float().mean() > 0.9
        assert not masks[count:].any()


def test_primary_metric_depends_on_the_data() -> None:
    boxes = CocoMetrics({"ap": 0.3, "ap50": 0.5}, (), 1, 1)
    assert (EvalMetrics(boxes).primary, EvalMetrics(boxes).primary_value) == ("ap", 0.3)
    masks = EvalMetrics(boxes, CocoMetrics({"ap": 0.2}, (), 1, 1))
    assert (masks.primary, masks.primary_value, masks.values["mask_ap"]) == ("mask_ap", 0.2, 0.2)
    assert EvalMetrics(CocoMetrics({"ap": -1.0}, (), 1, 0)).primary_value == 0
    assert EvalMetrics.from_json(masks.to_json()) == masks
