"""Class and box heads (paper, section 3.2, "prediction feed-forward networks").

They are applied to the states of every decoder layer at once, (T, B, Q, D), and shared between layers or one per layer.
"""

import math
from collections.abc import Iterable
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from detrkit.models.layers import in_float32
from detrkit.models.queries.queries import Queries
from detrkit.structures import AuxiliaryPredictions, ClassScores, Predictions

_PRIOR = 0.01  # initial score of every class with sigmoid scores (focal loss, arXiv:1708.02002, section 4.1)


class ClassHead(nn.Linear):
    """Linear layer to the logits of K classes and, with softmax scores, of "no object" last."""

    def __init__(self, width: int, num_classes: int, class_scores: ClassScores = "softmax") -> None:
        super().__init__(width, num_classes + (class_scores == "softmax"))
        if class_scores == "sigmoid":
            nn.init.constant_(self.bias, math.log(_PRIOR / (1 - _PRIOR)))

    def forward(self, states: Float[Tensor, "*shape D"]) -> Float[Tensor, "*shape K1"]:
        """Compute logits, in float32 under autocast: in bfloat16, many scores would be equal and could not be ranked."""
        return in_float32(super().forward, states)


class BoxHead(nn.Sequential):
    """Three linear layers with ReLUs in between, to the logits of (cx, cy, w, h).

    Args:
        width: D.
        zero_init: initialise the last layer with zeros, so that untrained boxes are the references.
    """

    def __init__(self, width: int, *, zero_init: bool = False) -> None:
        super().__init__(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 4))
        if zero_init:
            nn.init.zeros_(self.last.weight)
            nn.init.zeros_(self.last.bias)

    @property
    def last(self) -> nn.Linear:
        """The output layer."""
        return cast(nn.Linear, self[-1])

    def forward(self, states: Float[Tensor, "*shape D"]) -> Float[Tensor, "*shape 4"]:
        """Compute logits, in float32 under autocast: in bfloat16, a box is off by several pixels."""
        return in_float32(super().forward, states)


class LayerwiseHeads(nn.ModuleList):
    """One head per decoder layer."""

    def forward(self, states: Float[Tensor, "T B Q D"]) -> Float[Tensor, "T B Q _"]:
        """Apply to each layer its own head; if there are fewer layers than heads, they are the last ones."""
        return torch.stack([head(one) for head, one in zip(list(self)[-len(states) :], states, strict=True)])


class DetectionHeads(nn.Module):
    """Class and box heads of all decoder layers.

    Args:
        class_heads: one for all layers, or one per layer.
        box_heads: likewise.
        class_scores: how logits become scores.
        max_detections: number of detections per image, for postprocessing.
    """

    def __init__(
        self,
        class_heads: Iterable[nn.Module],
        box_heads: Iterable[nn.Module],
        class_scores: ClassScores = "softmax",
        max_detections: int | None = None,
    ) -> None:
        super().__init__()
        self.class_head = _shared_or_layerwise(class_heads)
        self.box_head = _shared_or_layerwise(box_heads)
        self.class_scores: ClassScores = class_scores
        self.max_detections = max_detections

    def box_head_of(self, layer: int) -> nn.Module:
        """Return the box head of one decoder layer."""
        return self.box_head[layer] if isinstance(self.box_head, LayerwiseHeads) else self.box_head

    def forward(
        self, states: Float[Tensor, "T B Q D"], references: Float[Tensor, "T B Q 4"] | None, queries: Queries
    ) -> Predictions:
        """Predict classes and boxes of every query after every layer, in float32.

        Args:
            states: of all queries after every decoder layer.
            references: logits that boxes are predicted relative to; None for zero.
            queries: the model's own queries, and auxiliary ones, whose predictions are kept apart.
        """
        deltas = self.box_head(states).float()
        boxes = (deltas if references is None else deltas + references).sigmoid()
        logits = self.class_head(states).float()
        if not queries.auxiliary:
            return self._predictions(logits, boxes, queries)
        sizes = [one.queries.num_queries for one in queries.auxiliary]
        sizes = [queries.num_queries - sum(sizes), *sizes]
        (own_logits, *other_logits), (own_boxes, *other_boxes) = logits.split(sizes, 2), boxes.split(sizes, 2)
        auxiliary = [
            AuxiliaryPredictions(one.kind, self._predictions(its_logits, its_boxes, one.queries))
            for one, its_logits, its_boxes in zip(queries.auxiliary, other_logits, other_boxes, strict=True)
        ]
        return self._predictions(own_logits, own_boxes, queries, tuple(auxiliary))

    def _predictions(
        self,
        logits: Float[Tensor, "T B Q K1"],
        boxes: Float[Tensor, "T B Q 4"],
        queries: Queries,
        auxiliary: tuple[AuxiliaryPredictions, ...] = (),
    ) -> Predictions:
        return Predictions(
            logits,
            boxes,
            class_scores=self.class_scores,
            max_detections=self.max_detections,
            proposals=queries.proposals,
            auxiliary=auxiliary,
        )


def _shared_or_layerwise(heads: Iterable[nn.Module]) -> nn.Module:
    heads = list(heads)
    return heads[0] if len(heads) == 1 else LayerwiseHeads(heads)
