"""Class scores and boxes of every query -> scores, labels and boxes in pixels of the original photo.

No non-maximum suppression: matching taught the queries to speak up once per object.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from detrkit.ops.boxes import cxcywh_to_xyxy
from detrkit.structures import Detections, Predictions


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
    scale = sizes.flip(-1).repeat(1, 2).to(torch.float32)  # width, height, width, height
    return scores, labels, cxcywh_to_xyxy(boxes.float()) * scale[:, None]


def to_detections(
    predictions: Predictions,
    sizes: Sequence[tuple[int, int]],
    category_ids: Sequence[int],
    names: Sequence[str],
    threshold: float | Sequence[float] = 0.0,
) -> list[Detections]:
    """Turn predictions into the objects of each photo, best first.

    Args:
        predictions: of a batch.
        sizes: (height, width) of each original photo in pixels.
        category_ids: the dataset's own id of each label.
        names: name of each label.
        threshold: least score to be kept, of all labels or of each; 0 keeps every query, as evaluation needs.
    """
    found = []
    ids = torch.as_tensor(category_ids)
    least = torch.as_tensor(threshold, dtype=torch.float32).expand(len(ids))
    in_pixels = torch.tensor(sizes, dtype=torch.int64, device=predictions.boxes.device).view(-1, 2)
    best = (x.cpu() for x in best_class_boxes(predictions.class_logits, predictions.boxes, in_pixels))
    for scores, labels, pixel_boxes, size in zip(*best, sizes, strict=True):
        found_names = tuple(names[label] for label in labels.tolist())
        queries = torch.arange(len(scores))
        detections = Detections(pixel_boxes, scores, ids[labels], found_names, size=size, queries=queries)
        order = scores.argsort(descending=True, stable=True)
        found.append(detections.keep(order[scores[order] >= least[labels[order]]].tolist()))
    return found
