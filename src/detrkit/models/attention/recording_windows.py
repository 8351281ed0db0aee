"""Attention maps of the recorded blocks of a ViT, whose tokens are ordered window by window.

A cell attends to the cells of its window, or in global blocks to those of all windows. DINOv2 has tokens besides, such as
the class token, of which every window has a copy; a map lacks their share of the attention.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from detrkit.models.attention.multi_head import ProjectedAttention
from detrkit.ops.grid import Grid


@dataclass(frozen=True)
class WindowAttentionInputs:
    """Inputs and output of the attention of one ViT block for one image.

    Attributes:
        module: the attention layer.
        tokens: of every window, or of all windows as one sequence in a global block.
        num_windows: windows on each side of the image.
        grid: cells of the ViT.
        output: output of the layer.
    """

    module: ProjectedAttention
    tokens: Float[Tensor, "N S D"]
    num_windows: int
    grid: Grid
    output: Float[Tensor, "N S D"]

    @property
    def num_queries(self) -> int:
        """Number of cells."""
        return self.grid.num_tokens

    @property
    def is_global(self) -> bool:
        """True in a global block, where all windows attend to each other."""
        return len(self.tokens) == 1

    @torch.no_grad()
    def weights(self, heads: Sequence[int] | None, queries: Sequence[int] | None) -> Float[Tensor, "M N S"]:
        """Compute the attention of some heads and cells to all cells, row by row; None selects all."""
        rows = torch.arange(self.num_queries) if queries is None else torch.tensor(list(queries), dtype=torch.long)
        cells, positions = self._cells()
        num_heads = self.module.num_heads if heads is None else len(heads)
        maps = torch.zeros(num_heads, len(rows), self.num_queries)
        for sequence, tokens in enumerate(self.tokens):
            place = torch.full((self.num_queries,), -1)
            place[cells[sequence]] = positions
            chosen = (place[rows] >= 0).nonzero()[:, 0]
            if len(chosen):
                attending = tokens[None, place[rows[chosen]].to(tokens.device)]
                weights = self.module.weights(attending, tokens[None], None, heads)[0].float().cpu()
                spread = torch.zeros(*weights.shape[:2], self.num_queries)
                spread[..., cells[sequence]] = weights[..., positions]
                maps[:, chosen] = spread
        return maps

    def window_box(self, cell: int) -> tuple[float, ...] | None:
        """Return the window of a cell, xyxy in pixels of the original image; None in a global block."""
        if self.is_global:
            return None
        of_cell = next(cells for cells in self._cells()[0] if cell in cells)
        boxes = self.grid.boxes()[of_cell]
        return (*boxes[:, :2].amin(0).tolist(), *boxes[:, 2:].amax(0).tolist())

    def _cells(self) -> tuple[Int64[Tensor, "N P"], Int64[Tensor, "P"]]:
        """Return the cells of every sequence, and their positions in it."""
        height, width = (side // self.num_windows for side in self.grid.cells)
        rows = torch.arange(self.num_queries).view(self.num_windows, height, self.num_windows, width)
        windows = rows.transpose(1, 2).reshape(self.num_windows**2, height * width)
        together = len(windows) // len(self.tokens)
        in_window = self.tokens.shape[1] // together
        first = in_window - windows.shape[1]  # tokens that are no cells come first
        positions = torch.arange(self.tokens.shape[1]).view(together, in_window)[:, first:]
        return windows.view(len(self.tokens), -1), positions.flatten()
