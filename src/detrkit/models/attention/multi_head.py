"""Multi-head attention (paper, appendix A.1), in general without storing the attention matrix.

With dropout on a CPU, PyTorch's fused attention stores it as well and is slower than the plain formula used here.
`ProjectedAttention.weights` computes the matrix on request.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from detrkit.models.dropout import dropout_mask


class ProjectedAttention(nn.Module):
    """Scaled dot-product attention of several heads, for inputs that are already projected.

    Queries and keys may be wider than values (Conditional DETR).
    """

    def __init__(self, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.output_projection = nn.Linear(width, width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise the weights as the published code does."""
        nn.init.xavier_uniform_(self.output_projection.weight)
        nn.init.zeros_(self.output_projection.bias)

    def forward(
        self,
        queries: Float[Tensor, "B N E"],
        keys: Float[Tensor, "B S E"],
        values: Float[Tensor, "B S D"],
        key_padding_mask: Bool[Tensor, "B S"] | None = None,
        attention_mask: Bool[Tensor, "N S"] | None = None,
    ) -> Float[Tensor, "B N D"]:
        """Compute the attention output.

        Args:
            queries: with positions added.
            keys: with positions added.
            values: without positions.
            key_padding_mask: True for keys in the padding, whose weight is zero.
            attention_mask: True for keys that a query does not attend to, in all images.
        """
        is_visible = _visible(key_padding_mask, attention_mask)
        heads = (self.split_heads(queries), self.split_heads(keys), self.split_heads(values))
        has_dropout = self.dropout > 0 and self.training
        if has_dropout and queries.device.type == "cpu" and not torch.compiler.is_compiling():
            outputs = self.attend_with_dropout(*heads, is_visible)
        else:
            dropout = self.dropout if has_dropout else 0.0
            outputs = F.scaled_dot_product_attention(*heads, attn_mask=is_visible, dropout_p=dropout)
        return self.output_projection(outputs.transpose(1, 2).flatten(2))

    def attend_with_dropout(
        self,
        queries: Float[Tensor, "B M N e"],
        keys: Float[Tensor, "B M S e"],
        values: Float[Tensor, "B M S d"],
        is_visible: Bool[Tensor, "_ 1 _ S"] | None,
    ) -> Float[Tensor, "B M N d"]:
        """Compute the output of every head by the plain formula, with dropout of the weights."""
        weights = _attention_weights(queries, keys, is_visible)
        mask, scale = dropout_mask(weights, self.dropout)
        return (weights * mask).to(values.dtype) @ (values * scale)  # there are fewer values than weights

    def weights(
        self,
        queries: Float[Tensor, "B N E"],
        keys: Float[Tensor, "B S E"],
        key_padding_mask: Bool[Tensor, "B S"] | None = None,
        heads: Sequence[int] | None = None,
    ) -> Float[Tensor, "B M N S"]:
        """Compute the attention weights of `forward`, without dropout; each row sums to 1.

        Args:
            queries: as in `forward`, or some of its rows.
            keys: as in `forward`.
            key_padding_mask: as in `forward`; the weights of padding are exactly 0.
            heads: heads to compute; None for all.
        """
        selected = slice(None) if heads is None else list(heads)
        split_queries, split_keys = self.split_heads(queries)[:, selected], self.split_heads(keys)[:, selected]
        return _attention_weights(split_queries, split_keys, _visible(key_padding_mask))

    def split_heads(self, tokens: Float[Tensor, "B N E"]) -> Float[Tensor, "B M N e"]:
        """Split the channels into M heads."""
        return tokens.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class MultiHeadAttention(ProjectedAttention):
    """Multi-head attention with projections of queries, keys and values (DETR).

    Args:
        width: D.
        num_heads: M.
        dropout: of the weights.
        key_bias: whether the projection of the keys has a bias; LW-DETR's ViT has none. It changes no weights.
    """

    def __init__(self, width: int, num_heads: int, dropout: float, *, key_bias: bool = True) -> None:
        nn.Module.__init__(self)
        self.num_heads = num_heads
        self.dropout = dropout
        self.query_projection = nn.Linear(width, width)
        self.key_projection = nn.Linear(width, width, bias=key_bias)
        self.value_projection = nn.Linear(width, width)
        self.output_projection = nn.Linear(width, width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise the weights as the published code does.

        There the three input projections are one (3D, D) matrix, so Xavier's fan-out is 3D: sqrt(6 / 4D) where a single
        (D, D) matrix would have sqrt(6 / 2D).
        """
        for projection in (self.query_projection, self.key_projection, self.value_projection):
            nn.init.xavier_uniform_(projection.weight, gain=0.5**0.5)
            if projection.bias is not None:
                nn.init.zeros_(projection.bias)
        nn.init.xavier_uniform_(self.output_projection.weight)
        nn.init.zeros_(self.output_projection.bias)

    def forward(
        self,
        queries: Float[Tensor, "B N D"],
        keys: Float[Tensor, "B S D"],
        values: Float[Tensor, "B S D"],
        key_padding_mask: Bool[Tensor, "B S"] | None = None,
        attention_mask: Bool[Tensor, "N S"] | None = None,
    ) -> Float[Tensor, "B N D"]:
        """Project the inputs and compute the attention output. Arguments as above."""
        projected = self.query_projection(queries), self.key_projection(keys), self.value_projection(values)
        return super().forward(*projected, key_padding_mask, attention_mask)

    def weights(
        self,
        queries: Float[Tensor, "B N D"],
        keys: Float[Tensor, "B S D"],
        key_padding_mask: Bool[Tensor, "B S"] | None = None,
        heads: Sequence[int] | None = None,
    ) -> Float[Tensor, "B M N S"]:
        """Compute the attention weights of `forward`. Arguments as above."""
        return super().weights(self.query_projection(queries), self.key_projection(keys), key_padding_mask, heads)


def _attention_weights(
    queries: Float[Tensor, "B M N e"], keys: Float[Tensor, "B M S e"], is_visible: Bool[Tensor, "_ 1 _ S"] | None
) -> Float[Tensor, "B M N S"]:
    """Compute the softmax of the scaled dot products."""
    scores = (queries * queries.shape[-1] ** -0.5) @ keys.transpose(-2, -1)
    if is_visible is not None:
        scores = scores.masked_fill(~is_visible, -torch.inf)
    return scores.softmax(-1)


def _visible(
    key_padding_mask: Bool[Tensor, "B S"] | None, attention_mask: Bool[Tensor, "N S"] | None = None
) -> Bool[Tensor, "_ 1 _ S"] | None:
    """Invert the masks: scaled_dot_product_attention expects True where a key may be attended to."""
    if key_padding_mask is None:
        return None if attention_mask is None else ~attention_mask[None, None]
    hidden = key_padding_mask[:, None, None, :]
    return ~hidden if attention_mask is None else ~(hidden | attention_mask)
