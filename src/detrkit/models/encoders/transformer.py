"""Transformer encoder (paper, section 3.2, appendix A.3 and figure 10)."""

from collections.abc import Iterable

from jaxtyping import Float
from torch import Tensor, nn

from detrkit.config.model import PositionInjection
from detrkit.models.attention.multi_head import MultiHeadAttention
from detrkit.models.feature_maps import FeatureMaps
from detrkit.models.layers import FeedForward, LayerConfig, Residual, checkpointed
from detrkit.models.positions import inject_positions


class EncoderLayer(nn.Module):
    """Self-attention between all cells, then a feed-forward network.

    Args:
        config: of the layer.
        self_attention: attention module; None for dense multi-head attention.
    """

    def __init__(self, config: LayerConfig, self_attention: nn.Module | None = None) -> None:
        super().__init__()
        self.self_attention = self_attention or MultiHeadAttention(config.width, config.num_heads, config.dropout)
        self.self_attention_residual = Residual(config)
        self.feed_forward = FeedForward(config)
        self.feed_forward_residual = Residual(config)

    def forward(
        self, tokens: Float[Tensor, "B S D"], positions: Float[Tensor, "B S D"], features: FeatureMaps
    ) -> Float[Tensor, "B S D"]:
        """Compute the next state of the tokens.

        Args:
            tokens: state of the cells.
            positions: added to queries and keys.
            features: sizes and padding of the maps.
        """
        attended = self.attend(self.self_attention_residual.before(tokens), positions, features)
        tokens = self.self_attention_residual.after(tokens, attended)

        output = self.feed_forward(self.feed_forward_residual.before(tokens))
        return self.feed_forward_residual.after(tokens, output)

    def attend(
        self, tokens: Float[Tensor, "B S D"], positions: Float[Tensor, "B S D"], features: FeatureMaps
    ) -> Float[Tensor, "B S D"]:
        """Apply self-attention to all cells."""
        keys = tokens + positions
        attended: Tensor = self.self_attention(keys, keys, tokens, features.padding_mask)
        return attended


class TransformerEncoder(nn.Module):
    """Stack of encoder layers; without layers, the features are the memory.

    Args:
        layers: first to last.
        norm: applied to the output of the last layer.
        position_injection: where positions are added to the tokens.
        position_scale: predicts a scale of the positions from the tokens before every layer (DAB-DETR).

    Attributes:
        activation_checkpointing: recompute activations in the backward pass.
    """

    def __init__(
        self,
        layers: Iterable[EncoderLayer],
        norm: nn.Module,
        position_injection: PositionInjection = "attention",
        position_scale: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.position_injection = position_injection
        self.position_scale = position_scale
        self.activation_checkpointing = False
        self.norm = norm

    def forward(self, features: FeatureMaps) -> FeatureMaps:
        """Compute the memory that the decoder attends to."""
        tokens, positions = inject_positions(features.tokens, features.positions, self.position_injection)
        for layer in self.layers:
            scaled = positions if self.position_scale is None else positions * self.position_scale(tokens)
            tokens = checkpointed(layer, self.activation_checkpointing, tokens, scaled, features)
        return features.with_tokens(self.norm(tokens))
