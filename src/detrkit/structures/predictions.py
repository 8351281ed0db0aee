"""Output of a model: class logits, boxes and masks per query."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

ClassScores = Literal["softmax", "sigmoid"]  # over K classes and "no object", or of every class independently
AuxiliaryKind = Literal["group", "hybrid", "denoising"]  # purpose of training-only queries


@runtime_checkable
class MaskSource(Protocol):
    """Computes masks of queries on demand, see `Predictions.masks_of`."""

    @property
    def mask_size(self) -> tuple[int, int]:
        """Height and width of the masks."""
        ...

    def masks_of(
        self, queries: Int64[Tensor, "P"], counts: Sequence[int], sizes: Sequence[tuple[int, int]] | None = None
    ) -> Float[Tensor, "P h w"]:
        """Compute the mask logits of some queries.

        Args:
            queries: indices, image by image.
            counts: number of queries of each image.
            sizes: (height, width) of the images without padding; used by padding-invariant models.
        """
        ...

    def all_masks(self) -> Float[Tensor, "B Q h w"]:
        """Compute the mask logits of all queries."""
        ...

    def select_image(self, index: int, size: tuple[int, int] | None = None) -> MaskSource:
        """Select one image of the batch, cropped to its (height, width); None keeps its padding."""
        ...


@runtime_checkable
class LayerMaskSource(MaskSource, Protocol):
    """Also computes masks after earlier layers, and of all queries at points, for losses and matching at points."""

    @property
    def num_layers(self) -> int:
        """Number of layers T."""
        ...

    @property
    def num_queries(self) -> int:
        """Number of queries Q."""
        ...

    def layer_masks_of(self, layer: int, queries: Int64[Tensor, "P"], counts: Sequence[int]) -> Float[Tensor, "P h w"]:
        """Compute the mask logits of some queries after one of T layers; the arguments are those of `masks_of`."""
        ...

    def at_points(self, points: Float[Tensor, "T P 2"]) -> Float[Tensor, "T B Q P"]:
        """Interpolate the mask logits of all queries; `points` are (x, y) in 0 .. 1 of the padded images, per layer."""
        ...


@dataclass(frozen=True)
class ComputedMasks:
    """Masks of all queries, as of exported models (a `MaskSource`).

    Attributes:
        logits: of all masks, over the padded images.
    """

    logits: Float[Tensor, "B Q h w"]

    @property
    def mask_size(self) -> tuple[int, int]:
        """Height and width of the masks."""
        return self.logits.shape[-2], self.logits.shape[-1]

    def masks_of(
        self, queries: Int64[Tensor, "P"], counts: Sequence[int], sizes: Sequence[tuple[int, int]] | None = None
    ) -> Float[Tensor, "P h w"]:
        """Select the masks of some queries."""
        images = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
        return self.logits[images.to(self.logits.device), queries.to(self.logits.device)]

    def all_masks(self) -> Float[Tensor, "B Q h w"]:
        """Return all masks."""
        return self.logits

    def select_image(self, index: int, size: tuple[int, int] | None = None) -> ComputedMasks:
        """Select the masks of one image."""
        return ComputedMasks(self.logits[index : index + 1])


@dataclass(frozen=True)
class EncoderProposals:
    """Predictions of the encoder for cells, for the loss of two-stage query selection.

    Attributes:
        class_logits: logits. If `class_agnostic`, the first class is objectness; else they are those of all classes.
        boxes: as in `Predictions`.
        class_agnostic: Deformable DETR's proposals are class-agnostic and of all cells; RT-DETR's are of selected cells,
            in the order of the queries, with classes.
        cells: indices of the cells; None for all.
        states: projected memory of the cells, of mixed queries.
        mask_source: computes masks, of models whose mask head has them for the encoder.
    """

    class_logits: Float[Tensor, "B S K"]
    boxes: Float[Tensor, "B S 4"]
    class_agnostic: bool = True
    cells: Int64[Tensor, "B S"] | None = None
    states: Float[Tensor, "B S D"] | None = None
    mask_source: MaskSource | None = None


@dataclass(frozen=True)
class EdgeDistributions:
    """Distributions over the edges of boxes, which the decoder layers refine (D-FINE, arXiv:2410.13842, section 4.1).

    Each edge of a box is moved from its position on the reference by the expectation of `bin_values`, in units of the
    reference's width or height divided by `reg_scale`; outwards is positive.

    Attributes:
        layer_logits: of the distances of the left, top, right and bottom edge after every layer, over N bins.
        references: boxes that the distances of all layers start from, cxcywh in 0 .. 1; without gradient.
        bin_values: distance of every bin, ascending: W(n) in the paper.
        reg_scale: see above; s in the paper's code.
        initial_class_logits: class logits of the first layer without quality scores, which belong to `initial_boxes`.
        initial_boxes: boxes of the first layer before its distributions; with gradient, else equal to `references`.
        layer_quality: what the quality of the distributions adds to all class logits of a query after every layer.
    """

    layer_logits: Float[Tensor, "T B Q 4 N"]
    references: Float[Tensor, "B Q 4"]
    bin_values: Float[Tensor, "N"]
    reg_scale: Float[Tensor, ""]
    initial_class_logits: Float[Tensor, "B Q K"]
    initial_boxes: Float[Tensor, "B Q 4"]
    layer_quality: Float[Tensor, "T B Q"]

    @property
    def probabilities(self) -> Float[Tensor, "T B Q 4 N"]:
        """Probability of every distance after every layer."""
        return self.layer_logits.float().softmax(-1)

    def after_layer(self, layers: slice) -> EdgeDistributions:
        """Select layers."""
        return replace(self, layer_logits=self.layer_logits[layers], layer_quality=self.layer_quality[layers])

    def select_image(self, index: int) -> EdgeDistributions:
        """Select one image of the batch."""
        one = slice(index, index + 1)
        return replace(
            self,
            layer_logits=self.layer_logits[:, one],
            references=self.references[one],
            initial_class_logits=self.initial_class_logits[one],
            initial_boxes=self.initial_boxes[one],
            layer_quality=self.layer_quality[:, one],
        )

    def cpu(self) -> EdgeDistributions:
        """Copy to the CPU."""
        return replace(self, **{field.name: getattr(self, field.name).cpu() for field in fields(self)})

    def of_queries(self, queries: slice) -> EdgeDistributions:
        """Select queries."""
        return replace(
            self,
            layer_logits=self.layer_logits[:, :, queries],
            references=self.references[:, queries],
            initial_class_logits=self.initial_class_logits[:, queries],
            initial_boxes=self.initial_boxes[:, queries],
            layer_quality=self.layer_quality[:, :, queries],
        )


@dataclass(frozen=True)
class Predictions:
    """Predictions for a batch: class logits and one box per query, after every decoder layer.

    Attributes:
        layer_class_logits: K1 is K + 1 with softmax scores, the last class being "no object", and K with sigmoid scores.
        layer_boxes: cxcywh in 0 .. 1, relative to each image without its padding.
        class_scores: how logits become scores.
        max_detections: number of (query, class) pairs that are detections, with sigmoid scores; None for Q.
        mask_source: computes masks; None for models without a mask head.
        proposals: of the encoder, in training of two-stage models.
        auxiliary: predictions of training-only queries.
        distributions: of the edges of the boxes, with D-FINE's heads.
    """

    layer_class_logits: Float[Tensor, "T B Q K1"]
    layer_boxes: Float[Tensor, "T B Q 4"]
    class_scores: ClassScores = "softmax"
    max_detections: int | None = None
    mask_source: MaskSource | None = None
    proposals: EncoderProposals | None = None
    auxiliary: tuple[AuxiliaryPredictions, ...] = ()
    distributions: EdgeDistributions | None = None

    @property
    def class_logits(self) -> Float[Tensor, "B Q K1"]:
        """Class logits after the last decoder layer."""
        return self.layer_class_logits[-1]

    @property
    def boxes(self) -> Float[Tensor, "B Q 4"]:
        """Boxes after the last decoder layer."""
        return self.layer_boxes[-1]

    @property
    def masks(self) -> Float[Tensor, "B Q h w"] | None:
        """Mask logits of all queries, over the padded images; computed at every access. None without a mask head."""
        return None if self.mask_source is None else self.mask_source.all_masks()

    def masks_of(
        self, queries: Sequence[Int64[Tensor, "_"]], sizes: Sequence[tuple[int, int]] | None = None
    ) -> Float[Tensor, "P h w"]:
        """Compute the mask logits of some queries only, at a fraction of the cost of `masks`.

        Args:
            queries: indices of the queries of each image.
            sizes: (height, width) of the images without padding. If given, and the model is padding-invariant, masks do
                not depend on the padding.

        Returns:
            Logits over the padded images, image by image.

        Raises:
            ValueError: the model has no mask head.
        """
        if self.mask_source is None:
            raise ValueError("These predictions have no masks: the model has no mask head.")
        return self.mask_source.masks_of(torch.cat(list(queries)), [len(one) for one in queries], sizes)

    @property
    def layer_probabilities(self) -> Float[Tensor, "T B Q K"]:
        """Score of every class in 0 .. 1 after every decoder layer, without "no object"."""
        logits = self.layer_class_logits.float()
        return logits.sigmoid() if self.class_scores == "sigmoid" else logits.softmax(-1)[..., :-1]

    @property
    def probabilities(self) -> Float[Tensor, "B Q K"]:
        """Score of every class after the last decoder layer."""
        return self.after_layer(-1).layer_probabilities[0]

    @property
    def layer_no_object(self) -> Float[Tensor, "T B Q"]:
        """Probability of "no object"; with sigmoid scores, 1 - the highest score."""
        if self.class_scores == "sigmoid":
            return 1 - self.layer_probabilities.amax(-1)
        return self.layer_class_logits.float().softmax(-1)[..., -1]

    def after_layer(self, layer: int) -> Predictions:
        """Select the predictions after decoder layer `layer`; negative numbers count from the last."""
        index = layer % len(self.layer_boxes)
        one = slice(index, index + 1)
        return replace(
            self,
            layer_class_logits=self.layer_class_logits[one],
            layer_boxes=self.layer_boxes[one],
            distributions=None if self.distributions is None else self.distributions.after_layer(one),
        )

    def of_queries(self, queries: slice) -> Predictions:
        """Select the predictions of the slice `queries`; masks, proposals and auxiliary predictions stay as they are."""
        return replace(
            self,
            layer_class_logits=self.layer_class_logits[:, :, queries],
            layer_boxes=self.layer_boxes[:, :, queries],
            distributions=None if self.distributions is None else self.distributions.of_queries(queries),
        )


@dataclass(frozen=True)
class AuxiliaryPredictions:
    """Predictions of training-only queries.

    Attributes:
        kind: purpose of the queries.
        predictions: of the queries.
        groups: number of groups of the queries, which do not attend to each other: noised copies of the objects.
    """

    kind: AuxiliaryKind
    predictions: Predictions
    groups: int = 1
