"""The comparison with PyTorch measures every difference, and rejects those that are too large."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from detrkit.cli.export import comparison_lines
from detrkit.config.model import ModelConfig
from detrkit.errors import ExportError
from detrkit.export.verify import ExportComparison, compare, count_matched
from detrkit.models.presets import preset_config
from detrkit.structures import Batch, ComputedMasks, Detections, Predictions
from tests.export.models import CATEGORIES, noise_batch, small_model

GOOD = ExportComparison(4, 1e-5, 1e-6, 1e-6, 1e-7, 10, 10, 1e-5)


class ChangedEngine:
    """PyTorch with one logit and one box coordinate changed."""

    def __init__(self, logits: float = 0.0, boxes: float = 0.0) -> None:
        self.model = small_model()
        self.model.padding_invariant = True
        self.config: ModelConfig = self.model.config
        self.change = logits, boxes

    @torch.inference_mode()
    def predict(self, batch: Batch) -> Predictions:
        predictions = self.model(batch.images, batch.padding_mask)
        logits, boxes = predictions.layer_class_logits.clone(), predictions.layer_boxes.clone()
        logits[-1, 0, 0, 0] += self.change[0]
        boxes[-1, 0, 0, 0] += self.change[1]
        return Predictions(logits, boxes)


def compare_changed(logits: float = 0.0, boxes: float = 0.0) -> ExportComparison:
    return compare(ChangedEngine(), ChangedEngine(logits, boxes), [noise_batch([(64, 64), (64, 96)])], CATEGORIES)


def test_engine_does_not_differ_from_itself() -> None:
    same = compare_changed()
    assert (same.max_logit_difference, same.max_score_difference, same.max_box_difference, same.num_images) == (
        0,
        0,
        0,
        2,
    )
    assert same.num_matched == same.num_detections > 0
    same.check("float32")


def test_one_different_logit_or_box_is_detected() -> None:
    assert compare_changed(logits=0.5).max_logit_difference == pytest.approx(0.5, abs=1e-5)
    assert compare_changed(boxes=0.25).max_box_difference == pytest.approx(0.25)
    assert compare_changed(boxes=0.25).mean_box_difference == pytest.approx(0.25 / (2 * 10 * 4))
    for wrong in (compare_changed(logits=0.002), compare_changed(boxes=0.002), compare_changed(logits=float("nan"))):
        with pytest.raises(ExportError, match=r"float32 network differs from PyTorch by .*; nothing was written"):
            wrong.check("float32")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_matched": 8}, "matches 80% of PyTorch's detections, expected at least 90%"),
        ({"mean_box_difference": 0.06}, "mean box difference of 0.060"),
        ({"mean_box_difference": float("nan")}, "mean box difference of nan"),
        ({"ap": 0.5, "exported_ap": 0.47}, "loses 0.0300 AP, expected at most 0.02"),
    ],
)
def test_too_large_differences_are_rejected_for_int8(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ExportError) as error:
        ExportComparison(**{**vars(GOOD), **changes}).check("int8")
    assert message in str(error.value)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_matched": 9},
        {"ap": 0.5, "exported_ap": 0.485, "num_matched": 5},
        {"num_detections": 0, "num_matched": 0},
    ],
)
def test_small_differences_are_accepted_for_int8(changes: dict[str, object]) -> None:
    ExportComparison(**{**vars(GOOD), "max_logit_difference": 2.0, **changes}).check("int8")


class TwoStageEngine:
    """Predictions of a two-stage model: one object, and queries of equally good proposals, in any order."""

    def __init__(self, order: list[int], background: float = 0.0, score: float = 0.9, shift: float = 0.0) -> None:
        self.config = preset_config("deformable-detr-r50-two-stage", num_classes=len(CATEGORIES))
        centres = torch.linspace(0.1, 0.9, 5)
        boxes = torch.stack([centres, centres, torch.full((5,), 0.1), torch.full((5,), 0.1)], -1)
        boxes[0, 2] += shift
        scores = torch.full((5, len(CATEGORIES)), 0.01 + background)
        scores[0, 1] = score
        self.predictions = Predictions(
            torch.logit(scores[order])[None, None], boxes[order][None, None], class_scores="sigmoid"
        )

    def predict(self, batch: Batch) -> Predictions:
        return self.predictions


SAME_ORDER, OTHER_ORDER = [0, 1, 2, 3, 4], [0, 3, 1, 4, 2]


def compare_two_stage(
    *, order: list[int] = OTHER_ORDER, expected_score: float = 0.9, **changes: float
) -> ExportComparison:
    reference, exported = (
        TwoStageEngine(SAME_ORDER, score=expected_score),
        TwoStageEngine(order, **{"score": expected_score, **changes}),
    )
    return compare(reference, exported, [noise_batch([(64, 64)])], CATEGORIES)


def test_equally_good_proposals_may_be_reordered() -> None:
    comparison = compare_two_stage()
    assert comparison.max_box_difference > 0.1
    assert (comparison.num_reordered, comparison.num_reordered_detections) == (1, 1)
    assert comparison.mean_box_difference == 0, "each box is compared with the closest"
    comparison.check("float32")
    assert "on 1 image other proposals are selected" in list(comparison_lines(comparison))[-1]
    ordered = compare_two_stage(order=SAME_ORDER)
    assert ordered.num_reordered == 0
    assert len(list(comparison_lines(ordered))) == 2
    ordered.check("float32")


@pytest.mark.parametrize(
    "changes",
    [{"score": 0.8}, {"shift": 0.05}, {"background": 0.2}, {"order": SAME_ORDER, "shift": 0.002}, {"score": 0.05}],
    ids=str,
)
def test_reordered_proposals_with_other_detections_are_rejected(changes: dict[str, Any]) -> None:
    # in the last case but one the queries keep their order, so that their boxes must agree
    with pytest.raises(ExportError, match="differs from PyTorch by"):
        compare_two_stage(**changes).check("float32")


def test_only_confident_detections_must_be_matched() -> None:
    same, lost = compare_two_stage(), compare_two_stage(score=0.05)
    assert (same.num_detections, same.num_matched) == (1, 1)
    assert (lost.num_detections, lost.num_matched) == (1, 0)


def test_ap_of_pytorch_and_of_the_export_is_computed() -> None:
    """The export's box is 1.5 times as wide: IoU 2/3, a true positive at four of ten thresholds."""
    document = {
        "images": [{"id": 0, "height": 64, "width": 64}],
        "categories": CATEGORIES.to_json(),
        "annotations": [{"id": 1, "image_id": 0, "category_id": 18, "bbox": [3.2, 3.2, 6.4, 6.4]}],
    }
    batches = [noise_batch([(64, 64)])]
    comparison = compare(
        TwoStageEngine(SAME_ORDER), TwoStageEngine(SAME_ORDER, shift=0.05), batches, CATEGORIES, document
    )
    assert (comparison.ap, comparison.exported_ap) == (pytest.approx(1), pytest.approx(0.4))
    assert list(comparison_lines(comparison))[-1] == "AP 0.4000, PyTorch 1.0000, difference -0.6000"
    with pytest.raises(ExportError, match=r"loses 0\.6000 AP"):
        comparison.check("int8")
    document["annotations"] = []
    assert compare(TwoStageEngine(SAME_ORDER), TwoStageEngine(SAME_ORDER), batches, CATEGORIES, document).ap is None


class FixedEngine:
    """Given predictions of two queries for a batch of two images and one of a single image; a box is one number."""

    def __init__(self, boxes: Sequence[float] = (0.5, 0.5), masks: Sequence[Tensor] = ()) -> None:
        self.config = preset_config("detr-tiny", num_classes=len(CATEGORIES), mask_head=len(masks) > 0)
        self.boxes, self.masks = iter(boxes), iter(masks)

    def predict(self, batch: Batch) -> Predictions:
        shape = 1, len(batch.image_ids), 2
        masks = next(self.masks, None)
        return Predictions(
            torch.zeros(*shape, len(CATEGORIES) + 1),
            torch.full((*shape, 4), next(self.boxes)),
            mask_source=None if masks is None else ComputedMasks(masks.unflatten(0, shape[1:])),
        )


def compare_fixed(reference: FixedEngine, exported: FixedEngine) -> ExportComparison:
    return compare(reference, exported, [noise_batch([(64, 64), (64, 96)]), noise_batch([(64, 64)])], CATEGORIES)


def test_boxes_are_averaged_over_the_images_of_all_batches() -> None:
    assert compare_fixed(FixedEngine(), FixedEngine((0.75, 0.5))).mean_box_difference == pytest.approx(0.25 * 2 / 3)
    assert compare_fixed(FixedEngine(), FixedEngine((0.5, 0.75))).mean_box_difference == pytest.approx(0.25 / 3)


@pytest.mark.parametrize("batch", [0, 1])
def test_one_different_mask_is_detected_in_any_batch(batch: int) -> None:
    same = [torch.zeros(4, 8, 8), torch.zeros(2, 8, 8)]
    assert compare_fixed(FixedEngine(masks=same), FixedEngine(masks=same)).max_mask_difference == 0
    other = [one.clone() for one in same]
    other[batch][1, 2, 3] = torch.logit(torch.tensor(0.75))
    comparison = compare_fixed(FixedEngine(masks=same), FixedEngine(masks=other))
    assert comparison.max_mask_difference == pytest.approx(0.25)
    with pytest.raises(ExportError, match=r"differs from PyTorch by 0\.25"):
        comparison.check("float32")


def test_masks_of_another_size_are_rejected() -> None:
    same, other = ([torch.zeros(4, side, side), torch.zeros(2, side, side)] for side in (8, 4))
    comparison = compare_fixed(FixedEngine(masks=same), FixedEngine(masks=other))
    assert comparison.max_mask_difference == torch.inf
    with pytest.raises(ExportError, match="differs from PyTorch by inf"):
        comparison.check("float32")


def test_comparison_without_detections_is_rejected() -> None:
    with pytest.raises(ExportError, match="selects other proposals on all images and detects nothing"):
        compare_two_stage(expected_score=0.02).check("float32")


def test_detections_are_matched_by_class_box_and_score() -> None:
    def detections(box: list[float], label: int, score: float) -> Detections:
        return Detections(
            torch.tensor([box]), torch.tensor([score]), torch.tensor([label]), torch.tensor([label]), ("a",)
        )

    expected = detections([0.0, 0.0, 10.0, 10.0], 1, 0.9)
    assert count_matched(expected, detections([0.0, 0.0, 10.0, 9.0], 1, 0.8)) == 1
    assert count_matched(expected, detections([0.0, 0.0, 10.0, 5.0], 1, 0.9)) == 0
    assert count_matched(expected, detections([0.0, 0.0, 10.0, 10.0], 2, 0.9)) == 0
    assert count_matched(expected, detections([0.0, 0.0, 10.0, 10.0], 1, 0.6)) == 0
