"""After `--overfit N`: whether the photos were learned by heart, and if not, what is most likely wrong with them."""

from collections.abc import Iterator

import torch

from detrkit.config.model import ModelConfig
from detrkit.evaluation.metrics import EvalMetrics, metric_label
from detrkit.structures import Annotations
from detrkit.training.data import TrainingData

ENOUGH = {"ap": 0.95, "mask_ap": 0.8, "pq": 0.8}  # masks are drawn on a grid of a quarter of the pixels
_CLOSE = 0.9  # IoU of two boxes of one photo that nothing but their class tells apart


def overfit_report(scores: EvalMetrics, data: TrainingData, model: ModelConfig, image_size: int) -> Iterator[str]:
    """Say what a run on a few photos has shown, a line each.

    Args:
        scores: of the best checkpoint, on the photos that it learned from.
        data: those photos.
        model: what learned.
        image_size: shorter side of the photos as the model saw them, pixels.
    """
    enough, said = ENOUGH[scores.primary], f"{metric_label(scores.primary)} {scores.primary_value:.3f}"
    if scores.primary_value >= enough:
        yield f"learned by heart ({said}): {'boxes' if scores.primary == 'ap' else 'masks'}, classes and loss fit together"
        return
    yield f"not learned by heart ({said}, expected {enough} or more). What may be wrong:"
    photos = [data.pictures[index] for index in range(len(data.val_ids))]
    objects = [(photo.image.shape[1:], photo.annotations) for photo in photos]
    reasons = list(_reasons(objects, model, image_size))
    per_class = () if scores.boxes is None else scores.boxes.per_class
    worst = [score for score in sorted(per_class, key=lambda score: score.ap) if score.ap < ENOUGH["ap"]][:3]
    if worst and len(worst) < sum(score.num_objects > 0 for score in per_class):
        found = ", ".join(f"{score.name} {score.ap:.2f}" for score in worst)
        reasons.append(f"some classes lag behind ({found}): look at their boxes with detrkit doctor")
    yield from (f"  {reason}" for reason in reasons)
    yield "  if the loss was still falling: more --epochs, or a higher --lr"


def _reasons(objects: list[tuple[torch.Size, Annotations]], model: ModelConfig, image_size: int) -> Iterator[str]:
    most = max((len(annotations.labels) for _, annotations in objects), default=0)
    if most > model.num_queries:
        yield f"a photo has {most} objects, the model {model.num_queries} queries: --num-queries {2 * most}"
    small = sum(
        int(((_sides(annotations).amax(1) * image_size / min(size)) < model.stride / 2).sum())
        for size, annotations in objects
    )
    if small:
        yield f"objects smaller than half a cell of {model.stride} px: {small}; a larger --image-size, or a finer map"
    twins = sum(_num_twins(annotations) for _, annotations in objects)
    if twins:
        yield f"pairs of boxes that lie upon each other: {twins}; the same object annotated twice, or with two classes"


def _sides(annotations: Annotations) -> torch.Tensor:
    return annotations.boxes[:, 2:] - annotations.boxes[:, :2]


def _num_twins(annotations: Annotations) -> int:
    from torchvision.ops import box_iou

    if len(annotations.labels) < 2:
        return 0
    return int((box_iou(annotations.boxes, annotations.boxes).triu(1) > _CLOSE).sum())
