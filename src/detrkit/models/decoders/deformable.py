"""Decoder layer with deformable cross-attention (Deformable DETR, arXiv:2010.04159, section 4.1)."""

from dataclasses import replace

from jaxtyping import Float
from torch import Tensor

from detrkit.models.attention.deformable import DeformableAttention
from detrkit.models.decoders.transformer import DecoderLayer
from detrkit.models.feature_maps import FeatureMaps
from detrkit.models.layers import LayerConfig
from detrkit.models.queries.queries import LayerQueryPositions


class DeformableDecoderLayer(DecoderLayer):
    """Decoder layer in which every query attends to sampling points around its reference, on all maps."""

    def __init__(self, config: LayerConfig) -> None:
        heads = config.cross_attention_heads or config.num_heads
        super().__init__(config, cross_attention=DeformableAttention(replace(config, num_heads=heads)))

    def attend_to_memory(
        self, states: Float[Tensor, "B Q D"], positions: LayerQueryPositions, memory: FeatureMaps
    ) -> Float[Tensor, "B Q D"]:
        """Apply deformable attention around the references."""
        assert positions.reference is not None, "queries of deformable attention have references"
        references = memory.to_map_coordinates(positions.reference)
        attended: Tensor = self.cross_attention(states + positions.positions, references, memory)
        return attended
