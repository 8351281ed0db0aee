"""Feature maps as one sequence of tokens (Deformable DETR, arXiv:2010.04159, section 4.1)."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True)
class FeatureMaps:
    """Feature maps of width D, from the neck to the decoder: the cells of all maps as tokens.

    Tokens are ordered by map, finest first, and row by row within a map; S is their number.

    Attributes:
        tokens: features of the cells.
        positions: position encodings of the cells.
        padding_mask: True for cells in the padding; None without padding.
        sizes: (height, width) of each map in cells, padding included.
        image_cells: columns and rows of each map that the image covers, without its padding; fractional with
            `align_cells`. None if the image covers the maps.
        image_extents: the same, relative to the size of the map.
        first_cells: distance from the image's edge to the center of each map's first cell, in cells; None for 0.5.
        padding_invariant: whether the result of an image must not depend on its padding.
        keys: sum of tokens and positions; computed once by the decoder.
    """

    tokens: Float[Tensor, "B S D"]
    positions: Float[Tensor, "B S D"]
    padding_mask: Bool[Tensor, "B S"] | None
    sizes: tuple[tuple[int, int], ...]
    image_cells: Float[Tensor, "B L 2"] | None = None
    image_extents: Float[Tensor, "B L 2"] | None = None
    first_cells: tuple[float, ...] | None = None
    padding_invariant: bool = False
    keys: Float[Tensor, "B S D"] | None = None

    def with_tokens(self, tokens: Float[Tensor, "B S D"]) -> "FeatureMaps":
        """Replace the features of all cells."""
        return replace(self, tokens=tokens)

    def map_of(self, level: int) -> Float[Tensor, "B D h w"]:
        """Return the tokens of one level as a feature map."""
        height, width = self.sizes[level]
        return self.tokens[:, self._slice(level)].unflatten(1, (height, width)).permute(0, 3, 1, 2)

    def only(self, level: int) -> "FeatureMaps":
        """Return the tokens, positions and padding of one level, without coordinates."""
        tokens = self._slice(level)
        mask = None if self.padding_mask is None else self.padding_mask[:, tokens]
        size = self.sizes[level]
        return FeatureMaps(
            self.tokens[:, tokens], self.positions[:, tokens], mask, (size,), padding_invariant=self.padding_invariant
        )

    def coordinates_of(self, index: int) -> "FeatureMaps":
        """Return the coordinates of one image of the batch, without features and padding mask."""
        one = slice(index, index + 1)
        empty = self.tokens.new_empty(1, 0, self.tokens.shape[2])
        return replace(
            self,
            tokens=empty,
            positions=empty,
            padding_mask=None,
            image_cells=None if self.image_cells is None else self.image_cells[one],
            image_extents=None if self.image_extents is None else self.image_extents[one],
            keys=None,
        )

    def padding_mask_of(self, level: int) -> Bool[Tensor, "B h w"] | None:
        """Return the padding mask of one level."""
        if self.padding_mask is None:
            return None
        height, width = self.sizes[level]
        return self.padding_mask[:, self._slice(level)].unflatten(1, (height, width))

    def to_map_coordinates(self, coordinates: Float[Tensor, "B N C"]) -> Float[Tensor, "B N L C"]:
        """Convert coordinates relative to the image into coordinates relative to each padded map.

        Args:
            coordinates: (x, y) or (cx, cy, w, h) in 0 .. 1.
        """
        if self.image_extents is None:
            return coordinates[:, :, None].expand(-1, -1, len(self.sizes), -1)
        on_maps = coordinates[:, :, None] * self.image_extents.repeat(1, 1, coordinates.shape[-1] // 2)[:, None]
        if self.first_cells is None or self.image_cells is None:
            return on_maps
        # the center of a map's first cell is at 0.5 cells on the map, wherever it is in the image
        cell_sizes = (self.image_extents / self.image_cells).unbind(1)
        shifts = [size * (0.5 - first) for size, first in zip(cell_sizes, self.first_cells, strict=True)]
        return torch.cat([on_maps[..., :2] + torch.stack(shifts, dim=1)[:, None], on_maps[..., 2:]], dim=-1)

    def cell_centers(self, *, aligned: bool = True) -> list[Float[Tensor, "B _ 2"]]:
        """Compute the centers (x, y) of the cells of each map, relative to the image; greater than 1 in its padding.

        Args:
            aligned: use `first_cells`; False places the first cell at the image's edge.
        """
        centers = []
        for level, (height, width) in enumerate(self.sizes):
            first = self.first_cells[level] if aligned and self.first_cells is not None else 0.5
            columns = torch.arange(width, device=self.tokens.device).expand(height, -1) + first
            rows = torch.arange(height, device=self.tokens.device)[:, None].expand(-1, width) + first
            cells = torch.stack([columns, rows], dim=-1).flatten(0, 1).expand(self.tokens.shape[0], -1, -1)
            if self.image_cells is None:
                centers.append(torch.stack([cells[..., 0] / width, cells[..., 1] / height], dim=-1))
            else:
                centers.append(cells / self.image_cells[:, level, None])
        return centers

    def _slice(self, level: int) -> slice:
        start = sum(height * width for height, width in self.sizes[:level])
        height, width = self.sizes[level]
        return slice(start, start + height * width)
