"""Multi-head attention (paper, appendix A.1), computed without ever holding the attention matrix, as a rule.

With dropout on a CPU, torch's fused attention holds it as well, and is slower than the plain formula here. Who wants to see
the matrix asks for its `weights`.

Input: queries (B, N, D), keys and values (B, S, D), a padding mask over the S keys. Output: (B, N, D).
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from detrkit.models.dropout import kept_mask


class ProjectedAttention(nn.Module):
    """Scaled dot-product attention of several heads, each over its own share of the width.

    What comes in was projected before. Queries and keys may be wider than values (Conditional DETR).
    """

    def __init__(self, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.output_projection = nn.Linear(width, width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights as the published code does."""
        nn.init.xavier_uniform_(self.output_projection.weight)
        nn.init.zeros_(self.output_projection.bias)

    def forward(
        self,
        queries: Float[Tensor, "B N E"],
        keys: Float[Tensor, "B S E"],
        values: Float[Tensor, "B S D"],
        key_padding_mask: Bool[Tensor, "B S"] | None = None,
    ) -> Float[Tensor, "B N D"]:
        """Mix the values, each query by its own weights.

        Args:
            queries: what asks, position included.
            keys: what is asked, position included.
            values: what is handed over, without position.
            key_padding_mask: True on keys that are padding; they get weight zero.
        """
        attend = _attend(key_padding_mask)
        heads = (self.split_heads(queries), self.split_heads(keys), self.split_heads(values))
        drops = self.dropout > 0 and self.training
        if drops and queries.device.type == "cpu" and not torch.compiler.is_compiling():
            mixed = self.mix_with_dropout(*heads, attend)
        else:
            share = self.dropout if drops else 0.0
            mixed = F.scaled_dot_product_attention(*heads, attn_mask=attend, dropout_p=share)
        return self.output_projection(mixed.transpose(1, 2).flatten(2))

    def mix_with_dropout(
        self,
        queries: Float[Tensor, "B M N e"],
        keys: Float[Tensor, "B M S e"],
        values: Float[Tensor, "B M S d"],
        attend: Bool[Tensor, "B 1 1 S"] | None,
    ) -> Float[Tensor, "B M N d"]:
        """Mix the values by the plain formula, dropping some of the weights."""
        weights = _weights(queries, keys, attend)
        kept, scale = kept_mask(weights, self.dropout)
        return (weights * kept).to(values.dtype) @ (values * scale)  # values are fewer than weights

    def weights(
        self,
        queries: Float[Tensor, "B N E"],
        keys: Float[Tensor, "B S E"],
        key_padding_mask: Bool[Tensor, "B S"] | None = None,
        heads: Sequence[int] | None = None,
    ) -> Float[Tensor, "B M N S"]:
        """Compute the weights by which `forward` mixes the values, without dropout; each row sums to 1.

        Args:
            queries: as in `forward`; fewer rows give the same weights of those rows.
            keys: as in `forward`.
            key_padding_mask: as in `forward`; padding gets exactly 0.
            heads: whose weights; None takes all.
        """
        chosen = slice(None) if heads is None else list(heads)
        asking, asked = self.split_heads(queries)[:, chosen], self.split_heads(keys)[:, chosen]
        return _weights(asking, asked, _attend(key_padding_mask))

    def split_heads(self, tokens: Float[Tensor, "B N E"]) -> Float[Tensor, "B M N e"]:
        """Give each of the M heads its share of the width."""
        return tokens.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class MultiHeadAttention(ProjectedAttention):
    """The same, with projections of queries, keys and values (DETR)."""

    def __init__(self, width: int, num_heads: int, dropout: float) -> None:
        nn.Module.__init__(self)
        self.num_heads = num_heads
        self.dropout = dropout
        self.query_projection = nn.Linear(width, width)
        self.key_projection = nn.Linear(width, width)
        self.value_projection = nn.Linear(width, width)
        self.output_projection = nn.Linear(width, width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights as the published code does.

        There the three input projections are one (3D, D) matrix, so Xavier's fan-out is 3D: sqrt(6 / 4D) where a
        single (D, D) matrix would have sqrt(6 / 2D).
        """
        for projection in (self.query_projection, self.key_projection, self.value_projection):
            nn.init.xavier_uniform_(projection.weight, gain=0.5**0.5)
            nn.init.zeros_(projection.bias)
        nn.init.xavier_uniform_(self.output_projection.weight)
        nn.init.zeros_(self.output_projection.bias)

    def forward(
        self,
        queries: Float[Tensor, "B N D"],
        keys: Float[Tensor, "B S D"],
        values: Float[Tensor, "B S D"],
        key_padding_mask: Bool[Tensor, "B S"] | None = None,
    ) -> Float[Tensor, "B N D"]:
        """Project, and mix the values, each query by its own weights. Arguments as above."""
        projected = self.query_projection(queries), self.key_projection(keys), self.value_projection(values)
        return super().forward(*projected, key_padding_mask)

    def weights(
        self,
        queries: Float[Tensor, "B N D"],
        keys: Float[Tensor, "B S D"],
        key_padding_mask: Bool[Tensor, "B S"] | None = None,
        heads: Sequence[int] | None = None,
    ) -> Float[Tensor, "B M N S"]:
        """Compute the weights by which `forward` mixes the values. Arguments as above."""
        return super().weights(self.query_projection(queries), self.key_projection(keys), key_padding_mask, heads)


def _weights(
    queries: Float[Tensor, "B M N e"], keys: Float[Tensor, "B M S e"], attend: Bool[Tensor, "B 1 1 S"] | None
) -> Float[Tensor, "B M N S"]:
    """The plain formula: softmax of the scaled products."""
    scores = (queries * queries.shape[-1] ** -0.5) @ keys.transpose(-2, -1)
    if attend is not None:
        scores = scores.masked_fill(~attend, -torch.inf)
    return scores.softmax(-1)


def _attend(key_padding_mask: Bool[Tensor, "B S"] | None) -> Bool[Tensor, "B 1 1 S"] | None:
    """What may be attended to is True to scaled_dot_product_attention: the one place where the mask is inverted."""
    return None if key_padding_mask is None else ~key_padding_mask[:, None, None, :]
