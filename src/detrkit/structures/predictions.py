"""Model output: class logits, boxes and masks per query."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from jaxtyping import Bool, Float
from torch import Tensor

from detrkit.ops.padding import stride_of

ClassScores = Literal["softmax", "sigmoid"]  # one of K classes or no object; or a yes or no for every class


@dataclass(frozen=True)
class EncoderProposals:
    """What the encoder says about every cell, where queries start from its best boxes (two-stage Deformable DETR)."""

    class_logits: Float[Tensor, "B S K"]
    boxes: Float[Tensor, "B S 4"]  # as in `Predictions`


# what queries beside the model's own are there for, while training
AuxiliaryKind = Literal["group", "hybrid", "denoising"]


@dataclass(frozen=True)
class MaskInputs:
    """What the mask head draws from, kept until it is known for which queries."""

    decoded: Float[Tensor, "B Q D"]  # after the last decoder layer
    memory: Float[Tensor, "B D h w"]  # the encoder's output
    projected: Float[Tensor, "B D h w"]  # the backbone's last feature map at width D, before the encoder
    padding_mask: Bool[Tensor, "B h w"] | None  # of that feature map
    levels: tuple[Float[Tensor, "B _ _ _"], ...]  # the backbone's finer feature maps, coarsest first
    padded: tuple[int, int]  # (height, width) of the padded images

    @property
    def mask_size(self) -> tuple[int, int]:
        """Height and width of the masks: of the finest feature map."""
        return self.levels[-1].shape[-2], self.levels[-1].shape[-1]

    def of_photo(self, index: int, size: tuple[int, int]) -> MaskInputs:
        """One photo of the batch, cut to the cells that its (height, width) covers."""

        def cut(cells: Tensor) -> Tensor:
            # divided by the map's stride and rounded up, as convolutions do
            height, width = (
                -(-length // stride_of(whole, count))
                for length, whole, count in zip(size, self.padded, cells.shape[-2:], strict=True)
            )
            return cells[index : index + 1, ..., :height, :width]

        return MaskInputs(
            self.decoded[index : index + 1],
            cut(self.memory),
            cut(self.projected),
            None,
            tuple(cut(level) for level in self.levels),
            size,
        )


@dataclass(frozen=True)
class Predictions:
    """What the model says about a batch: class logits and one box per query, after every decoder layer.

    With softmax scores, K1 is K + 1 and the last class is "no object"; with sigmoid scores it is K. Boxes are cxcywh in
    0 .. 1, relative to each image without its padding.
    """

    layer_class_logits: Float[Tensor, "T B Q K1"]
    layer_boxes: Float[Tensor, "T B Q 4"]
    masks: Float[Tensor, "B Q h w"] | None = None  # logits, over the padded image
    mask_inputs: MaskInputs | None = None  # in place of masks, where only some queries' masks will be asked for
    class_scores: ClassScores = "softmax"
    max_detections: int | None = None  # pairs of query and class that are answered; None: as many as queries
    proposals: EncoderProposals | None = None
    extra: tuple[AuxiliaryPredictions, ...] = ()  # of queries beside the model's own

    @property
    def layer_probabilities(self) -> Float[Tensor, "T B Q K"]:
        """Score of every class, 0 .. 1, without no-object: the one place that knows how logits become scores."""
        logits = self.layer_class_logits.float()
        return logits.sigmoid() if self.class_scores == "sigmoid" else logits.softmax(-1)[..., :-1]

    @property
    def probabilities(self) -> Float[Tensor, "B Q K"]:
        """Score of every class after the last decoder layer."""
        return self.after_layer(-1).layer_probabilities[0]

    @property
    def layer_no_object(self) -> Float[Tensor, "T B Q"]:
        """How sure a query is of having found nothing: its probability, or, for sigmoids, what the best score leaves."""
        if self.class_scores == "sigmoid":
            return 1 - self.layer_probabilities.amax(-1)
        return self.layer_class_logits.float().softmax(-1)[..., -1]

    def after_layer(self, layer: int) -> Predictions:
        """What was said after one decoder layer alone; negative ones count from the last."""
        number = layer % len(self.layer_boxes)
        chosen = slice(number, number + 1)
        return replace(self, layer_class_logits=self.layer_class_logits[chosen], layer_boxes=self.layer_boxes[chosen])

    @property
    def class_logits(self) -> Float[Tensor, "B Q K1"]:
        """Class scores after the last decoder layer."""
        return self.layer_class_logits[-1]

    @property
    def boxes(self) -> Float[Tensor, "B Q 4"]:
        """Boxes after the last decoder layer."""
        return self.layer_boxes[-1]


@dataclass(frozen=True)
class AuxiliaryPredictions:
    """What queries beside the model's own say; see `models.queries.AuxiliaryQueries`."""

    helper: AuxiliaryKind
    predictions: Predictions
