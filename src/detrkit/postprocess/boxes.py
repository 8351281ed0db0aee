"""Class scores and boxes of every query -> scores, labels and boxes in pixels of the original photo.

No non-maximum suppression: matching taught the queries to speak up once per object.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from detrkit.ops.boxes import cxcywh_to_xyxy
from detrkit.structures import Detections, Predictions


@dataclass(frozen=True)
class TopK:
    """The answer for a batch: A pairs of a query and a class, all queries once or the best pairs.

    Attributes:
        scores: 0 .. 1.
        labels: 0 .. K-1.
        boxes: xyxy in pixels of the original photo.
        queries: who says it.
    """

    scores: Float[Tensor, "B A"]
    labels: Int64[Tensor, "B A"]
    boxes: Float[Tensor, "B A 4"]
    queries: Int64[Tensor, "B A"]


def best_of(predictions: Predictions, sizes: Int64[Tensor, "B 2"]) -> TopK:
    """Choose what is answered, without threshold, as published for each kind of scores.

    With softmax scores that is each query's best class, in the queries' order. With sigmoid scores it is the best pairs of
    a query and a class, best first (Deformable DETR, published code): a query may say two things, or nothing.

    Args:
        predictions: of a batch; the last layer counts.
        sizes: (height, width) of the original photos in pixels.
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
    boxes = _in_pixels(predictions.boxes, sizes).gather(1, queries[..., None].expand(-1, -1, 4))
    return TopK(scores, pairs % num_classes, boxes, queries)


def best_class_boxes(
    class_logits: Float[Tensor, "B Q K1"], boxes: Float[Tensor, "B Q 4"], sizes: Int64[Tensor, "B 2"]
) -> tuple[Float[Tensor, "B Q"], Int64[Tensor, "B Q"], Float[Tensor, "B Q 4"]]:
    """Take each query's best class, no-object left out even where it is the likeliest (paper, section 4).

    Args:
        class_logits: last class no-object.
        boxes: cxcywh, relative.
        sizes: (height, width) of the original photos in pixels.

    Returns:
        Scores in 0 .. 1, labels in 0 .. K-1, and boxes xyxy in pixels. All queries, in their own order, without
        threshold, as published.
    """
    scores, labels = class_logits.float().softmax(-1)[..., :-1].max(-1)
    return scores, labels, _in_pixels(boxes, sizes)


def _in_pixels(boxes: Float[Tensor, "B Q 4"], sizes: Int64[Tensor, "B 2"]) -> Float[Tensor, "B Q 4"]:
    scale = sizes.flip(-1).repeat(1, 2).to(torch.float32)  # width, height, width, height
    return cxcywh_to_xyxy(boxes.float()) * scale[:, None]


def to_detections(
    predictions: Predictions,
    sizes: Sequence[tuple[int, int]],
    category_ids: Sequence[int],
    class_names: Sequence[str],
    threshold: float | Sequence[float] = 0.0,
) -> list[Detections]:
    """Turn predictions into the objects of each photo, best first.

    Args:
        predictions: of a batch.
        sizes: (height, width) of each original photo in pixels.
        category_ids: the dataset's own id of each label.
        class_names: name of each label.
        threshold: least score to be kept, of all labels or of each; 0 keeps every query, as evaluation needs.
    """
    found = []
    ids = torch.as_tensor(category_ids)
    least = torch.as_tensor(threshold, dtype=torch.float32).expand(len(ids))
    in_pixels = torch.tensor(sizes, dtype=torch.int64, device=predictions.boxes.device).view(-1, 2)
    best = best_of(predictions, in_pixels)
    on_host = (one.cpu() for one in (best.scores, best.labels, best.boxes, best.queries))
    for scores, labels, pixel_boxes, queries, size in zip(*on_host, sizes, strict=True):
        names = tuple(class_names[label] for label in labels.tolist())
        detections = Detections(pixel_boxes, scores, labels, ids[labels], names, size=size, queries=queries)
        order = scores.argsort(descending=True, stable=True)
        found.append(detections[order[scores[order] >= least[labels[order]]]])
    return found
