"""Encoder layer with deformable self-attention (Deformable DETR, arXiv:2010.04159, section 4.1)."""

import torch
from jaxtyping import Float
from torch import Tensor

from detrkit.models.attention.deformable import DeformableAttention
from detrkit.models.encoders.transformer import EncoderLayer
from detrkit.models.feature_maps import FeatureMaps
from detrkit.models.layers import LayerConfig


class DeformableEncoderLayer(EncoderLayer):
    """Encoder layer in which every cell attends to sampling points around its center, on all maps."""

    def __init__(self, config: LayerConfig) -> None:
        super().__init__(config, DeformableAttention(config))

    def attend(
        self, tokens: Float[Tensor, "B S D"], positions: Float[Tensor, "B S D"], features: FeatureMaps
    ) -> Float[Tensor, "B S D"]:
        """Apply deformable attention around every cell."""
        references = features.to_map_coordinates(torch.cat(features.cell_centers(), dim=1))
        attended: Tensor = self.self_attention(tokens + positions, references, features.with_tokens(tokens))
        return attended
