"""Does an exported file say what PyTorch says? Both predict the same photos, and what differs is measured.

float32 must agree in every logit and box. Lower precisions cannot; there it counts whether the same objects are found, and
what AP is lost where annotations are known.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from detrkit._internal.text import plural
from detrkit.data.categories import Categories
from detrkit.errors import ExportError
from detrkit.evaluation.coco import evaluate_boxes
from detrkit.inference.engines.exported import ExportPrecision, min_side
from detrkit.inference.engines.torch import Engine, MaskEngine
from detrkit.ops.boxes import generalized_iou
from detrkit.postprocess.boxes import best_of, to_detections
from detrkit.structures import Batch, Detections, Predictions

LARGEST_DIFFERENCE = 1e-3  # of logits, scores and relative boxes, in float32
LARGEST_MEAN_BOX_DIFFERENCE = 0.05  # of the photo's sides, over all queries, in lower precision
SMALLEST_SHARE_FOUND = 0.9  # of PyTorch's detections, in lower precision, where no AP can be told
LARGEST_AP_LOSS = 0.02
THRESHOLD = 0.5  # of a detection that an export should find again
_SAME_PLACE = 0.7  # IoU
_SLACK = 0.2  # of the score: a detection may fall below the threshold that far
_OTHER_CELL = 0.01  # of a photo's side that a query's box is elsewhere, when it started from another cell
_MIN_SCORE = 0.1  # of detections that both must have then, and how alike:
_SAME_PLACE_THEN, _SLACK_THEN = 0.95, 0.02


@dataclass(frozen=True)
class ExportComparison:
    """What differs between PyTorch and an exported file.

    Attributes:
        num_images: that both predicted.
        logits: largest difference; None where the file gives scores only.
        scores: largest difference of the best class's score, over all queries.
        boxes: largest difference of a relative box.
        mean_boxes: mean difference of a relative box.
        num_detections: of PyTorch, from `THRESHOLD` on.
        num_found: of these, with the same class, about the same score and place in the export.
        ap: of PyTorch and of the export, where annotations are known.
        masks: largest difference of a probability in the mask of any query; None without a mask head.
        largest: difference of logits (or else scores) and boxes, but on photos that are reordered.
        num_reordered: photos on which queries differ and detections agree, as where proposals are equally good.
        num_agreed: detections on these.
    """

    num_images: int
    logits: float | None
    scores: float
    boxes: float
    mean_boxes: float
    num_detections: int
    num_found: int
    ap: tuple[float, float] | None
    largest: float
    masks: float | None = None
    num_reordered: int = 0
    num_agreed: int = 0

    def lines(self) -> list[str]:
        """Say it to people."""
        logits = "" if self.logits is None else f"logits {self.logits:.2g}, "
        said = [
            f"against PyTorch on {plural(self.num_images, 'photo')}, largest difference: {logits}scores {self.scores:.2g}, "
            f"boxes {self.boxes:.2g} of the photo's side" + ("" if self.masks is None else f", masks {self.masks:.2g}"),
            f"of PyTorch's {self.num_detections} detections above {THRESHOLD}, found again: {self.num_found}"
            if self.num_detections
            else f"PyTorch has no detection above {THRESHOLD} on these photos",
        ]
        if self.num_reordered:
            said.append(
                f"on {self.num_reordered} of them queries start from other cells, and find the same {self.num_agreed} "
                f"detections above {_MIN_SCORE}"
            )
        if self.ap is not None:
            said.append(f"AP {self.ap[1]:.4f}, PyTorch's {self.ap[0]:.4f}, difference {self.ap[1] - self.ap[0]:+.4f}")
        return said

    def check(self, precision: ExportPrecision) -> None:
        """See that the export may be used.

        Raises:
            ExportError: it differs too much for its precision.
        """
        if precision == "float32":
            wrong, allowed = self._fault_of_float32()
        else:
            wrong, allowed = self._fault_of_low_precision()
        if wrong:
            raise ExportError(f"export: the {precision} network {wrong}, expected {allowed}; nothing was written")

    def _fault_of_float32(self) -> tuple[str | None, str]:
        if 0 < self.num_images == self.num_reordered and not self.num_agreed:
            return (
                "starts from other cells on all photos and finds nothing",
                "photos (--data) on which something is found",
            )
        largest = max(self.largest, self.masks or 0.0)
        wrong = None if largest <= LARGEST_DIFFERENCE else f"differs from PyTorch by {largest:.3g}"
        return wrong, f"at most {LARGEST_DIFFERENCE}"

    def _fault_of_low_precision(self) -> tuple[str | None, str]:
        if not self.mean_boxes <= LARGEST_MEAN_BOX_DIFFERENCE:
            found = f"has boxes {self.mean_boxes:.3f} of the photo's side off"
            return found, f"at most {LARGEST_MEAN_BOX_DIFFERENCE} on average"
        if self.ap is not None:
            loss = self.ap[0] - self.ap[1]
            return None if loss <= LARGEST_AP_LOSS else f"loses {loss:.4f} AP", f"at most {LARGEST_AP_LOSS}"
        share = self.num_found / max(self.num_detections, 1)
        fault = self.num_detections > 0 and share < SMALLEST_SHARE_FOUND
        return f"finds {share:.0%} of PyTorch's detections" if fault else None, f"at least {SMALLEST_SHARE_FOUND:.0%}"


def compare(
    reference: Engine,
    exported: Engine,
    batches: Iterable[Batch],
    categories: Categories,
    annotations: Path | Mapping[str, Any] | None = None,
    *,
    has_logits: bool = True,
) -> ExportComparison:
    """Let both predict, and measure.

    Args:
        reference: PyTorch.
        exported: the file, read back.
        batches: of photos, some of them padded.
        categories: of both.
        annotations: of the photos, as COCO has them; None where there are none.
        has_logits: whether the export gives more than scores.

    Raises:
        CheckpointError: the file cannot be computed.
    """
    counts = _Counts(has_logits, has_order=reference.config.queries != "two_stage")
    for batch in batches:
        expected, found = reference.predict(batch), exported.predict(batch)
        counts.add(batch, expected, found, categories)
        if reference.config.mask_head and min(map(min, batch.sizes)) >= min_side(reference.config):
            # smaller ones are padded for the graph, and the mask head lets padding in
            counts.add_masks(*(_masks(*one, batch) for one in ((reference, expected), (exported, found))))
    ap = None
    if annotations is not None:
        document = dict(annotations) if isinstance(annotations, Mapping) else annotations
        first, second = (evaluate_boxes(document, results, counts.image_ids).ap for results in counts.results)
        ap = (first, second) if first >= 0 else None
    return ExportComparison(
        num_images=len(counts.image_ids),
        logits=counts.logits if has_logits else None,
        scores=counts.scores,
        boxes=counts.boxes,
        mean_boxes=counts.sum_of_boxes / max(len(counts.image_ids), 1),
        num_detections=counts.num_detections,
        num_found=counts.num_found,
        ap=ap,
        largest=counts.largest,
        masks=counts.masks,
        num_reordered=counts.num_reordered,
        num_agreed=counts.num_agreed,
    )


class _Counts:
    """What a comparison gathers, batch by batch."""

    def __init__(self, has_logits: bool, has_order: bool) -> None:
        """Begin with nothing; queries have an order when the same ones must say the same."""
        self.has_logits = has_logits
        self.has_order = has_order
        self.image_ids: list[int] = []
        self.results: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])
        self.logits = self.scores = self.boxes = self.largest = self.sum_of_boxes = 0.0
        self.num_detections = self.num_found = self.num_reordered = self.num_agreed = 0
        self.masks: float | None = None

    def add(self, batch: Batch, first: Predictions, second: Predictions, categories: Categories) -> None:
        self.image_ids += batch.image_ids
        scores, boxes = self._differences(first, second)
        logits = first.class_logits - second.class_logits if self.has_logits else scores
        if self.has_logits:
            self.logits = max(self.logits, _largest(logits))
        self.scores = max(self.scores, _largest(scores))
        self.boxes = max(self.boxes, _largest(boxes))
        closest = boxes if self.has_order else _to_closest(second.boxes, first.boxes)
        self.sum_of_boxes += float(closest.mean()) * len(batch.image_ids)
        detections = [
            to_detections(one, batch.original_sizes, categories.ids, categories.names) for one in (first, second)
        ]
        for results, of_photos in zip(self.results, detections, strict=True):
            for image_id, found in zip(batch.image_ids, of_photos, strict=True):
                results.extend(found.to_coco(image_id))
        for number, (wanted, found) in enumerate(zip(*detections, strict=True)):
            confident = wanted[wanted.scores >= THRESHOLD]
            self.num_detections += len(confident)
            self.num_found += num_found_again(confident, found)
            if not self.has_order and _largest(boxes[number]) > _OTHER_CELL and _say_the_same(wanted, found):
                self.num_reordered += 1
                self.num_agreed += len(wanted[wanted.scores >= _MIN_SCORE])
            else:
                self.largest = max(self.largest, _largest(logits[number]), _largest(boxes[number]))

    def _differences(
        self, first: Predictions, second: Predictions
    ) -> tuple[Float[Tensor, "B A"], Float[Tensor, "B A 4"]]:
        """Of scores and boxes: query by query, or where these are not known, answer by answer."""
        if self.has_logits or first.class_scores == "softmax":
            return (_scores(first) - _scores(second)).abs(), (first.boxes - second.boxes).abs()
        return _differences_of_best(first, second)

    def add_masks(self, first: Float[Tensor, "P h w"], second: Float[Tensor, "P _ _"]) -> None:
        if first.shape != second.shape:
            self.masks = torch.inf
            return
        self.masks = _larger(self.masks or 0.0, first.sigmoid(), second.sigmoid())


def _say_the_same(first: Detections, second: Detections) -> bool:
    """Whether each has the other's detections; those that hardly count may differ."""
    return all(
        num_found_again(clear := one[one.scores >= _MIN_SCORE], other, _SAME_PLACE_THEN, _SLACK_THEN) == len(clear)
        for one, other in ((first, second), (second, first))
    )


def _to_closest(boxes: Float[Tensor, "B Q 4"], others: Float[Tensor, "B P 4"]) -> Float[Tensor, "B Q 4"]:
    """How far each box is from the closest of the others."""
    distance = (boxes[:, :, None] - others[:, None].to(boxes.device)).abs()
    closest = distance.amax(-1).argmin(2)[..., None, None].expand(-1, -1, 1, 4)
    return distance.gather(2, closest)[:, :, 0]


def num_found_again(
    wanted: Detections, found: Detections, same_place: float = _SAME_PLACE, slack: float = _SLACK
) -> int:
    """Count the detections that another list holds, too: the same class, about the same place (IoU) and score."""
    if not len(wanted) or not len(found):
        return 0
    same_class = wanted.labels[:, None] == found.labels[None]
    is_there = generalized_iou(wanted.boxes[:, None], found.boxes[None]) >= same_place
    same_score = (wanted.scores[:, None] - found.scores[None]).abs() <= slack
    return int((same_class & is_there & same_score).any(1).sum())


def _scores(predictions: Predictions) -> Float[Tensor, "B Q"]:
    return predictions.probabilities.amax(-1)


def _masks(engine: Engine, predictions: Predictions, batch: Batch) -> Float[Tensor, "P _ _"]:
    """The mask logits of every query, those of the first photo first."""
    assert isinstance(engine, MaskEngine), "only a model with a mask head is asked for masks"
    num_images, num_queries = predictions.boxes.shape[:2]
    queries = torch.arange(num_queries).repeat(num_images)
    return engine.compute_masks(predictions, batch, queries, [num_queries] * num_images).float().cpu()


def _differences_of_best(
    first: Predictions, second: Predictions
) -> tuple[Float[Tensor, "B A"], Float[Tensor, "B A 4"]]:
    """Compare best pairs of query and class, of which those with about the same score may have changed places.

    Returns:
        How far scores differ, and how far each box of the second is from the closest of the first that has its
        class and about its score.
    """
    sizes = torch.ones(len(first.boxes), 2, dtype=torch.int64, device=first.boxes.device)
    wanted, found = best_of(first, sizes), best_of(second, sizes.to(second.boxes.device))
    distance = (found.boxes[:, :, None] - wanted.boxes[:, None]).abs()
    is_other = found.labels[:, :, None] != wanted.labels[:, None]
    is_other |= (found.scores[:, :, None] - wanted.scores[:, None]).abs() > LARGEST_DIFFERENCE
    farthest = distance.amax(-1).masked_fill(is_other, torch.inf)
    closest = distance.gather(2, farthest.argmin(2)[..., None, None].expand(-1, -1, 1, 4))[:, :, 0]
    closest = torch.where(farthest.isfinite().any(2)[..., None], closest, 1.0)
    return (found.scores - wanted.scores).abs(), closest


def _larger(before: float, first: Tensor, second: Tensor) -> float:
    """The largest difference so far."""
    return max(before, _largest(first - second))


def _largest(differences: Tensor) -> float:
    """The largest of them; anything that is not a number counts as endless."""
    return float(differences.abs().nan_to_num(torch.inf, torch.inf).max())
