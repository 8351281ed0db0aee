"""Judging segments while predictions are collected: a model that draws the truth, and what thresholds do."""

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from detrkit.data.batching import collate
from detrkit.data.synthetic import SCENES, SyntheticShapes, SyntheticStyle
from detrkit.data.transforms.geometry import EvalTransform
from detrkit.evaluation.coco import CocoMetrics
from detrkit.evaluation.metrics import EvalMetrics
from detrkit.evaluation.panoptic import GroundTruthSegments, PanopticCounts
from detrkit.evaluation.segments import PanopticEvaluator, masks_of_all
from detrkit.structures import Batch, Predictions, Sample

SURE, UNSURE = 5.0, 1.2  # logits of the true class, beside zeros: scores of 0.96 and 0.36


@pytest.fixture(scope="module")
def scenes() -> list[Sample]:
    return SyntheticShapes(3, seed=2, style=SyntheticStyle(size=64, stuff=True)).draw_all()


def knows_all(scenes: list[Sample], logit: float) -> tuple[Predictions, Batch]:
    """A query for every segment and one for nothing, on photos of half the size."""
    batch = collate([EvalTransform(32)(scene) for scene in scenes])
    most = max(len(target.labels) for target in batch.targets) + 1
    logits = torch.zeros(1, len(scenes), most, len(SCENES) + 1)
    logits[..., -1] = 9.0
    for photo, target in enumerate(batch.targets):
        queries = torch.arange(len(target.labels))
        logits[0, photo, queries, -1] = 0.0
        logits[0, photo, queries, target.labels] = logit
    return Predictions(logits, torch.full((1, len(scenes), most, 4), 0.5)), batch


def drawing_truth(scenes: list[Sample]) -> object:
    """Draws the true masks, at a quarter of the photos' size, as the mask head does."""

    def draw(_predictions: Predictions, batch: Batch, queries: Tensor, counts: Sequence[int]) -> Tensor:
        drawn = []
        for scene, some in zip(scenes, queries.split(list(counts)), strict=True):
            masks = scene.annotations.masks.float()
            empty = torch.zeros(1, *masks.shape[1:])
            small = torch.nn.functional.interpolate(torch.cat([masks, empty])[None], (8, 8), mode="area")[0]
            drawn.append(20 * small[some.clamp(max=len(masks))] - 10)
        return torch.cat(drawn)

    return draw


def judge(scenes: list[Sample], logit: float) -> PanopticEvaluator:
    truths = {scene.image_id: GroundTruthSegments.from_annotations(scene.annotations) for scene in scenes}
    judge = PanopticEvaluator(drawing_truth(scenes), SCENES, truths.__getitem__, padding_invariant=True)
    judge(*knows_all(scenes, logit))
    return judge


def test_a_model_that_draws_the_truth_is_nearly_perfect(scenes: list[Sample]) -> None:
    threshold, scores = judge(scenes, SURE).best()
    assert scores.pq > 0.8  # the masks are eight cells wide
    assert scores.overall.rq == pytest.approx(1.0)
    assert threshold == 0.85  # all thresholds do, and the published one is taken


def test_the_threshold_of_the_best_quality_is_found(scenes: list[Sample]) -> None:
    threshold, scores = judge(scenes, UNSURE).best()
    assert threshold == 0.3
    assert scores.overall.rq == pytest.approx(1.0)


def test_where_nothing_is_found_the_published_threshold_stays(scenes: list[Sample]) -> None:
    threshold, scores = judge(scenes, -5.0).best()
    assert threshold == 0.85
    assert scores.pq == 0


def test_processes_add_up(scenes: list[Sample]) -> None:
    alone = judge(scenes, SURE).best()
    parts = [judge(scenes[:1], SURE), judge(scenes[1:], SURE)]
    assert parts[0].best([part.counts for part in parts]) == alone
    nothing = dict.fromkeys(parts[0].counts, PanopticCounts.none(len(SCENES)))
    assert math.isnan(parts[0].best([nothing])[1].pq)


def test_masks_of_all_queries_come_photo_by_photo(scenes: list[Sample]) -> None:
    predictions, batch = knows_all(scenes, SURE)
    made = list(masks_of_all(drawing_truth(scenes), True)(predictions, batch))
    for masks, scene in zip(made, scenes, strict=True):
        assert masks.shape == (predictions.boxes.shape[1], 64, 64)
        count = len(scene.annotations.labels)
        assert (masks[:count] == scene.annotations.masks).float().mean() > 0.9
        assert not masks[count:].any()


def test_scores_are_compared_by_what_the_data_has() -> None:
    boxes = CocoMetrics({"ap": 0.3, "ap50": 0.5}, (), 1, 1)
    assert (EvalMetrics(boxes).primary, EvalMetrics(boxes).primary_value) == ("ap", 0.3)
    masks = EvalMetrics(boxes, CocoMetrics({"ap": 0.2}, (), 1, 1))
    assert (masks.primary, masks.primary_value, masks.values["mask_ap"]) == ("mask_ap", 0.2, 0.2)
    assert EvalMetrics(CocoMetrics({"ap": -1.0}, (), 1, 0)).primary_value == 0
    assert EvalMetrics.from_json(masks.to_json()) == masks
