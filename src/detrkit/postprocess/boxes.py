"""Class scores and boxes of every query -> scores, labels and boxes in pixels of the original photo.

No non-maximum suppression: matching taught the queries to speak up once per object.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from detrkit.ops.boxes import cxcywh_to_xyxy


def best_class_boxes(
    class_logits: Float[Tensor, "Q K1"], boxes: Float[Tensor, "Q 4"], size: tuple[int, int]
) -> tuple[Float[Tensor, "Q"], Int64[Tensor, "Q"], Float[Tensor, "Q 4"]]:
    """Take each query's best class, no-object left out even where it is the likeliest (paper, section 4).

    Args:
        class_logits: of one photo, last class no-object.
        boxes: cxcywh, relative.
        size: (height, width) of the original photo in pixels.

    Returns:
        Scores in 0 .. 1, labels in 0 .. K-1, and boxes xyxy in pixels. All queries, in their own order, without
        threshold, as published.
    """
    scores, labels = class_logits.float().softmax(-1)[:, :-1].max(-1)
    height, width = size
    scale = torch.tensor([width, height, width, height], dtype=torch.float32, device=boxes.device)
    return scores, labels, cxcywh_to_xyxy(boxes.float()) * scale
