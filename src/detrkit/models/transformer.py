"""The transformer (paper, section 3.2, appendix A.3 and figure 10).

Positions are added to queries and keys at every attention and never to values, unless a `Place` says
otherwise. The decoder reads all object queries in parallel; its first input is zero, for what tells the queries apart is
their learned position.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from detrkit.models.attention import MultiHeadAttention
from detrkit.models.config import Place
from detrkit.models.dropout import Dropout
from detrkit.models.positions import placed
from detrkit.models.recompute import run


class Residual(nn.Module):
    """x + dropout(sublayer(x)) with layer norm: after the sum (post-norm, as published) or on the way in (pre-norm)."""

    def __init__(self, width: int, dropout: float, pre_norm: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.dropout = Dropout(dropout)
        self.pre_norm = pre_norm

    def before(self, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        """Prepare the input of the sublayer."""
        return self.norm(tokens) if self.pre_norm else tokens

    def after(self, tokens: Float[Tensor, "B N D"], change: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        """Add what the sublayer found."""
        tokens = tokens + self.dropout(change)
        return tokens if self.pre_norm else self.norm(tokens)


class FeedForward(nn.Module):
    """Two linear layers, applied to each token by itself."""

    def __init__(self, width: int, hidden_width: int, dropout: float) -> None:
        super().__init__()
        self.expand = nn.Linear(width, hidden_width)
        self.contract = nn.Linear(hidden_width, width)
        self.dropout = Dropout(dropout)
        nn.init.xavier_uniform_(self.expand.weight)
        nn.init.xavier_uniform_(self.contract.weight)

    def forward(self, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        """Transform each token."""
        return self.contract(self.dropout(F.relu(self.expand(tokens))))


class EncoderLayer(nn.Module):
    """Self-attention between all cells of the feature map, then a feed-forward network."""

    def __init__(self, width: int, num_heads: int, feedforward_dim: int, dropout: float, pre_norm: bool) -> None:
        super().__init__()
        self.self_attention = MultiHeadAttention(width, num_heads, dropout)
        self.self_attention_residual = Residual(width, dropout, pre_norm)
        self.feed_forward = FeedForward(width, feedforward_dim, dropout)
        self.feed_forward_residual = Residual(width, dropout, pre_norm)

    def forward(
        self,
        tokens: Float[Tensor, "B S D"],
        positions: Float[Tensor, "B S D"],
        padding_mask: Bool[Tensor, "B S"] | None,
    ) -> Float[Tensor, "B S D"]:
        """Let every token look at every other."""
        values = self.self_attention_residual.before(tokens)
        located = values + positions
        found = self.self_attention(located, located, values, padding_mask)
        tokens = self.self_attention_residual.after(tokens, found)

        change = self.feed_forward(self.feed_forward_residual.before(tokens))
        return self.feed_forward_residual.after(tokens, change)


class Encoder(nn.Module):
    """A stack of encoder layers: tokens -> memory."""

    def __init__(
        self,
        num_layers: int,
        width: int,
        num_heads: int,
        feedforward_dim: int,
        dropout: float,
        pre_norm: bool,
        positions_at: Place = "attention",
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            EncoderLayer(width, num_heads, feedforward_dim, dropout, pre_norm) for _ in range(num_layers)
        )
        self.positions_at = positions_at
        self.recompute = False
        # post-norm layers end with a norm of their own
        self.norm = nn.LayerNorm(width) if pre_norm else nn.Identity()

    def forward(
        self,
        tokens: Float[Tensor, "B S D"],
        positions: Float[Tensor, "B S D"],
        padding_mask: Bool[Tensor, "B S"] | None,
    ) -> Float[Tensor, "B S D"]:
        """Turn backbone tokens into the memory that the decoder reads."""
        tokens, positions = placed(tokens, positions, self.positions_at)
        for layer in self.layers:
            tokens = run(layer, self.recompute, tokens, positions, padding_mask)
        return self.norm(tokens)


class DecoderLayer(nn.Module):
    """Self-attention between the queries, cross-attention to the memory, then a feed-forward network."""

    def __init__(self, width: int, num_heads: int, feedforward_dim: int, dropout: float, pre_norm: bool) -> None:
        super().__init__()
        self.self_attention = MultiHeadAttention(width, num_heads, dropout)
        self.self_attention_residual = Residual(width, dropout, pre_norm)
        self.cross_attention = MultiHeadAttention(width, num_heads, dropout)
        self.cross_attention_residual = Residual(width, dropout, pre_norm)
        self.feed_forward = FeedForward(width, feedforward_dim, dropout)
        self.feed_forward_residual = Residual(width, dropout, pre_norm)

    def forward(
        self,
        decoded: Float[Tensor, "B Q D"],
        queries: Float[Tensor, "B Q D"],
        memory: Float[Tensor, "B S D"],
        located_memory: Float[Tensor, "B S D"],
        padding_mask: Bool[Tensor, "B S"] | None,
    ) -> Float[Tensor, "B Q D"]:
        """Let the queries agree on who takes what, and look at the photo.

        Args:
            decoded: what the queries have found so far.
            queries: who they are, added to `decoded` at both attentions.
            memory: the encoder's output, read as values.
            located_memory: memory plus positions, read as keys.
            padding_mask: True on tokens that are padding.
        """
        values = self.self_attention_residual.before(decoded)
        located = values + queries
        decoded = self.self_attention_residual.after(decoded, self.self_attention(located, located, values))

        located = self.cross_attention_residual.before(decoded) + queries
        found = self.cross_attention(located, located_memory, memory, padding_mask)
        decoded = self.cross_attention_residual.after(decoded, found)

        change = self.feed_forward(self.feed_forward_residual.before(decoded))
        return self.feed_forward_residual.after(decoded, change)


class Decoder(nn.Module):
    """A stack of decoder layers, each of which is asked for its answer (auxiliary losses, paper section 3.2)."""

    def __init__(
        self,
        num_layers: int,
        width: int,
        num_heads: int,
        feedforward_dim: int,
        dropout: float,
        pre_norm: bool,
        positions_at: Place = "attention",
        queries_at: Place = "attention",
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            DecoderLayer(width, num_heads, feedforward_dim, dropout, pre_norm) for _ in range(num_layers)
        )
        self.positions_at = positions_at
        self.queries_at = queries_at
        self.recompute = False
        self.norm = nn.LayerNorm(width)

    def forward(
        self,
        queries: Float[Tensor, "B Q D"],
        memory: Float[Tensor, "B S D"],
        positions: Float[Tensor, "B S D"],
        padding_mask: Bool[Tensor, "B S"] | None,
    ) -> Float[Tensor, "T B Q D"]:
        """Decode all queries in parallel; returns the normalised state after every layer."""
        memory, positions = placed(memory, positions, self.positions_at)
        located_memory = memory + positions
        decoded, queries = placed(torch.zeros_like(queries), queries, self.queries_at)
        after_layer = []
        for layer in self.layers:
            decoded = run(layer, self.recompute, decoded, queries, memory, located_memory, padding_mask)
            after_layer.append(self.norm(decoded))
        return torch.stack(after_layer)
