"""All that can be said about one prediction, collected: attention, shapes, boxes layer by layer, matching.

Input: a model and a sample, with objects or without. Output: an `Explanation`.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from PIL.Image import Image
from torch import Tensor

from detrkit.checkpoints.native import Preprocessing
from detrkit.data.batching import collate
from detrkit.data.categories import Categories
from detrkit.data.images import tensor_to_image
from detrkit.data.transforms.geometry import EvalTransform
from detrkit.errors import CheckpointError
from detrkit.explain.masks import Masks, find_segments, masks_of
from detrkit.explain.matching import MatchingExplanation, explain_matching
from detrkit.explain.stages import StageIO, capture_stage_io
from detrkit.losses.criterion import SetCriterion
from detrkit.models.attention.recording import RecordedAttention, record_attention
from detrkit.models.detr import DETR
from detrkit.ops.boxes import cxcywh_to_xyxy
from detrkit.postprocess.panoptic import MIN_SCORE
from detrkit.structures import Annotations, PanopticSegments, Sample


@dataclass(frozen=True)
class Explanation:
    """One photo and what the model made of it.

    Attributes:
        photo: as it lies on disk, upright.
        categories: of the model.
        attention: who looked at what, computed when asked for.
        passages: shapes in and out of every stage.
        annotations: the true objects, xyxy in pixels of the photo; None where nothing is known.
        matching: predictions and objects; None where nothing is known.
        masks: drawn when asked for; None where the model has no mask head.
        segments: what every pixel belongs to; None without masks, or where nobody said which categories are things.
    """

    photo: Image
    categories: Categories
    attention: RecordedAttention
    passages: tuple[StageIO, ...]
    annotations: Annotations | None
    matching: MatchingExplanation | None
    masks: Masks | None = None
    segments: PanopticSegments | None = None

    @property
    def layer_boxes(self) -> Float[Tensor, "T Q 4"]:
        """Every query's box after every decoder layer, xyxy in pixels of the photo."""
        height, width = self.attention.grid.original
        boxes = cxcywh_to_xyxy(self.attention.predictions.layer_boxes[:, 0].float())
        return boxes * torch.tensor([width, height, width, height])

    @property
    def layer_probabilities(self) -> Float[Tensor, "T Q K"]:
        """Every query's score of every class after every decoder layer, no-object left out."""
        return self.attention.predictions.layer_probabilities[:, 0]

    @property
    def scores_and_labels(self) -> tuple[Float[Tensor, "Q"], Int64[Tensor, "Q"]]:
        """Each query's best class after the last layer."""
        best = self.layer_probabilities[-1].max(-1)
        return best.values, best.indices


def explain(
    model: DETR,
    preprocessing: Preprocessing,
    categories: Categories,
    sample: Sample,
    *,
    loss: SetCriterion | None = None,
    segment_threshold: float = MIN_SCORE,
) -> Explanation:
    """Run a model over one photo and collect what can be said about it.

    Args:
        model: it is put into eval mode.
        preprocessing: of the model.
        categories: of the model.
        sample: the photo as it lies on disk, with its objects.
        loss: explains the matching with the sample's objects; None when they are not known.
        segment_threshold: least score of a query to take part in the segments.

    Raises:
        CheckpointError: the model's output is not finite.
    """
    resized = EvalTransform(preprocessing.image_size)(sample)
    batch = collate([resized])
    with capture_stage_io(model.eval()) as passages:
        attention = record_attention(model, batch, padding_invariant=preprocessing.padding_invariant)[0]
        predictions = attention.predictions
        _check_finite(predictions.layer_boxes, predictions.layer_class_logits)
        masks = masks_of(model, attention, preprocessing.padding_invariant)
        if masks is not None:
            _check_finite(masks.probabilities([0]))  # one mask, so that its shapes are noted
    segments = None
    if masks is not None and categories.is_thing is not None:
        segments = find_segments(masks, attention, batch, categories, segment_threshold)
    known = loss is not None
    return Explanation(
        photo=tensor_to_image(sample.image),
        categories=categories,
        attention=attention,
        passages=tuple(passages),
        annotations=sample.annotations if known else None,
        matching=explain_matching(predictions, batch.targets[0], loss, categories.names) if loss else None,
        masks=masks,
        segments=segments,
    )


def _check_finite(*outputs: Tensor) -> None:
    if not all(output.isfinite().all() for output in outputs):
        raise CheckpointError(
            "model: its output for this photo is not finite (NaN or infinity), expected numbers; "
            "the weights are damaged or their training diverged"
        )
