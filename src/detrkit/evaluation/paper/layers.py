"""AP after every decoder layer, with and without non-maximum suppression (paper, section 4.2 and figure 4).

The first layer cannot keep its queries from saying the same thing twice, and NMS helps it; later layers learnt to, and NMS
only takes from them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torchvision.ops import batched_nms

from detrkit.evaluation.arrays import DetectionArrays, EvalInput, GroundTruth
from detrkit.evaluation.coco import evaluate_coco

NMS_IOU = 0.5  # the paper says "default parameters", which were those


@dataclass(frozen=True)
class LayerScore:
    """Scores after one decoder layer, counted from 1, as it is and after NMS."""

    layer: int
    ap: float
    ap50: float
    ap_nms: float
    ap50_nms: float


def score_layers(truth: GroundTruth, layers: Sequence[DetectionArrays], max_detections: int) -> tuple[LayerScore, ...]:
    """Score the detections of every layer, first layer first."""
    scores = []
    for number, found in enumerate(layers, start=1):
        case = EvalInput.of(truth, found)
        plain, suppressed = (
            evaluate_coco(one, max_detections, with_gains=False).scores.values
            for one in (case, EvalInput.of(truth, suppress(case)))
        )
        scores.append(LayerScore(number, plain["ap"], plain["ap50"], suppressed["ap"], suppressed["ap50"]))
    return tuple(scores)


def suppress(case: EvalInput, iou: float = NMS_IOU) -> DetectionArrays:
    """Leave out detections that overlap a better one of their class and photo by more than `iou`."""
    found = case.found
    corners = np.concatenate([found.boxes[:, :2], found.boxes[:, :2] + found.boxes[:, 2:]], axis=1)
    groups = case.photos * len(case.truth.categories) + case.labels
    kept = []
    order = np.argsort(case.photos, kind="stable")
    ends = np.cumsum(np.bincount(case.photos, minlength=len(case.truth.image_ids)))
    for chosen in np.split(order, ends[:-1]):
        if len(chosen):
            of_photo = (torch.from_numpy(column[chosen]) for column in (corners, found.scores, groups))
            kept.append(chosen[batched_nms(*of_photo, iou).numpy()])
    return found.select(np.sort(np.concatenate(kept)) if kept else np.zeros(0, np.int64))
