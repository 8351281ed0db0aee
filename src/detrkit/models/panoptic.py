"""The mask head (paper, section 4.4, figure 8): one mask per query, from attention maps and backbone features.

Input: the decoded queries (B, Q, D), the encoder's memory (B, D, h, w), the projected features (B, D, h, w) and the
backbone's finer feature maps. Output: mask logits (B, Q, H/4, W/4) over the padded image.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F


class AttentionMaps(nn.Module):
    """How strongly each query attends to each cell, per head, with values left out."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query_projection = nn.Linear(width, width)
        self.key_projection = nn.Linear(width, width)
        for projection in (self.query_projection, self.key_projection):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(
        self,
        decoded: Float[Tensor, "B Q D"],
        memory: Float[Tensor, "B D h w"],
        padding_mask: Bool[Tensor, "B h w"] | None,
    ) -> Float[Tensor, "B Q M h w"]:
        """Compute the maps.

        The softmax runs over heads and cells together (published code, segmentation.py), not over the cells of each
        head: what a head says is weighed against the others.
        """
        queries = self.query_projection(decoded).unflatten(-1, (self.num_heads, -1))
        keys = self.key_projection(memory.movedim(1, -1)).unflatten(-1, (self.num_heads, -1))
        logits = torch.einsum("bqmc,bhwmc->bqmhw", queries * queries.shape[-1] ** -0.5, keys)
        if padding_mask is not None:
            logits = logits.masked_fill(padding_mask[:, None, None], float("-inf"))
        return logits.flatten(2).softmax(-1).view_as(logits)


class RefineStage(nn.Module):
    """Convolution, group norm, ReLU."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm = nn.GroupNorm(8, out_channels)

    def forward(self, features: Float[Tensor, "N _ h w"]) -> Float[Tensor, "N _ h w"]:
        """Refine a map."""
        return F.relu(self.norm(self.convolution(features)))


class PanopticHead(nn.Module):
    """Attention maps, refined from coarse to fine with a feature pyramid."""

    def __init__(self, width: int, num_heads: int, channels: Sequence[int]) -> None:
        """Build the head.

        Args:
            width: D.
            num_heads: M, the number of attention maps per query.
            channels: widths of the backbone's feature maps to merge, coarsest first.
        """
        super().__init__()
        self.attention_maps = AttentionMaps(width, num_heads)
        widths = [width + num_heads, *(width // 2**index for index in range(1, 5))]
        self.entrance = nn.ModuleList([RefineStage(widths[0], widths[0]), RefineStage(widths[0], widths[1])])
        self.adapters = nn.ModuleList(nn.Conv2d(c, w, 1) for c, w in zip(channels, widths[1:4], strict=True))
        self.stages = nn.ModuleList(
            RefineStage(before, after)
            for before, after in ((widths[1], widths[2]), (widths[2], widths[3]), (widths[3], widths[4]))
        )
        self.exit = nn.Conv2d(widths[4], 1, 3, padding=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]  # every convolution here has a bias

    def forward(
        self,
        decoded: Float[Tensor, "B Q D"],
        memory: Float[Tensor, "B D h w"],
        projected: Float[Tensor, "B D h w"],
        padding_mask: Bool[Tensor, "B h w"] | None,
        levels: Sequence[Float[Tensor, "B _ _ _"]],
    ) -> Float[Tensor, "B Q _ _"]:
        """Draw one mask per query.

        Args:
            decoded: state of the queries after the last decoder layer.
            memory: the encoder's output.
            projected: the backbone's last feature map at width D, before the encoder.
            padding_mask: of the feature map.
            levels: the backbone's finer feature maps, coarsest first.
        """
        num_queries = decoded.shape[1]
        maps = self.attention_maps(decoded, memory, padding_mask).flatten(0, 1)
        features = torch.cat([projected.repeat_interleave(num_queries, dim=0), maps], dim=1)
        for stage in self.entrance:
            features = stage(features)
        for adapter, level, stage in zip(self.adapters, levels, self.stages, strict=True):
            finer = adapter(level).repeat_interleave(num_queries, dim=0)
            features = stage(finer + F.interpolate(features, size=finer.shape[-2:], mode="nearest"))
        return self.exit(features)[:, 0].unflatten(0, (-1, num_queries))
