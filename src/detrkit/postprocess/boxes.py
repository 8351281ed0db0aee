"""Convert class logits and boxes of the queries into scores, labels and boxes in pixels of the original image.

There is no non-maximum suppression: with bipartite matching, the model learns to predict every object once.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from detrkit.ops.boxes import cxcywh_to_xyxy
from detrkit.ops.transfer import to_device_async
from detrkit.structures import Detections, Predictions


@dataclass(frozen=True)
class TopK:
    """Detections of a batch, A per image: the best class of every query, or the best (query, class) pairs.

    Attributes:
        scores: 0 .. 1.
        labels: 0 .. K-1.
        boxes: xyxy in pixels of the original image.
        queries: index of the query of each detection.
    """

    scores: Float[Tensor, "B A"]
    labels: Int64[Tensor, "B A"]
    boxes: Float[Tensor, "B A 4"]
    queries: Int64[Tensor, "B A"]

    def to_host(self) -> "TopK":
        """Copy to the CPU, with a single transfer: each one waits for a GPU."""
        if self.scores.device.type == "cpu":
            return self
        # float32 holds labels and queries exactly: both are below 2**24
        columns = (self.scores[..., None], self.labels[..., None], self.boxes, self.queries[..., None])
        scores, labels, boxes, queries = (
            torch.cat([one.float() for one in columns], dim=-1).cpu().split([1, 1, 4, 1], dim=-1)
        )
        return TopK(scores[..., 0], labels[..., 0].long(), boxes.contiguous(), queries[..., 0].long())


def top_detections(predictions: Predictions, sizes: Int64[Tensor, "B 2"]) -> TopK:
    """Select detections without a score threshold, as published for each kind of scores.

    With softmax scores, these are the best class of every query, in the order of the queries. With sigmoid scores, they are
    the (query, class) pairs with the highest scores, best first (Deformable DETR, published code); a query may have
    several detections, or none.

    Args:
        predictions: of a batch; those of the last layer are used.
        sizes: (height, width) of the original images.
    """
    if predictions.class_scores == "softmax":
        best = best_class_boxes(predictions.class_logits, predictions.boxes, sizes)
        queries = torch.arange(best[0].shape[1], device=best[0].device)
        return TopK(*best, queries.expand(best[0].shape[0], -1))
    probabilities = predictions.probabilities
    num_queries, num_classes = probabilities.shape[1:]
    count = min(predictions.max_detections or num_queries, num_queries * num_classes)
    scores, pairs = probabilities.flatten(1).topk(count, dim=1)
    queries = pairs // num_classes
    boxes = _to_pixels(predictions.boxes, sizes).gather(1, queries[..., None].expand(-1, -1, 4))
    return TopK(scores, pairs % num_classes, boxes, queries)


def best_class_boxes(
    class_logits: Float[Tensor, "B Q K1"], boxes: Float[Tensor, "B Q 4"], sizes: Int64[Tensor, "B 2"]
) -> tuple[Float[Tensor, "B Q"], Int64[Tensor, "B Q"], Float[Tensor, "B Q 4"]]:
    """Select the best class of every query except "no object", even if that is more likely (paper, section 4).

    Args:
        class_logits: logits; the last class is "no object".
        boxes: cxcywh in 0 .. 1.
        sizes: (height, width) of the original images.

    Returns:
        Scores in 0 .. 1, labels 0 .. K-1, and boxes xyxy in pixels, in the order of the queries.
    """
    scores, labels = class_logits.float().softmax(-1)[..., :-1].max(-1)
    return scores, labels, _to_pixels(boxes, sizes)


def _to_pixels(boxes: Float[Tensor, "B Q 4"], sizes: Int64[Tensor, "B 2"]) -> Float[Tensor, "B Q 4"]:
    scale = sizes.flip(-1).repeat(1, 2).to(torch.float32)  # width, height, width, height
    return cxcywh_to_xyxy(boxes.float()) * scale[:, None]


def to_detections(
    predictions: Predictions,
    sizes: Sequence[tuple[int, int]],
    category_ids: Sequence[int],
    class_names: Sequence[str],
    threshold: float | Sequence[float] = 0.0,
) -> list[Detections]:
    """Convert predictions into the detections of each image, by descending score.

    Args:
        predictions: of a batch.
        sizes: (height, width) of the original images.
        category_ids: the dataset's id of each label.
        class_names: name of each label.
        threshold: minimum score, for all labels or one per label; 0 keeps all detections, for evaluation.
    """
    all_detections = []
    ids = torch.as_tensor(category_ids)
    min_scores = torch.as_tensor(threshold, dtype=torch.float32).expand(len(ids))
    size_tensor = to_device_async(torch.tensor(sizes, dtype=torch.int64).view(-1, 2), predictions.boxes.device)
    best = top_detections(predictions, size_tensor).to_host()
    of_images = zip(best.scores, best.labels, best.boxes, best.queries, sizes, strict=True)
    for scores, labels, pixel_boxes, queries, size in of_images:
        names = tuple(class_names[label] for label in labels.tolist())
        detections = Detections(pixel_boxes, scores, labels, ids[labels], names, size=size, queries=queries)
        order = scores.argsort(descending=True, stable=True)
        all_detections.append(detections[order[scores[order] >= min_scores[labels[order]]]])
    return all_detections
