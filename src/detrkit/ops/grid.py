"""Conversion between the cells of a feature map and pixels of the original image.

Tokens are the cells of the padded feature map, row by row.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from detrkit.errors import ConfigError, arg


@dataclass(frozen=True)
class Grid:
    """Cells of a feature map over one image; all sizes are (height, width).

    Attributes:
        cells: rows and columns of the feature map, including padding.
        stride: pixels of the resized image per cell.
        resized: size of the image as the model sees it, without padding.
        padded: size with padding.
        original: size of the original image.
    """

    cells: tuple[int, int]
    stride: int
    resized: tuple[int, int]
    padded: tuple[int, int]
    original: tuple[int, int]

    @property
    def num_tokens(self) -> int:
        """Number of tokens S."""
        return self.cells[0] * self.cells[1]

    def token_at(self, x: float, y: float) -> int:
        """Return the token whose cell contains a pixel of the original image.

        Raises:
            ConfigError: the pixel is outside the image.
        """
        height, width = self.original
        if not (0 <= x < width and 0 <= y < height):
            raise ConfigError(
                f"{arg('points', f'{x:g},{y:g}')} is outside the image; expected x from 0 to {width - 1} and y from 0 to "
                f"{height - 1}."
            )
        row = int(y / height * self.resized[0]) // self.stride
        column = int(x / width * self.resized[1]) // self.stride
        return min(row, self.cells[0] - 1) * self.cells[1] + min(column, self.cells[1] - 1)

    def boxes(self) -> Float[Tensor, "S 4"]:
        """Return the area of every cell, xyxy in pixels of the original image; cells in the padding are empty."""
        height, width = (
            (torch.arange(count + 1) * self.stride).clamp(max=side) * (whole / side)
            for count, side, whole in zip(self.cells, self.resized, self.original, strict=True)
        )
        rows, columns = self.cells
        corners = torch.stack(
            [
                width[:-1].expand(rows, -1),
                height[:-1, None].expand(-1, columns),
                width[1:].expand(rows, -1),
                height[1:, None].expand(-1, columns),
            ],
            dim=-1,
        )
        return corners.flatten(0, 1)

    def share_inside(self, box: Float[Tensor, "4"]) -> Float[Tensor, "S"]:
        """Return the share of every cell inside a box (xyxy), 0 to 1; 0 for cells in the padding."""
        cells = self.boxes()
        area = (cells[:, 2:] - cells[:, :2]).prod(1)
        shared = torch.minimum(cells[:, 2:], box[2:]) - torch.maximum(cells[:, :2], box[:2])
        return shared.clamp(min=0).prod(1) / area.clamp(min=torch.finfo(area.dtype).tiny)

    def mass_inside(self, weights: Float[Tensor, "*rows S"], box: Float[Tensor, "4"]) -> Float[Tensor, "*rows"]:
        """Return the sum of attention weights inside a box (xyxy); 0 to 1 if a row sums to 1."""
        return weights @ self.share_inside(box)

    def area_share(self, box: Float[Tensor, "4"]) -> float:
        """Return the share of the image inside a box (xyxy), which is the mass of uniform attention."""
        height, width = self.original
        inside = box.clamp(min=torch.zeros(4), max=torch.tensor([width, height, width, height]))
        return float((inside[2:] - inside[:2]).clamp(min=0).prod()) / (width * height)


def stride_of(padded: tuple[int, int], cells: tuple[int, int], expected: int) -> int:
    """Return the pixels per cell: the expected stride, or the fitting one if the backbone rounds sizes differently."""
    for stride in (expected, *(2**power for power in range(8))):
        if all(-(-side // stride) == count for side, count in zip(padded, cells, strict=True)):
            return stride
    return -(-padded[0] // cells[0])
