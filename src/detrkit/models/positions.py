"""Position encodings of a feature map (paper, section 3.2 and appendix A.4).

Input: the padding mask of the feature map, (B, h, w). Output: one D-vector per cell, (B, h, w, D).
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from detrkit.config.model import Place
from detrkit.errors import ConfigError

_MAX_SIZES = 32  # of feature maps whose encoding is remembered; a megabyte each for the largest photos


class SinePositions(nn.Module):
    """Sines and cosines of the row in the first half of the channels, of the column in the second.

    Rows and columns are counted over the photo without padding and scaled to 2 pi at its end, so that the encoding of
    a cell does not depend on how far its photo was padded. In a pyramid, positions count to the middle of a cell instead of
    its end, and a learned vector per map tells the maps apart (Deformable DETR, appendix A.2).
    """

    def __init__(self, width: int, temperature: float = 10000.0, levels_of_pyramid: int = 0) -> None:
        super().__init__()
        self.channels_per_axis = width // 2
        self.temperature = temperature
        self.first_cell = 0.5 if levels_of_pyramid else 1.0
        self.levels = nn.Parameter(torch.randn(levels_of_pyramid, width)) if levels_of_pyramid else None
        self._of_size: dict[tuple[int, int, torch.device], Tensor] = {}

    def forward(
        self,
        padding_mask: Bool[Tensor, "B h w"],
        *,
        is_padded: bool = True,
        level: int = 0,
        photo_cells: Float[Tensor, "B 2"] | None = None,
        first_cell: float | None = None,
    ) -> Float[Tensor, "B h w D"]:
        """Encode every cell; in padding, the last cell of the photo is repeated.

        Args:
            padding_mask: True on padding.
            is_padded: False when the mask is known to hold no True: the encoding of such a map is then remembered.
            level: which map of a pyramid it is.
            photo_cells: columns and rows that the photos' pixels fill; None counts whole cells, as published.
            first_cell: what the first cell is counted as, with `photo_cells`; None for 0.5 in a pyramid, else 1.
        """
        within = self._within_map(padding_mask, is_padded, photo_cells, first_cell)
        return within if self.levels is None else within + self.levels[level]

    def _within_map(
        self,
        padding_mask: Bool[Tensor, "B h w"],
        is_padded: bool,
        photo_cells: Float[Tensor, "B 2"] | None,
        first_cell: float | None,
    ) -> Float[Tensor, "B h w D"]:
        if is_padded or torch.compiler.is_compiling():
            return self._encode(padding_mask, photo_cells, first_cell)
        if photo_cells is not None:
            return self._encode(padding_mask[:1], photo_cells[:1], first_cell).expand(len(padding_mask), -1, -1, -1)
        batch_size, height, width = padding_mask.shape
        size = (height, width, padding_mask.device)
        if size not in self._of_size:
            if len(self._of_size) >= _MAX_SIZES:
                self._of_size.clear()
            with torch.inference_mode(False):  # training may use it later
                self._of_size[size] = self._encode(torch.zeros(1, height, width, dtype=torch.bool, device=size[2]))
        return self._of_size[size].expand(batch_size, -1, -1, -1)

    def _encode(
        self,
        padding_mask: Bool[Tensor, "B h w"],
        photo_cells: Float[Tensor, "B 2"] | None = None,
        first_cell: float | None = None,
    ) -> Float[Tensor, "B h w D"]:
        encoded = []
        before = 1 - (self.first_cell if first_cell is None else first_cell)
        for axis in (1, 2):
            count = (~padding_mask).cumsum(axis, dtype=torch.float32)
            if photo_cells is None:
                last = count.narrow(axis, count.shape[axis] - 1, 1)
            else:
                last = photo_cells[:, 2 - axis, None, None]
            encoded.append(self._encode_axis(count - before, last))
        return torch.cat(encoded, dim=-1)

    def _encode_axis(self, count: Float[Tensor, "B h w"], last: Float[Tensor, "B _ _"]) -> Float[Tensor, "B h w C"]:
        """Encode the position along one axis, counted from the photo's start to its end."""
        share = count / (last + 1e-6)  # 1e-6 as published: a column of nothing but padding has last = 0
        return _waves(share, self.channels_per_axis, self.temperature)


def encode_coordinates(
    coordinates: Float[Tensor, "B N C"], channels: int, temperature: float = 10000.0
) -> Float[Tensor, "B N _"]:
    """Encode each coordinate, 0 .. 1, in as many channels, one after the other, as `SinePositions` does."""
    return _waves(coordinates.float(), channels, temperature).flatten(-2)


def _waves(shares: Float[Tensor, "*shape"], channels: int, temperature: float) -> Float[Tensor, "*shape _"]:
    """Sines and cosines by turns, of waves from one photo long to `temperature` photos."""
    channel = torch.arange(channels, dtype=torch.float32, device=shares.device)
    period = temperature ** (2 * (channel // 2) / channels)
    phase = (shares * (2 * math.pi))[..., None] / period
    return torch.stack([phase[..., 0::2].sin(), phase[..., 1::2].cos()], dim=-1).flatten(-2)


class LearnedPositions(nn.Module):
    """One learned vector per column in the first half of the channels, per row in the second.

    The order is the opposite of the sine encoding's and padding is ignored, both as published.
    """

    def __init__(self, width: int, table_size: int = 50) -> None:
        super().__init__()
        self.rows = nn.Embedding(table_size, width // 2)
        self.columns = nn.Embedding(table_size, width // 2)
        nn.init.uniform_(self.rows.weight)
        nn.init.uniform_(self.columns.weight)

    def forward(
        self,
        padding_mask: Bool[Tensor, "B h w"],
        *,
        is_padded: bool = True,
        level: int = 0,
        photo_cells: Float[Tensor, "B 2"] | None = None,
        first_cell: float | None = None,
    ) -> Float[Tensor, "B h w D"]:
        """Encode every cell by its row and column in the padded image.

        Args:
            padding_mask: looked at for its shape alone.
            is_padded: not looked at.
            level: not looked at.
            photo_cells: not looked at.
            first_cell: not looked at.

        Raises:
            ConfigError: the feature map is larger than the tables.
        """
        batch_size, height, width = padding_mask.shape
        table_size = self.rows.num_embeddings
        if height > table_size or width > table_size:
            raise ConfigError(
                f"learned positions: the feature map is {height} x {width} cells and the tables hold {table_size}; "
                f"make the photos smaller or build the model with max_position_embeddings={max(height, width)}"
            )
        columns = self.columns.weight[:width].expand(height, -1, -1)
        rows = self.rows.weight[:height, None].expand(-1, width, -1)
        return torch.cat([columns, rows], dim=-1).expand(batch_size, -1, -1, -1)


class NoPositions(nn.Module):
    """Zeros: cells do not know where they are (paper, table 3)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(
        self,
        padding_mask: Bool[Tensor, "B h w"],
        *,
        is_padded: bool = True,
        level: int = 0,
        photo_cells: Float[Tensor, "B 2"] | None = None,
        first_cell: float | None = None,
    ) -> Float[Tensor, "B h w D"]:
        """Encode nothing."""
        return torch.zeros(*padding_mask.shape, self.width, device=padding_mask.device)


def add_positions(
    tokens: Float[Tensor, "B N D"], positions: Float[Tensor, "B N D"], place: Place
) -> tuple[Float[Tensor, "B N D"], Float[Tensor, "B N D"]]:
    """Tell tokens and what every attention adds to them (paper, table 3).

    Args:
        tokens: that are read.
        positions: of the tokens.
        place: "attention" leaves both as they are, as published; "input" adds positions now, and "none" never does, so that
            attentions add zeros.
    """
    if place == "attention":
        return tokens, positions
    return tokens + positions if place == "input" else tokens, torch.zeros_like(positions)
