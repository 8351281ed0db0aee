"""AP after every decoder layer, with and without non-maximum suppression (paper, section 4.2 and figure 4).

Queries of the first layer predict duplicates, and NMS helps; later layers suppress them in self-attention, and NMS only
removes true positives.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch

from detrkit.evaluation.arrays import DetectionArrays, EvalInput, GroundTruth
from detrkit.evaluation.coco import evaluate_coco
from detrkit.evaluation.paper.analysis import PaperAnalysis
from detrkit.evaluation.report.page import ReportFigure
from detrkit.visualization.charts import as_png, as_svg, draw_layers

NMS_IOU = 0.5  # the paper's "default parameters"


@dataclass(frozen=True)
class LayerMetrics:
    """AP after one decoder layer, counted from 1, without and with NMS."""

    layer: int
    ap: float
    ap50: float
    ap_nms: float
    ap50_nms: float


def analyse_layers(ground_truth: GroundTruth, layers: Sequence[DetectionArrays], max_detections: int) -> PaperAnalysis:
    """Plot AP after every decoder layer (figure 4)."""
    metrics = evaluate_layers(ground_truth, layers, max_detections)
    figure = draw_layers(
        [one.layer for one in metrics],
        {"AP": [one.ap for one in metrics], "AP50": [one.ap50 for one in metrics]},
        {"AP": [one.ap_nms for one in metrics], "AP50": [one.ap50_nms for one in metrics]},
    )
    text = (
        f"AP after every decoder layer; dashed: with non-maximum suppression at IoU {NMS_IOU}. NMS helps after the first "
        "layer, whose queries have not interacted yet. If it still helps after the last layer, train longer."
    )
    report_figure = ReportFigure("Decoder layers", text, as_png(figure), as_svg(figure))
    return PaperAnalysis("by_layer", report_figure, [asdict(one) for one in metrics])


def evaluate_layers(
    ground_truth: GroundTruth, layers: Sequence[DetectionArrays], max_detections: int
) -> tuple[LayerMetrics, ...]:
    """Compute AP of every layer's detections, first layer first."""
    metrics = []
    for layer, detections in enumerate(layers, start=1):
        inputs = EvalInput.align(ground_truth, detections)
        plain, with_nms = (
            evaluate_coco(one, max_detections, ap50_gains=False).metrics.values
            for one in (inputs, EvalInput.align(ground_truth, nms(inputs)))
        )
        metrics.append(LayerMetrics(layer, plain["ap"], plain["ap50"], with_nms["ap"], with_nms["ap50"]))
    return tuple(metrics)


def nms(inputs: EvalInput, iou: float = NMS_IOU) -> DetectionArrays:
    """Apply non-maximum suppression per image and class."""
    detections = inputs.detections
    corners = np.concatenate([detections.boxes[:, :2], detections.boxes[:, :2] + detections.boxes[:, 2:]], axis=1)
    groups = inputs.image_indices * len(inputs.ground_truth.categories) + inputs.labels
    kept = []
    order = np.argsort(inputs.image_indices, kind="stable")
    ends = np.cumsum(np.bincount(inputs.image_indices, minlength=len(inputs.ground_truth.image_ids)))
    from torchvision.ops import batched_nms  # imported here, because it takes seconds

    for chosen in np.split(order, ends[:-1]):
        if len(chosen):
            of_image = (torch.from_numpy(array[chosen]) for array in (corners, detections.scores, groups))
            kept.append(chosen[batched_nms(*of_image, iou).numpy()])
    return detections.select(np.sort(np.concatenate(kept)) if kept else np.zeros(0, np.int64))
