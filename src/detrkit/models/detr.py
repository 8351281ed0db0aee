"""DETR (Carion et al. 2020, arXiv:2005.12872) and its successors: images -> a set of boxes with classes."""

from jaxtyping import Bool, Float
from torch import Tensor, nn

from detrkit.config.model import ModelConfig
from detrkit.models.parts import DETRComponents
from detrkit.models.queries.queries import AuxiliaryQuerySource
from detrkit.structures import Predictions


class DETR(nn.Module):
    """Backbone, neck, encoder, object queries, decoder and heads (paper, figure 2).

    Args:
        parts: the parts, see `models.build`.
        config: that they were built from.

    Attributes:
        padding_invariant: see the property.
        activation_checkpointing: see the property.
    """

    def __init__(self, parts: DETRComponents, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = parts.backbone
        self.neck = parts.neck
        self.encoder = parts.encoder
        self.query_source = parts.query_source
        self.decoder = parts.decoder
        self.heads = parts.heads
        self.mask_head = parts.mask_head

    def forward(
        self,
        images: Float[Tensor, "B C H W"],
        padding_mask: Bool[Tensor, "B H W"] | None = None,
        *,
        auxiliary_queries: AuxiliaryQuerySource | None = None,
    ) -> Predictions:
        """Predict one class and one box per query; masks are computed on demand by `Predictions.masks_of`.

        Args:
            images: normalised with the ImageNet mean and standard deviation, zero-padded at the bottom and on the right.
            padding_mask: True for padding; None if no image is padded.
            auxiliary_queries: makes training-only queries from the memory, masked from the model's own in self-attention.
        """
        image_size = (images.shape[-2], images.shape[-1])
        maps = self.backbone(images, padding_mask)
        features = self.neck(maps, image_size, padding_mask)
        memory = self.encoder(features)
        queries = self.query_source(memory)
        if auxiliary_queries is not None:
            queries = queries.with_auxiliary(auxiliary_queries(memory))
        decoded = self.decoder(queries, memory, self.heads)
        predictions = self.heads(decoded, queries)
        if self.mask_head is None:
            return predictions
        return self.mask_head.attach(predictions, decoded, maps, features, memory, image_size)

    @property
    def padding_invariant(self) -> bool:
        """Make predictions of an image independent of its padding, and so of the other images in the batch.

        False (the initial value) computes what the published code does: padding leaks into the backbone's features, and the
        padding masks of feature maps are rescaled. Backbones of timm do not support it: only batches of images of one size
        are exact with them. Masks are independent of padding if `Predictions.masks_of` is given the sizes of the images.
        """
        return self.neck.padding_invariant

    @padding_invariant.setter
    def padding_invariant(self, enabled: bool) -> None:
        self.backbone.padding_invariant = self.neck.padding_invariant = enabled

    @property
    def activation_checkpointing(self) -> bool:
        """Recompute activations in the backward pass instead of storing them."""
        return self.decoder.activation_checkpointing

    @activation_checkpointing.setter
    def activation_checkpointing(self, enabled: bool) -> None:
        self.encoder.activation_checkpointing = self.decoder.activation_checkpointing = enabled
        if self.mask_head is not None:
            self.mask_head.activation_checkpointing = enabled
        self.backbone.activation_checkpointing = enabled
