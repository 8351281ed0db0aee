"""Comparison of an exported model with PyTorch on the same images.

float32 must agree in every logit and box. Lower precisions cannot; they must detect the same objects and, where
annotations are known, keep the AP.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from detrkit.data.categories import Categories
from detrkit.errors import ExportError
from detrkit.evaluation.coco import evaluate_boxes
from detrkit.inference.engines.metadata import ExportPrecision, min_side
from detrkit.inference.engines.torch import Engine
from detrkit.ops.boxes import generalized_iou
from detrkit.postprocess.boxes import TopK, to_detections, top_detections
from detrkit.structures import Batch, Detections, Predictions

MAX_DIFFERENCE = 1e-3  # of logits, scores and relative boxes, in float32
MAX_MEAN_BOX_DIFFERENCE = 0.05  # relative to the image, over all queries, in lower precision
MIN_MATCHED = 0.9  # fraction of PyTorch's detections, in lower precision, without annotations
MAX_AP_LOSS = 0.02
SCORE_THRESHOLD = 0.5  # of PyTorch's detections that the export should match
_MATCH_IOU = 0.7
_MATCH_SCORE_DIFFERENCE = 0.2
# two-stage models: queries may start from other cells if proposals are equally good; then detections are compared
_REORDERED_BOX_DIFFERENCE = 0.01  # relative to the image: from here on, a query started from another cell
REORDERED_MIN_SCORE = 0.1
_REORDERED_IOU, _REORDERED_SCORE_DIFFERENCE = 0.95, 0.02


@dataclass(frozen=True)
class ExportComparison:
    """Differences between the predictions of PyTorch and of an exported model.

    Attributes:
        num_images: number of images.
        max_logit_difference: largest difference of a class logit; None if the model returns scores only.
        max_score_difference: largest difference of a query's best class score.
        max_box_difference: largest difference of a relative box coordinate.
        mean_box_difference: mean difference of a relative box coordinate.
        num_detections: PyTorch's detections above `SCORE_THRESHOLD`.
        num_matched: of these, detections of the export with the same class and about the same score and box.
        max_difference: largest difference of logits (or else scores) and boxes, without reordered images.
        ap: of PyTorch; None without annotations.
        exported_ap: of the export.
        max_mask_difference: largest difference of a mask probability of any query; None without a mask head.
        num_reordered: images on which queries differ and detections agree, as equally good proposals may swap.
        num_reordered_detections: detections on these images.
    """

    num_images: int
    max_logit_difference: float | None
    max_score_difference: float
    max_box_difference: float
    mean_box_difference: float
    num_detections: int
    num_matched: int
    max_difference: float
    ap: float | None = None
    exported_ap: float | None = None
    max_mask_difference: float | None = None
    num_reordered: int = 0
    num_reordered_detections: int = 0

    @property
    def ap_difference(self) -> float | None:
        """AP of the export minus AP of PyTorch; None without annotations."""
        return None if self.ap is None or self.exported_ap is None else self.exported_ap - self.ap

    def check(self, precision: ExportPrecision) -> None:
        """Check that the differences are small enough for the precision.

        Raises:
            ExportError: they are not.
        """
        fault = self._float32_fault() if precision == "float32" else self._low_precision_fault()
        if fault:
            problem, limit = fault
            raise ExportError(f"export: the {precision} network {problem}, expected {limit}; nothing was written")

    def _float32_fault(self) -> tuple[str, str] | None:
        if 0 < self.num_images == self.num_reordered and not self.num_reordered_detections:
            return (
                "selects other proposals on all images and detects nothing",
                "images with objects that the model detects, to compare on",
            )
        difference = max(self.max_difference, self.max_mask_difference or 0.0)
        if difference <= MAX_DIFFERENCE:
            return None
        return f"differs from PyTorch by {difference:.3g}", f"at most {MAX_DIFFERENCE}"

    def _low_precision_fault(self) -> tuple[str, str] | None:
        if not self.mean_box_difference <= MAX_MEAN_BOX_DIFFERENCE:  # or not a number
            problem = f"has a mean box difference of {self.mean_box_difference:.3f}, relative to the image"
            return problem, f"at most {MAX_MEAN_BOX_DIFFERENCE}"
        if self.ap_difference is not None:
            is_worse = self.ap_difference < -MAX_AP_LOSS
            return (f"loses {-self.ap_difference:.4f} AP", f"at most {MAX_AP_LOSS}") if is_worse else None
        matched = self.num_matched / max(self.num_detections, 1)
        if self.num_detections > 0 and matched < MIN_MATCHED:
            return f"matches {matched:.0%} of PyTorch's detections", f"at least {MIN_MATCHED:.0%}"
        return None


def compare(
    reference: Engine,
    exported: Engine,
    batches: Iterable[Batch],
    categories: Categories,
    annotations: Path | Mapping[str, Any] | None = None,
    *,
    has_logits: bool = True,
) -> ExportComparison:
    """Compare the predictions of two engines.

    Args:
        reference: PyTorch.
        exported: the exported model.
        batches: of images, some of them padded.
        categories: of the model.
        annotations: of the images, a COCO file or its content; None if there are none.
        has_logits: whether the exported model returns class logits, not only scores.

    Raises:
        CheckpointError: the exported model cannot be run.
    """
    totals = _Totals(has_logits, has_fixed_order=not reference.config.has_encoder_queries)
    for batch in batches:
        expected, actual = reference.predict(batch), exported.predict(batch)
        is_reordered = totals.add(batch, expected, actual, categories)
        # smaller images are padded for the exported graph, and the mask head sees the padding
        if reference.config.mask_head and min(map(min, batch.sizes)) >= min_side(reference.config):
            totals.add_masks(batch, expected, actual, is_reordered)
    ap = exported_ap = None
    if annotations is not None:
        document = dict(annotations) if isinstance(annotations, Mapping) else annotations
        ap, exported_ap = (evaluate_boxes(document, results, totals.image_ids).ap for results in totals.results)
        if ap < 0:  # no annotated objects
            ap = exported_ap = None
    return totals.result(ap, exported_ap)


class _Totals:
    """Accumulates differences batch by batch.

    Attributes:
        has_logits: whether the exported model returns class logits.
        has_fixed_order: whether the same query must give the same prediction, as in models without proposals.
        results: COCO results of the reference and of the export.
    """

    def __init__(self, has_logits: bool, has_fixed_order: bool) -> None:
        self.has_logits = has_logits
        self.has_fixed_order = has_fixed_order
        self.image_ids: list[int] = []
        self.results: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])
        self.max_logit = self.max_score = self.max_box = self.max_ordered = self.sum_of_boxes = 0.0
        self.num_detections = self.num_matched = self.num_reordered = self.num_reordered_detections = 0
        self.max_mask: float | None = None

    def add(self, batch: Batch, first: Predictions, second: Predictions, categories: Categories) -> list[bool]:
        """Add a batch predicted by the reference (first) and by the export; return which images are reordered."""
        self.image_ids += batch.image_ids
        scores, boxes = self._differences(first, second)
        logits = first.class_logits - second.class_logits if self.has_logits else scores
        if self.has_logits:
            self.max_logit = max(self.max_logit, _max_abs(logits))
        self.max_score = max(self.max_score, _max_abs(scores))
        self.max_box = max(self.max_box, _max_abs(boxes))
        closest = boxes if self.has_fixed_order else _distance_to_closest(second.boxes, first.boxes)
        self.sum_of_boxes += float(closest.mean()) * len(batch.image_ids)
        detections = [
            to_detections(one, batch.original_sizes, categories.ids, categories.names) for one in (first, second)
        ]
        for results, per_image in zip(self.results, detections, strict=True):
            for image_id, one in zip(batch.image_ids, per_image, strict=True):
                results.extend(one.to_coco(image_id))
        reordered = []
        for index, (expected, actual) in enumerate(zip(*detections, strict=True)):
            confident = expected[expected.scores >= SCORE_THRESHOLD]
            self.num_detections += len(confident)
            self.num_matched += count_matched(confident, actual)
            is_reordered = not self.has_fixed_order and _max_abs(boxes[index]) > _REORDERED_BOX_DIFFERENCE
            reordered.append(is_reordered and _agree(expected, actual))
            if reordered[-1]:
                self.num_reordered += 1
                self.num_reordered_detections += len(expected[expected.scores >= REORDERED_MIN_SCORE])
            else:
                self.max_ordered = max(self.max_ordered, _max_abs(logits[index]), _max_abs(boxes[index]))
        return reordered

    def _differences(
        self, first: Predictions, second: Predictions
    ) -> tuple[Float[Tensor, "B A"], Float[Tensor, "B A 4"]]:
        """Return differences of scores and boxes, by query or, for post-processed sigmoid models, by detection."""
        if self._has_queries(first):
            scores = (_best_scores(first) - _best_scores(second)).abs()
            return scores, (first.boxes - second.boxes).abs()
        return differences_of_best(first, second)

    def add_masks(self, batch: Batch, first: Predictions, second: Predictions, is_reordered: Sequence[bool]) -> None:
        """Add the masks of a batch: of all queries, or detections, but those of reordered images."""
        count = second.boxes.shape[1]
        own = pairs = torch.arange(count).expand(len(is_reordered), -1)
        if not self._has_queries(first):
            pairs, own = _closest_queries(first, second)
        kept = [slice(0, 0 if skipped else count) for skipped in is_reordered]
        masks = [
            one.masks_of([row[part] for row, part in zip(rows, kept, strict=True)], batch.sizes).float().cpu()
            for one, rows in ((first, pairs), (second, own))
        ]
        if masks[0].shape != masks[1].shape:
            self.max_mask = torch.inf
        elif len(masks[0]):
            self.max_mask = max(self.max_mask or 0.0, _max_abs(masks[0].sigmoid() - masks[1].sigmoid()))

    def _has_queries(self, first: Predictions) -> bool:
        """Return whether the export has predictions per query; else per detection."""
        return self.has_logits or first.class_scores == "softmax"

    def result(self, ap: float | None, exported_ap: float | None) -> ExportComparison:
        """Return the comparison of all batches."""
        return ExportComparison(
            num_images=len(self.image_ids),
            max_logit_difference=self.max_logit if self.has_logits else None,
            max_score_difference=self.max_score,
            max_box_difference=self.max_box,
            mean_box_difference=self.sum_of_boxes / max(len(self.image_ids), 1),
            num_detections=self.num_detections,
            num_matched=self.num_matched,
            max_difference=self.max_ordered,
            ap=ap,
            exported_ap=exported_ap,
            max_mask_difference=self.max_mask,
            num_reordered=self.num_reordered,
            num_reordered_detections=self.num_reordered_detections,
        )


def _agree(first: Detections, second: Detections) -> bool:
    """Return whether each matches all detections of the other; those with low scores may differ."""
    for one, other in ((first, second), (second, first)):
        clear = one[one.scores >= REORDERED_MIN_SCORE]
        if count_matched(clear, other, _REORDERED_IOU, _REORDERED_SCORE_DIFFERENCE) < len(clear):
            return False
    return True


def _distance_to_closest(boxes: Float[Tensor, "B Q 4"], others: Float[Tensor, "B P 4"]) -> Float[Tensor, "B Q 4"]:
    """Return the difference of each box from the closest of the others."""
    distance = (boxes[:, :, None] - others[:, None].to(boxes.device)).abs()
    closest = distance.amax(-1).argmin(2)[..., None, None].expand(-1, -1, 1, 4)
    return distance.gather(2, closest)[:, :, 0]


def count_matched(
    expected: Detections,
    actual: Detections,
    min_iou: float = _MATCH_IOU,
    max_score_difference: float = _MATCH_SCORE_DIFFERENCE,
) -> int:
    """Count detections that another list contains with the same class and about the same box (GIoU) and score."""
    if not len(expected) or not len(actual):
        return 0
    same_class = expected.labels[:, None] == actual.labels[None]
    same_box = generalized_iou(expected.boxes[:, None], actual.boxes[None]) >= min_iou
    same_score = (expected.scores[:, None] - actual.scores[None]).abs() <= max_score_difference
    return int((same_class & same_box & same_score).any(1).sum())


def _best_scores(predictions: Predictions) -> Float[Tensor, "B Q"]:
    return predictions.probabilities.amax(-1)


def differences_of_best(first: Predictions, second: Predictions) -> tuple[Float[Tensor, "B A"], Float[Tensor, "B A 4"]]:
    """Compare the best pairs of query and class, of which those with about the same score may have swapped ranks.

    Returns:
        Differences of the scores, and of each box of the second from the closest of the first with the same class and
        about the same score (1 without such a box).
    """
    expected, actual = _best_pairs(first, second)
    distance = (actual.boxes[:, :, None] - expected.boxes[:, None]).abs()
    max_distance = _distances_of_same(expected, actual)
    closest = distance.gather(2, max_distance.argmin(2)[..., None, None].expand(-1, -1, 1, 4))[:, :, 0]
    closest = torch.where(max_distance.isfinite().any(2)[..., None], closest, 1.0)
    return (actual.scores - expected.scores).abs(), closest


def _closest_queries(first: Predictions, second: Predictions) -> tuple[Int64[Tensor, "B A"], Int64[Tensor, "B A"]]:
    """Return the queries of the first and of the second whose boxes `differences_of_best` compares."""
    expected, actual = _best_pairs(first, second)
    return expected.queries.gather(1, _distances_of_same(expected, actual).argmin(2)), actual.queries


def _best_pairs(first: Predictions, second: Predictions) -> tuple[TopK, TopK]:
    sizes = torch.ones(len(first.boxes), 2, dtype=torch.int64, device=first.boxes.device)
    return top_detections(first, sizes), top_detections(second, sizes.to(second.boxes.device))


def _distances_of_same(expected: TopK, actual: TopK) -> Float[Tensor, "B A A"]:
    """Return the largest difference of two boxes; infinite for another class or score."""
    is_other = actual.labels[:, :, None] != expected.labels[:, None]
    is_other |= (actual.scores[:, :, None] - expected.scores[:, None]).abs() > MAX_DIFFERENCE
    return (actual.boxes[:, :, None] - expected.boxes[:, None]).abs().amax(-1).masked_fill(is_other, torch.inf)


def _max_abs(differences: Tensor) -> float:
    """Return the largest absolute value; NaN counts as infinity."""
    return float(differences.abs().nan_to_num(torch.inf, torch.inf).max())
