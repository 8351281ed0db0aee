"""Check of a run with `overfit`: whether a few images were fitted, and if not, the most likely reasons."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from detrkit.config.model import ModelConfig
from detrkit.evaluation.metrics import EvalMetrics
from detrkit.ops.boxes import elementwise_iou
from detrkit.structures import Annotations
from detrkit.training.data import TrainingData

GOALS = {"ap": 0.95, "mask_ap": 0.8, "pq": 0.8}  # masks are predicted at a quarter of the resolution
_DUPLICATE_IOU = 0.9  # of two boxes of one image that differ in nothing but their class


@dataclass(frozen=True)
class OverfitReport:
    """Result of a run with `overfit`.

    Attributes:
        metric: name of the primary metric.
        value: of the best checkpoint, on the images that it was trained on.
        goal: value at which data, model and loss are considered to fit together.
        causes: likely reasons for a lower value, a sentence each.
    """

    metric: str
    value: float
    goal: float
    causes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Return whether the goal was reached."""
        return self.value >= self.goal


def check_overfit(metrics: EvalMetrics, data: TrainingData, model: ModelConfig, image_size: int) -> OverfitReport:
    """Compare the metrics of a run on a few images with what is expected of it.

    Args:
        metrics: of the best checkpoint, on the images that it was trained on.
        data: those images.
        model: configuration of the model.
        image_size: shorter side of the images as the model sees them, pixels.
    """
    goal = GOALS[metrics.primary]
    if metrics.primary_value >= goal:
        return OverfitReport(metrics.primary, metrics.primary_value, goal)
    samples = [data.pictures[index] for index in range(len(data.val_ids))]
    objects = [(sample.image.shape[1:], sample.annotations) for sample in samples]
    causes = list(_causes(objects, model, image_size))
    per_class = () if metrics.boxes is None else metrics.boxes.per_class
    worst = [one for one in sorted(per_class, key=lambda one: one.ap) if one.ap < GOALS["ap"]][:3]
    if worst and len(worst) < sum(one.num_objects > 0 for one in per_class):
        classes = ", ".join(f"{one.name} {one.ap:.2f}" for one in worst)
        causes.append(f"some classes have a low AP ({classes}): check their boxes with detrkit doctor")
    causes.append("if the loss was still falling, train for more epochs or with a higher lr")
    return OverfitReport(metrics.primary, metrics.primary_value, goal, tuple(causes))


def _causes(objects: list[tuple[torch.Size, Annotations]], model: ModelConfig, image_size: int) -> Iterator[str]:
    max_objects = max((len(annotations.labels) for _, annotations in objects), default=0)
    if max_objects > model.num_queries:
        yield (
            f"an image has {max_objects} objects, but the model {model.num_queries} queries: set "
            f"num_queries={2 * max_objects}"
        )
    small = sum(
        int(((_sides(annotations).amax(1) * image_size / min(size)) < model.stride / 2).sum())
        for size, annotations in objects
    )
    if small:
        yield (
            f"{small} objects are smaller than half a cell of {model.stride} px: use a larger image_size or a "
            "finer feature map"
        )
    duplicates = sum(_num_duplicates(annotations) for _, annotations in objects)
    if duplicates:
        yield f"{duplicates} pairs of boxes coincide: an object is annotated twice, or with two classes"


def _sides(annotations: Annotations) -> torch.Tensor:
    return annotations.boxes[:, 2:] - annotations.boxes[:, :2]


def _num_duplicates(annotations: Annotations) -> int:

    if len(annotations.labels) < 2:
        return 0
    return int((elementwise_iou(annotations.boxes[:, None], annotations.boxes).triu(1) > _DUPLICATE_IOU).sum())
