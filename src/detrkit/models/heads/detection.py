"""Class and box heads (paper, section 3.2, "prediction feed-forward networks").

They are applied to the states of every decoder layer at once, (T, B, Q, D), and shared between layers or one per layer.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from detrkit.models.decoder_output import DecoderOutput
from detrkit.models.layers import ACTIVATIONS, ActivationName, in_float32
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
    """Three linear layers with activations in between, to the logits of (cx, cy, w, h).

    Args:
        width: D.
        num_outputs: 4, or as many as the distributions of four edges have.
        zero_init: initialise the last layer with zeros, so that untrained boxes are the references.
        activation: between two layers.
    """

    def __init__(
        self, width: int, num_outputs: int = 4, *, zero_init: bool = False, activation: ActivationName = "relu"
    ) -> None:
        first, second, last = nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, num_outputs)
        super().__init__(first, ACTIVATIONS[activation](), second, ACTIVATIONS[activation](), last)
        if zero_init:
            nn.init.zeros_(self.last.weight)
            nn.init.zeros_(self.last.bias)

    @property
    def last(self) -> nn.Linear:
        """The output layer."""
        return cast(nn.Linear, self[-1])

    def forward(self, states: Float[Tensor, "*shape D"]) -> Float[Tensor, "*shape _"]:
        """Compute logits, in float32 under autocast: in bfloat16, a box is off by several pixels."""
        return in_float32(super().forward, states)


class LayerwiseHeads(nn.ModuleList):
    """One head per decoder layer."""

    def forward(self, states: Float[Tensor, "T B Q *shape"], layers: Sequence[int]) -> Float[Tensor, "T B Q *outputs"]:
        """Apply to the states after each layer its own head; `layers` are their indices."""
        return torch.stack([self[layer](one) for layer, one in zip(layers, states, strict=True)])


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

    def forward(self, decoded: DecoderOutput, queries: Queries) -> Predictions:
        """Predict classes and boxes of every query after every layer, in float32.

        Args:
            decoded: states of all queries.
            queries: the model's own queries, and auxiliary ones, whose predictions are kept apart.
        """
        predictions = replace(self.predict(decoded), proposals=queries.proposals)
        return _split_auxiliary(predictions, queries)

    def predict(self, decoded: DecoderOutput) -> Predictions:
        """Predict classes and boxes of all queries."""
        deltas = apply_head(self.box_head, decoded.states, decoded.layers).float()
        boxes = (deltas if decoded.references is None else deltas + decoded.references).sigmoid()
        return self.predictions(decoded, boxes)

    def predictions(self, decoded: DecoderOutput, boxes: Float[Tensor, "T B Q 4"]) -> Predictions:
        """Predict classes for given boxes."""
        logits = apply_head(self.class_head, decoded.states, decoded.layers).float()
        return Predictions(logits, boxes, class_scores=self.class_scores, max_detections=self.max_detections)


def apply_head(head: nn.Module, states: Float[Tensor, "T B Q D"], layers: Sequence[int]) -> Float[Tensor, "T B Q _"]:
    """Apply a shared head, or one per layer; `layers` are the indices of the layers."""
    outputs: Tensor = head(states, layers) if isinstance(head, LayerwiseHeads) else head(states)
    return outputs


def _split_auxiliary(predictions: Predictions, queries: Queries) -> Predictions:
    """Separate the predictions of auxiliary queries from those of the model's own."""
    if not queries.auxiliary:
        return predictions
    sizes = [one.queries.num_queries for one in queries.auxiliary]
    first = queries.num_queries - sum(sizes)
    auxiliary = []
    start = first
    for one, size in zip(queries.auxiliary, sizes, strict=True):
        of_kind = replace(predictions.of_queries(slice(start, start + size)), proposals=one.queries.proposals)
        auxiliary.append(AuxiliaryPredictions(one.kind, of_kind, one.group.count))
        start += size
    return replace(predictions.of_queries(slice(0, first)), auxiliary=tuple(auxiliary))


def _shared_or_layerwise(heads: Iterable[nn.Module]) -> nn.Module:
    heads = list(heads)
    return heads[0] if len(heads) == 1 else LayerwiseHeads(heads)
