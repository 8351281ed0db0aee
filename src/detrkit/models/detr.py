"""DETR (Carion et al. 2020, arXiv:2005.12872): images -> a set of objects, in one pass."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from detrkit.models.backbone import ResNetBackbone
from detrkit.models.backbone_timm import TimmBackbone
from detrkit.models.config import ModelConfig
from detrkit.models.heads import Heads
from detrkit.models.panoptic import PanopticHead
from detrkit.models.positions import LearnedPositions, NoPositions, SinePositions
from detrkit.models.transformer import Decoder, Encoder
from detrkit.ops.padding import padding_mask_at
from detrkit.structures import MaskInputs, Predictions


@dataclass(frozen=True)
class Parts:
    """What a DETR is put together from; `presets.build_model` fills it in."""

    backbone: ResNetBackbone | TimmBackbone
    positions: SinePositions | LearnedPositions | NoPositions
    encoder: Encoder
    decoder: Decoder
    heads: Heads
    panoptic: PanopticHead | None = None


class DETR(nn.Module):
    """Backbone, encoder, decoder over object queries, heads (paper, figure 2)."""

    def __init__(self, parts: Parts, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = parts.backbone
        self.input_projection = nn.Conv2d(parts.backbone.channels[-1], config.hidden_dim, kernel_size=1)
        self.positions = parts.positions
        self.encoder = parts.encoder
        self.queries = nn.Embedding(config.num_queries, config.hidden_dim)
        self.decoder = parts.decoder
        self.heads = parts.heads
        self.panoptic = parts.panoptic

    def recompute(self, on: bool) -> None:
        """Keep fewer activations while training, and compute them again (see `models.recompute`)."""
        self.encoder.recompute = self.decoder.recompute = on
        if self.panoptic is not None:
            self.panoptic.recompute = on
        # ordinary batch norm would count every photo twice
        self.backbone.recompute = on and self.config.backbone_normalization == "frozen"

    def forward(
        self,
        images: Float[Tensor, "B C H W"],
        padding_mask: Bool[Tensor, "B H W"] | None = None,
        *,
        exact_padding: bool = False,
        last_layer_only: bool = False,
        all_masks: bool = True,
    ) -> Predictions:
        """Predict one class and one box per query.

        Args:
            images: normalised with the ImageNet mean and deviation, padded with zeros at the bottom and on the right.
            padding_mask: True on padding; None when there is none.
            exact_padding: True makes classes and boxes of a photo independent of how far it was padded, and so of the
                other photos in its batch (not its masks: the mask head normalises over the padding, as published).
                False computes what the published code does, where padding leaks into the backbone's features and the
                mask of the feature map is rounded.
            last_layer_only: leave out what the decoder layers before the last say, which only training asks for.
            all_masks: draw the mask of every query, where there is a mask head. False hands over what `self.panoptic`
                draws from, for those queries that are matched or kept: the same masks for a fraction of the work.
        """
        exact_padding = exact_padding and self.backbone.keeps_padding_out
        levels = self.backbone(images, padding_mask if exact_padding else None)
        feature_mask = _feature_mask(levels[-1], padding_mask, self.config.stride if exact_padding else None)
        projected = self.input_projection(levels[-1])

        tokens = projected.flatten(2).transpose(1, 2)
        token_mask = None if padding_mask is None else feature_mask.flatten(1)
        positions = self.positions(feature_mask, is_padded=padding_mask is not None).flatten(1, 2).to(tokens.dtype)

        memory = self.encoder(tokens, positions, token_mask)
        queries = self.queries.weight.expand(images.shape[0], -1, -1).to(tokens.dtype)
        decoded = self.decoder(queries, memory, positions, token_mask)
        layer_class_logits, layer_boxes = self.heads(decoded[-1:] if last_layer_only else decoded)

        if self.panoptic is None:
            return Predictions(layer_class_logits, layer_boxes)
        memory_map = memory.transpose(1, 2).unflatten(2, projected.shape[-2:])
        mask_of_map = None if padding_mask is None else feature_mask
        inputs = MaskInputs(decoded[-1], memory_map, projected, mask_of_map, tuple(levels[-2::-1]), _size_of(images))
        if not all_masks:
            return Predictions(layer_class_logits, layer_boxes, mask_inputs=inputs)
        return Predictions(layer_class_logits, layer_boxes, self.panoptic.draw_all(inputs))


def _size_of(images: Float[Tensor, "B C H W"]) -> tuple[int, int]:
    return images.shape[-2], images.shape[-1]


def _feature_mask(
    features: Float[Tensor, "B _ h w"], padding_mask: Bool[Tensor, "B H W"] | None, stride: int | None
) -> Bool[Tensor, "B h w"]:
    size = (features.shape[-2], features.shape[-1])
    if padding_mask is None:
        return torch.zeros(features.shape[0], *size, dtype=torch.bool, device=features.device)
    return padding_mask_at(padding_mask, size, stride=stride)
