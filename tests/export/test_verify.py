"""The comparison with PyTorch finds what is wrong with an export, and lets pass what is right."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from detrkit.config.model import ModelConfig
from detrkit.errors import ExportError
from detrkit.export.verify import ExportComparison, compare, num_found_again
from detrkit.models.presets import preset_config
from detrkit.structures import Batch, Detections, Predictions
from tests.export.models import CATEGORIES, batch_of, small_model

GOOD = ExportComparison(4, 1e-5, 1e-6, 1e-6, 1e-7, 10, 10, None, 1e-5)


class Changed:
    """PyTorch with a number added to its logits and its boxes."""

    def __init__(self, logits: float = 0.0, boxes: float = 0.0) -> None:
        self.model = small_model()
        self.config: ModelConfig = self.model.config
        self.change = logits, boxes

    @torch.inference_mode()
    def predict(self, batch: Batch) -> Predictions:
        found = self.model(batch.images, batch.padding_mask, padding_invariant=True)
        logits, boxes = found.layer_class_logits.clone(), found.layer_boxes.clone()
        logits[-1, 0, 0, 0] += self.change[0]
        boxes[-1, 0, 0, 0] += self.change[1]
        return Predictions(logits, boxes)


def compared(logits: float = 0.0, boxes: float = 0.0) -> ExportComparison:
    return compare(Changed(), Changed(logits, boxes), [batch_of([(64, 64), (64, 96)])], CATEGORIES)


def test_nothing_differs_from_itself() -> None:
    same = compared()
    assert (same.logits, same.scores, same.boxes, same.num_images) == (0, 0, 0, 2)
    assert same.num_found == same.num_detections > 0
    same.check("float32")


def test_one_logit_or_one_box_that_differs_is_found() -> None:
    assert compared(logits=0.5).logits == pytest.approx(0.5, abs=1e-5)
    assert compared(boxes=0.25).boxes == pytest.approx(0.25)
    assert compared(boxes=0.25).mean_boxes == pytest.approx(0.25 / (2 * 10 * 4))
    for wrong in (compared(logits=0.002), compared(boxes=0.002), compared(logits=float("nan"))):
        with pytest.raises(ExportError, match=r"float32 network differs from PyTorch by .*; nothing was written"):
            wrong.check("float32")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"num_found": 8}, "finds 80% of PyTorch's detections, expected at least 90%"),
        ({"mean_boxes": 0.06}, "0.060 of the photo's side off"),
        ({"mean_boxes": float("nan")}, "of the photo's side off"),
        ({"ap": (0.5, 0.47)}, "loses 0.0300 AP, expected at most 0.02"),
    ],
)
def test_what_is_too_much_for_int8(changes: dict[str, object], says: str) -> None:
    with pytest.raises(ExportError) as error:
        ExportComparison(**{**vars(GOOD), **changes}).check("int8")
    assert says in str(error.value)


@pytest.mark.parametrize(
    "changes", [{}, {"num_found": 9}, {"ap": (0.5, 0.485), "num_found": 5}, {"num_detections": 0, "num_found": 0}]
)
def test_what_int8_may_lose(changes: dict[str, object]) -> None:
    ExportComparison(**{**vars(GOOD), "logits": 2.0, **changes}).check("int8")


class Proposed:
    """A two-stage model's answers: an object, and queries that start from an even background, in any order."""

    def __init__(self, order: list[int], background: float = 0.0, score: float = 0.9, shift: float = 0.0) -> None:
        self.config = preset_config("deformable-detr-r50-two-stage", num_classes=len(CATEGORIES))
        centres = torch.linspace(0.1, 0.9, 5)
        boxes = torch.stack([centres, centres, torch.full((5,), 0.1), torch.full((5,), 0.1)], -1)
        boxes[0, 2] += shift
        scores = torch.full((5, len(CATEGORIES)), 0.01 + background)
        scores[0, 1] = score
        self.answer = Predictions(
            torch.logit(scores[order])[None, None], boxes[order][None, None], class_scores="sigmoid"
        )

    def predict(self, batch: Batch) -> Predictions:
        return self.answer


SAME, OTHER = [0, 1, 2, 3, 4], [0, 3, 1, 4, 2]


def proposed(*, order: list[int] = OTHER, found: float = 0.9, **changes: float) -> ExportComparison:
    reference, exported = Proposed(SAME, score=found), Proposed(order, **{"score": found, **changes})
    return compare(reference, exported, [batch_of([(64, 64)])], CATEGORIES)


def test_proposals_that_are_equally_good_may_change_places() -> None:
    comparison = proposed()
    assert comparison.boxes > 0.1
    assert (comparison.num_reordered, comparison.num_agreed) == (1, 1)
    assert comparison.mean_boxes == 0, "in lower precision, each box is compared with the closest"
    comparison.check("float32")
    assert "on 1 of them queries start from other cells" in comparison.lines()[-1]
    kept = proposed(order=SAME)
    assert kept.num_reordered == 0
    assert len(kept.lines()) == 2
    kept.check("float32")


@pytest.mark.parametrize(
    "changes",
    [{"score": 0.8}, {"shift": 0.05}, {"background": 0.2}, {"order": SAME, "shift": 0.002}, {"score": 0.05}],
    ids=str,
)
def test_but_what_is_found_must_be_the_same(changes: dict[str, Any]) -> None:
    # the last but one is close, but queries are in order: then nothing is forgiven
    with pytest.raises(ExportError, match="differs from PyTorch by"):
        proposed(**changes).check("float32")


def test_only_what_pytorch_is_sure_of_must_be_found_again() -> None:
    """One object, and four queries that are not worth showing."""
    same, lost = proposed(), proposed(score=0.05)
    assert (same.num_detections, same.num_found) == (1, 1)
    assert (lost.num_detections, lost.num_found) == (1, 0)


def test_ap_is_told_of_pytorch_and_of_the_export() -> None:
    """The export's box is half as wide again: an IoU of 2/3, right at four of ten thresholds."""
    document = {
        "images": [{"id": 0, "height": 64, "width": 64}],
        "categories": CATEGORIES.to_json(),
        "annotations": [{"id": 1, "image_id": 0, "category_id": 18, "bbox": [3.2, 3.2, 6.4, 6.4]}],
    }
    batches = [batch_of([(64, 64)])]
    comparison = compare(Proposed(SAME), Proposed(SAME, shift=0.05), batches, CATEGORIES, document)
    assert comparison.ap == (pytest.approx(1), pytest.approx(0.4))
    assert comparison.lines()[-1] == "AP 0.4000, PyTorch's 1.0000, difference -0.6000"
    with pytest.raises(ExportError, match=r"loses 0\.6000 AP"):
        comparison.check("int8")
    document["annotations"] = []
    assert compare(Proposed(SAME), Proposed(SAME), batches, CATEGORIES, document).ap is None


class Answers:
    """What was said of a batch of two photos, and of one of a single photo: by two queries, whose boxes are a number."""

    def __init__(self, boxes: Sequence[float] = (0.5, 0.5), masks: Sequence[Tensor] = ()) -> None:
        self.config = preset_config("detr-tiny", num_classes=len(CATEGORIES), mask_head=len(masks) > 0)
        self.boxes, self.masks = iter(boxes), iter(masks)

    def predict(self, batch: Batch) -> Predictions:
        shape = 1, len(batch.image_ids), 2
        return Predictions(torch.zeros(*shape, len(CATEGORIES) + 1), torch.full((*shape, 4), next(self.boxes)))

    def compute_masks(self, predictions: Predictions, batch: Batch, queries: Tensor, counts: Sequence[int]) -> Tensor:
        return next(self.masks)


def answered(reference: Answers, exported: Answers) -> ExportComparison:
    return compare(reference, exported, [batch_of([(64, 64), (64, 96)]), batch_of([(64, 64)])], CATEGORIES)


def test_boxes_are_averaged_over_the_photos_of_all_batches() -> None:
    assert answered(Answers(), Answers((0.75, 0.5))).mean_boxes == pytest.approx(0.25 * 2 / 3)
    assert answered(Answers(), Answers((0.5, 0.75))).mean_boxes == pytest.approx(0.25 / 3)


@pytest.mark.parametrize("batch", [0, 1])
def test_one_mask_that_differs_is_found_in_any_batch(batch: int) -> None:
    same = [torch.zeros(4, 8, 8), torch.zeros(2, 8, 8)]
    assert answered(Answers(masks=same), Answers(masks=same)).masks == 0
    other = [one.clone() for one in same]
    other[batch][1, 2, 3] = torch.logit(torch.tensor(0.75))
    comparison = answered(Answers(masks=same), Answers(masks=other))
    assert comparison.masks == pytest.approx(0.25)
    with pytest.raises(ExportError, match=r"differs from PyTorch by 0\.25"):
        comparison.check("float32")


def test_masks_of_another_size_are_no_masks_of_these_photos() -> None:
    same, other = ([torch.zeros(4, side, side), torch.zeros(2, side, side)] for side in (8, 4))
    comparison = answered(Answers(masks=same), Answers(masks=other))
    assert comparison.masks == torch.inf
    with pytest.raises(ExportError, match="differs from PyTorch by inf"):
        comparison.check("float32")


def test_where_nothing_is_found_nothing_is_compared() -> None:
    with pytest.raises(ExportError, match="starts from other cells on all photos and finds nothing"):
        proposed(found=0.02).check("float32")


def test_a_detection_is_found_again_by_class_place_and_score() -> None:
    def detections(box: list[float], label: int, score: float) -> Detections:
        return Detections(
            torch.tensor([box]), torch.tensor([score]), torch.tensor([label]), torch.tensor([label]), ("a",)
        )

    wanted = detections([0.0, 0.0, 10.0, 10.0], 1, 0.9)
    assert num_found_again(wanted, detections([0.0, 0.0, 10.0, 9.0], 1, 0.8)) == 1
    assert num_found_again(wanted, detections([0.0, 0.0, 10.0, 5.0], 1, 0.9)) == 0
    assert num_found_again(wanted, detections([0.0, 0.0, 10.0, 10.0], 2, 0.9)) == 0
    assert num_found_again(wanted, detections([0.0, 0.0, 10.0, 10.0], 1, 0.6)) == 0
