"""Mask head of RF-DETR's instance segmentation: products of queries with the features of every cell.

A mask has a value for every square of four by four pixels. The cells are refined by one block per decoder layer, so that
there are masks after every layer, as MaskDINO (arXiv:2206.02777, section 3.2) and Mask2Former (arXiv:2112.01527) have them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from detrkit.models.decoder_output import DecoderOutput
from detrkit.models.feature_maps import FeatureMaps
from detrkit.models.layers import checkpointed, mlp
from detrkit.structures import EncoderProposals, Predictions

MASK_STRIDE = 4  # pixels per value of a mask
QUERY_EXPANSION = 4  # hidden width of the network of the queries, relative to D
_EPS = 1e-6  # of the norms of cells, as published


@dataclass(frozen=True)
class DotProductMasks:
    """Masks of a batch, computed on demand (a `structures.LayerMaskSource`).

    Attributes:
        features: of the cells after every layer.
        queries: projected states after every layer.
        bias: added to all logits.
    """

    features: tuple[Float[Tensor, "B D h w"], ...]
    queries: Float[Tensor, "T B Q D"]
    bias: Float[Tensor, "1"]

    @property
    def num_layers(self) -> int:
        """Number of layers T."""
        return len(self.features)

    @property
    def num_queries(self) -> int:
        """Number of queries Q."""
        return self.queries.shape[2]

    @property
    def mask_size(self) -> tuple[int, int]:
        """Height and width of the masks."""
        return self.features[0].shape[-2], self.features[0].shape[-1]

    def masks_of(
        self, queries: Int64[Tensor, "P"], counts: Sequence[int], sizes: Sequence[tuple[int, int]] | None = None
    ) -> Float[Tensor, "P h w"]:
        """Compute the mask logits of some queries after the last layer, see `structures.MaskSource`."""
        return self.layer_masks_of(-1, queries, counts)

    def layer_masks_of(self, layer: int, queries: Int64[Tensor, "P"], counts: Sequence[int]) -> Float[Tensor, "P h w"]:
        """Compute the mask logits of some queries after one layer, see `structures.LayerMaskSource`."""
        chosen = queries.to(self.queries.device).split(list(counts))
        products = [
            of_image[index] @ features.flatten(1)
            for index, of_image, features in zip(chosen, self.queries[layer], self.features[layer], strict=True)
        ]
        return torch.cat(products).unflatten(1, self.mask_size) + self.bias

    def all_masks(self) -> Float[Tensor, "B Q h w"]:
        """Compute the mask logits of all queries after the last layer."""
        features = self.features[-1]
        return (self.queries[-1] @ features.flatten(2)).unflatten(2, features.shape[-2:]) + self.bias

    def at_points(self, points: Float[Tensor, "T P 2"]) -> Float[Tensor, "T B Q P"]:
        """Compute the mask logits of all queries at points, see `structures.LayerMaskSource`.

        Logits are linear in the features, so that these are interpolated instead of the masks.
        """
        grids = (2 * points - 1)[:, None, None].expand(-1, self.queries.shape[1], -1, -1, -1)
        sampled = [
            F.grid_sample(features.float(), grid, padding_mode="border", align_corners=False)[:, :, 0]
            for features, grid in zip(self.features, grids, strict=True)
        ]
        return self.queries.float() @ torch.stack(sampled) + self.bias

    def of_queries(self, queries: slice) -> "DotProductMasks":
        """Select queries."""
        return replace(self, queries=self.queries[:, :, queries])

    def select_image(self, index: int, size: tuple[int, int] | None = None) -> "DotProductMasks":
        """Select one image of the batch, see `structures.MaskSource`."""
        one = slice(index, index + 1)
        rows, columns = self.mask_size if size is None else (-(-side // MASK_STRIDE) for side in size)
        features = tuple(cells[one, :, :rows, :columns] for cells in self.features)
        return replace(self, features=features, queries=self.queries[:, one])


class CellBlock(nn.Module):
    """Refine the features of cells by those of their neighbours: a residual block of ConvNeXt (arXiv:2201.03545)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm = nn.LayerNorm(width, eps=_EPS)
        self.projection = nn.Linear(width, width)

    def forward(self, cells: Float[Tensor, "B D h w"]) -> Float[Tensor, "B D h w"]:
        """Refine all cells."""
        mixed = self.norm(self.convolution(cells).permute(0, 2, 3, 1))
        return cells + F.gelu(self.projection(mixed)).permute(0, 3, 1, 2)


class QueryBlock(nn.Module):
    """Feed-forward network of the queries, with a residual connection, and a projection."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mlp = mlp(width, QUERY_EXPANSION * width, width, activation="gelu")
        self.projection = nn.Linear(width, width)

    def forward(self, states: Float[Tensor, "*N Q D"]) -> Float[Tensor, "*N Q D"]:
        """Project the states of queries."""
        projected: Tensor = self.projection(states + self.mlp(self.norm(states)))
        return projected


class DotProductMaskHead(nn.Module):
    """Masks as products of queries with cells.

    Args:
        width: D.
        num_layers: of the decoder.

    Attributes:
        activation_checkpointing: recompute activations in the backward pass.
    """

    def __init__(self, width: int, num_layers: int) -> None:
        super().__init__()
        self.activation_checkpointing = False
        self.blocks = nn.ModuleList(CellBlock(width) for _ in range(num_layers))
        self.feature_projection = nn.Conv2d(width, width, 1)
        self.query_block = QueryBlock(width)
        self.bias = nn.Parameter(torch.zeros(1))

    def attach(
        self,
        predictions: Predictions,
        decoded: DecoderOutput,
        maps: Sequence[Float[Tensor, "B _ _ _"]],
        features: FeatureMaps,
        memory: FeatureMaps,
        image_size: tuple[int, int],
    ) -> Predictions:
        """Give masks to the predictions of the model's own queries, their groups and the encoder.

        Arguments as of `models.parts.MaskHead`.
        """
        size = [side // MASK_STRIDE for side in image_size]
        cells = F.interpolate(memory.map_of(0), size=size, mode="bilinear", align_corners=False)
        masks = self(decoded.states, cells, decoded.layers)
        has_proposals = predictions.proposals is not None
        coarse = self.feature_projection(cells) if has_proposals else None
        start = predictions.boxes.shape[1]
        auxiliary = []
        for one in predictions.auxiliary:
            stop = start + one.predictions.boxes.shape[1]
            own = self._with_masks(one.predictions, masks.of_queries(slice(start, stop)), coarse)
            auxiliary.append(replace(one, predictions=own) if one.kind == "group" else one)
            start = stop
        own = self._with_masks(predictions, masks.of_queries(slice(0, predictions.boxes.shape[1])), coarse)
        return replace(own, auxiliary=tuple(auxiliary))

    def forward(
        self, states: Float[Tensor, "T B Q D"], cells: Float[Tensor, "B D h w"], layers: Sequence[int]
    ) -> DotProductMasks:
        """Project queries and cells.

        Args:
            states: of the queries after T layers.
            cells: of the finest map, resized.
            layers: indices of the layers.
        """
        features = []
        for index, block in enumerate(self.blocks[: max(layers) + 1]):
            cells = checkpointed(block, self.activation_checkpointing, cells)
            if index in layers:
                features.append(self.feature_projection(cells))
        return DotProductMasks(tuple(features), self.query_block(states), self._bias)

    @property
    def _bias(self) -> Float[Tensor, "1"]:
        """The bias, without gradient if masks are computed without, whatever the mode in which they are asked for."""
        return self.bias if torch.is_grad_enabled() else self.bias.detach()

    def _with_masks(
        self, predictions: Predictions, masks: DotProductMasks, coarse: Float[Tensor, "B D h w"] | None
    ) -> Predictions:
        proposals = predictions.proposals
        if proposals is not None and coarse is not None:
            proposals = self._with_proposal_masks(proposals, coarse)
        return replace(predictions, mask_source=masks, proposals=proposals)

    def _with_proposal_masks(self, proposals: EncoderProposals, coarse: Float[Tensor, "B D h w"]) -> EncoderProposals:
        assert proposals.states is not None, "mixed queries keep the memory of their cells"
        masks = DotProductMasks((coarse,), self.query_block(proposals.states)[None], self._bias)
        return replace(proposals, mask_source=masks)
