"""Where the cells of the feature map lie in the photo: the way from a token to pixels and back.

Pixels are those of the original photo. A token is numbered row by row over the padded feature map.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from detrkit.errors import ConfigError


@dataclass(frozen=True)
class Grid:
    """The feature map over one photo; all sizes are (height, width).

    Attributes:
        cells: rows and columns of the feature map, padding included.
        stride: pixels of the resized photo per cell.
        resized: size of the photo as the model sees it, without padding.
        padded: the same with padding.
        original: size of the photo on disk.
    """

    cells: tuple[int, int]
    stride: int
    resized: tuple[int, int]
    padded: tuple[int, int]
    original: tuple[int, int]

    @property
    def num_tokens(self) -> int:
        """S."""
        return self.cells[0] * self.cells[1]

    def token_at(self, x: float, y: float) -> int:
        """Which token a pixel of the photo belongs to.

        Raises:
            ConfigError: the pixel lies outside.
        """
        height, width = self.original
        if not (0 <= x < width and 0 <= y < height):
            raise ConfigError(
                f"point {x:g},{y:g}: lies outside of the photo, expected x from 0 to {width - 1} and y from 0 to "
                f"{height - 1}"
            )
        row = int(y / height * self.resized[0]) // self.stride
        column = int(x / width * self.resized[1]) // self.stride
        return min(row, self.cells[0] - 1) * self.cells[1] + min(column, self.cells[1] - 1)

    def boxes(self) -> Float[Tensor, "S 4"]:
        """The part of the photo that each token stands for, xyxy; cells in the padding have no area."""
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
        """How much of each cell lies inside a box (xyxy), 0 .. 1; 0 for cells in the padding."""
        cells = self.boxes()
        area = (cells[:, 2:] - cells[:, :2]).prod(1)
        shared = torch.minimum(cells[:, 2:], box[2:]) - torch.maximum(cells[:, :2], box[:2])
        return shared.clamp(min=0).prod(1) / area.clamp(min=torch.finfo(area.dtype).tiny)

    def mass_inside(self, weights: Float[Tensor, "*rows S"], box: Float[Tensor, "4"]) -> Float[Tensor, "*rows"]:
        """How much of its attention a row spends inside a box (xyxy): 0 .. 1 where its weights sum to 1."""
        return weights @ self.share_inside(box)

    def area_share(self, box: Float[Tensor, "4"]) -> float:
        """Share of the photo inside a box (xyxy): what a row that looks everywhere alike would spend there."""
        height, width = self.original
        inside = box.clamp(min=torch.zeros(4), max=torch.tensor([width, height, width, height]))
        return float((inside[2:] - inside[:2]).clamp(min=0).prod()) / (width * height)


def stride_of(padded: tuple[int, int], cells: tuple[int, int], expected: int) -> int:
    """Pixels per cell: the model's stride, or, where a backbone of another library halves differently, what fits."""
    for stride in (expected, *(2**power for power in range(8))):
        if all(-(-side // stride) == count for side, count in zip(padded, cells, strict=True)):
            return stride
    return -(-padded[0] // cells[0])
