"""Parts of a DETR, as Protocols: what a backbone, encoder, query source, decoder or head has to provide.

Every part is an `nn.Module`. A new architecture implements some of them and adds a line per part to `models.build`;
`DETR.forward` stays as it is.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Bool, Float
from torch import Tensor, nn

from detrkit.models.decoder_output import DecoderOutput
from detrkit.models.feature_maps import FeatureMaps
from detrkit.models.queries.queries import Queries
from detrkit.structures import Predictions


@runtime_checkable
class Part(Protocol):
    """A part of a model: an `nn.Module`."""

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """As of `nn.Module`."""
        ...

    def modules(self) -> Iterator[nn.Module]:
        """As of `nn.Module`."""
        ...


@runtime_checkable
class Backbone(Part, Protocol):
    """Computes feature maps of images.

    Attributes:
        channels: channels of each feature map, finest first.
        strides: pixels per cell of each.
        first_cell_centers: distance in pixels from the image's edge to the center of the first cell of each.
        activation_checkpointing: recompute activations in the backward pass.
        padding_invariant: the features of an image must not depend on its padding, where the backbone supports it.
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]
    first_cell_centers: tuple[float, ...]
    activation_checkpointing: bool
    padding_invariant: bool

    def __call__(
        self, images: Float[Tensor, "B C H W"], padding_mask: Bool[Tensor, "B H W"] | None = None
    ) -> list[Float[Tensor, "B _ _ _"]]:
        """Compute the feature maps, finest first."""
        ...


@runtime_checkable
class Neck(Part, Protocol):
    """Converts the backbone's feature maps to width D and attaches position encodings and padding masks.

    Attributes:
        strides: pixels per cell of each output map.
        first_cell_centers: as of `Backbone`, of each output map.
        padding_invariant: as of `Backbone`.
    """

    strides: tuple[int, ...]
    first_cell_centers: tuple[float, ...]
    padding_invariant: bool

    def __call__(
        self,
        maps: Sequence[Float[Tensor, "B _ _ _"]],
        image_size: tuple[int, int],
        padding_mask: Bool[Tensor, "B H W"] | None = None,
    ) -> FeatureMaps:
        """Compute the input of the encoder."""
        ...


@runtime_checkable
class Encoder(Part, Protocol):
    """Computes the memory that the decoder attends to.

    Attributes:
        activation_checkpointing: as of `Backbone`.
    """

    activation_checkpointing: bool

    def __call__(self, features: FeatureMaps) -> FeatureMaps:
        """Compute the memory; sizes of the maps may change."""
        ...


@runtime_checkable
class QuerySource(Part, Protocol):
    """Provides the object queries: learned, or selected from the memory."""

    def __call__(self, memory: FeatureMaps) -> Queries:
        """Compute the input of the decoder."""
        ...


@runtime_checkable
class BoxQuerySource(QuerySource, Protocol):
    """Provides queries that start from boxes, so that noised boxes can be queries like them (denoising).

    Attributes:
        denoising_labels: embeddings of noised labels, if published weights contain them, and then denoising queries also
            attend to the model's own (RT-DETR, D-FINE); or None.
    """

    denoising_labels: nn.Embedding | None

    def at_boxes(self, content: Float[Tensor, "B Q D"], reference: Float[Tensor, "B Q 4"]) -> Queries:
        """Return queries that start from the logits of given boxes."""
        ...


@runtime_checkable
class Heads(Part, Protocol):
    """Predicts classes and boxes from the states of the queries."""

    def box_head_of(self, layer: int) -> nn.Module:
        """Return the box head of one decoder layer, which refines references."""
        ...

    def __call__(self, decoded: DecoderOutput, queries: Queries) -> Predictions:
        """Predict classes and boxes after every layer that the decoder returned."""
        ...


@runtime_checkable
class Decoder(Part, Protocol):
    """Computes the states of the queries.

    Attributes:
        activation_checkpointing: as of `Backbone`.
        return_intermediate: return the states after all layers instead of the last one only.
    """

    activation_checkpointing: bool
    return_intermediate: bool

    def __call__(self, queries: Queries, memory: FeatureMaps, heads: Heads) -> DecoderOutput:
        """Compute the states after every layer, and what their boxes are predicted relative to."""
        ...


@runtime_checkable
class MaskHead(Part, Protocol):
    """Predicts masks of queries.

    Attributes:
        activation_checkpointing: as of `Backbone`.
    """

    activation_checkpointing: bool

    def attach(
        self,
        predictions: Predictions,
        decoded: DecoderOutput,
        maps: Sequence[Float[Tensor, "B _ _ _"]],
        features: FeatureMaps,
        memory: FeatureMaps,
        image_size: tuple[int, int],
    ) -> Predictions:
        """Add what masks are computed from, once it is known of which queries: `Predictions.mask_source`.

        Args:
            predictions: of the heads, the model's own queries first.
            decoded: states of all queries.
            maps: of the backbone.
            features: input of the encoder.
            memory: output of the encoder.
            image_size: (H, W) of the padded images.
        """
        ...


@dataclass(frozen=True)
class DETRComponents:
    """The parts of a model, see `models.build`."""

    backbone: Backbone
    neck: Neck
    encoder: Encoder
    query_source: QuerySource
    decoder: Decoder
    heads: Heads
    mask_head: MaskHead | None = None
