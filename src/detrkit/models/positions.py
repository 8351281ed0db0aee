"""Position encodings of feature maps (paper, section 3.2 and appendix A.4)."""

import math
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from detrkit.config.model import PositionInjection
from detrkit.errors import ConfigError, arg

_MAX_CACHED_SIZES = 32  # sizes of feature maps in the cache; at most a megabyte each


@runtime_checkable
class PositionEncoding(Protocol):
    """Position encoding of the cells of a feature map."""

    def __call__(
        self,
        padding_mask: Bool[Tensor, "B h w"],
        *,
        is_padded: bool = True,
        level: int = 0,
        image_cells: Float[Tensor, "B 2"] | None = None,
        first_cell: float | None = None,
    ) -> Float[Tensor, "B h w D"]:
        """Encode the positions of all cells.

        Args:
            padding_mask: True for padding.
            is_padded: False if the mask is known to contain no padding, so that the encoding can be cached.
            level: index of the feature map.
            image_cells: columns and rows covered by the images, possibly fractional; None counts the cells outside of
                the padding, as published.
            first_cell: coordinate of the first cell; None for 0.5 in multi-scale models, else 1.
        """
        ...


class SinePositions(nn.Module):
    """Sines and cosines of the row in the first half of the channels, of the column in the second half.

    Coordinates are counted in the image without padding and scaled to 2 pi at its end, so the encoding of a cell does not
    depend on the padding. In multi-scale models, coordinates are those of cell centers, and a learned embedding
    identifies the level (Deformable DETR, appendix A.2).

    Args:
        width: D.
        temperature: ratio of the longest to the shortest wavelength.
        num_levels: number of level embeddings; 0 for single-scale models.
    """

    def __init__(self, width: int, temperature: float = 10000.0, num_levels: int = 0) -> None:
        super().__init__()
        self.channels_per_axis = width // 2
        self.temperature = temperature
        self.first_cell = 0.5 if num_levels else 1.0
        self.levels = nn.Parameter(torch.randn(num_levels, width)) if num_levels else None
        self._cache: dict[tuple[int, int, torch.device], Tensor] = {}

    def forward(
        self,
        padding_mask: Bool[Tensor, "B h w"],
        *,
        is_padded: bool = True,
        level: int = 0,
        image_cells: Float[Tensor, "B 2"] | None = None,
        first_cell: float | None = None,
    ) -> Float[Tensor, "B h w D"]:
        """Encode the positions of all cells; cells in the padding repeat the last one of the image."""
        encoded = self._encode_map(padding_mask, is_padded, image_cells, first_cell)
        return encoded if self.levels is None else encoded + self.levels[level]

    def _encode_map(
        self,
        padding_mask: Bool[Tensor, "B h w"],
        is_padded: bool,
        image_cells: Float[Tensor, "B 2"] | None,
        first_cell: float | None,
    ) -> Float[Tensor, "B h w D"]:
        if is_padded or torch.compiler.is_compiling():
            return self._encode(padding_mask, image_cells, first_cell)
        if image_cells is not None:
            return self._encode(padding_mask[:1], image_cells[:1], first_cell).expand(len(padding_mask), -1, -1, -1)
        batch_size, height, width = padding_mask.shape
        size = (height, width, padding_mask.device)
        if size not in self._cache:
            if len(self._cache) >= _MAX_CACHED_SIZES:
                self._cache.clear()
            with torch.inference_mode(False):  # a later training step may use the cached encoding
                self._cache[size] = self._encode(torch.zeros(1, height, width, dtype=torch.bool, device=size[2]))
        return self._cache[size].expand(batch_size, -1, -1, -1)

    def _encode(
        self,
        padding_mask: Bool[Tensor, "B h w"],
        image_cells: Float[Tensor, "B 2"] | None = None,
        first_cell: float | None = None,
    ) -> Float[Tensor, "B h w D"]:
        encoded = []
        offset = 1 - (self.first_cell if first_cell is None else first_cell)
        for axis in (1, 2):
            count = (~padding_mask).cumsum(axis, dtype=torch.float32)
            if image_cells is None:
                last = count.narrow(axis, count.shape[axis] - 1, 1)
            else:
                last = image_cells[:, 2 - axis, None, None]
            # 1e-6 as published: columns that are all padding have last = 0
            encoded.append(_sine_encoding((count - offset) / (last + 1e-6), self.channels_per_axis, self.temperature))
        return torch.cat(encoded, dim=-1)


class LearnedPositions(nn.Module):
    """One learned embedding per column in the first half of the channels, per row in the second half.

    The order is opposite to that of the sine encoding, and padding is ignored, both as published.

    Args:
        width: D.
        max_size: maximum number of rows and of columns of a feature map.
    """

    def __init__(self, width: int, max_size: int = 50) -> None:
        super().__init__()
        self.rows = nn.Embedding(max_size, width // 2)
        self.columns = nn.Embedding(max_size, width // 2)
        nn.init.uniform_(self.rows.weight)
        nn.init.uniform_(self.columns.weight)

    def forward(
        self,
        padding_mask: Bool[Tensor, "B h w"],
        *,
        is_padded: bool = True,
        level: int = 0,
        image_cells: Float[Tensor, "B 2"] | None = None,
        first_cell: float | None = None,
    ) -> Float[Tensor, "B h w D"]:
        """Encode rows and columns of the padded map; only the shape of `padding_mask` is used.

        Raises:
            ConfigError: the feature map has more rows or columns than there are embeddings.
        """
        batch_size, height, width = padding_mask.shape
        max_size = self.rows.num_embeddings
        if height > max_size or width > max_size:
            raise ConfigError(
                f"the feature map has {height} x {width} cells, but the model has learned positions for {max_size} x "
                f"{max_size}. Use smaller images, or train with {arg('max_position_embeddings', max(height, width))}."
            )
        columns = self.columns.weight[:width].expand(height, -1, -1)
        rows = self.rows.weight[:height, None].expand(-1, width, -1)
        return torch.cat([columns, rows], dim=-1).expand(batch_size, -1, -1, -1)


class NoPositions(nn.Module):
    """Zeros instead of a position encoding (paper, table 3)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(
        self,
        padding_mask: Bool[Tensor, "B h w"],
        *,
        is_padded: bool = True,
        level: int = 0,
        image_cells: Float[Tensor, "B 2"] | None = None,
        first_cell: float | None = None,
    ) -> Float[Tensor, "B h w D"]:
        """Return zeros."""
        return torch.zeros(*padding_mask.shape, self.width, device=padding_mask.device)


def encode_coordinates(
    coordinates: Float[Tensor, "B N C"], channels: int, temperature: float = 10000.0
) -> Float[Tensor, "B N _"]:
    """Sine-encode each coordinate in 0 .. 1 with the given number of channels, and concatenate, as `SinePositions`."""
    return _sine_encoding(coordinates.float(), channels, temperature).flatten(-2)


def index_encoding(
    rows: int, columns: int, channels: int, device: torch.device, temperature: float = 10000.0
) -> Float[Tensor, "1 S D"]:
    """Sine-encode the integer coordinates of the cells of a grid, row by row (RT-DETR, ViT of MoCo v3).

    Args:
        rows: of the grid.
        columns: of the grid.
        channels: D: a quarter each for the sines and cosines of the row, then of the column.
        device: of the result.
        temperature: ratio of the longest to the shortest wavelength.
    """
    channel = torch.arange(channels // 4, dtype=torch.float32, device=device)
    frequencies = temperature ** -(channel / (channels // 4))
    encoded = []
    for index, count in enumerate((rows, columns)):
        phase = torch.arange(count, dtype=torch.float32, device=device)[:, None] * frequencies
        axis = torch.cat([phase.sin(), phase.cos()], dim=-1)
        encoded.append(axis.unsqueeze(1 - index).expand(rows, columns, -1))
    return torch.cat(encoded, dim=-1).flatten(0, 1)[None]


def _sine_encoding(
    coordinates: Float[Tensor, "*shape"], channels: int, temperature: float
) -> Float[Tensor, "*shape _"]:
    """Encode coordinates by interleaved sines and cosines of wavelengths from 1 to `temperature` image sizes."""
    channel = torch.arange(channels, dtype=torch.float32, device=coordinates.device)
    period = temperature ** (2 * (channel // 2) / channels)
    phase = (coordinates * (2 * math.pi))[..., None] / period
    return torch.stack([phase[..., 0::2].sin(), phase[..., 1::2].cos()], dim=-1).flatten(-2)


def inject_positions(
    tokens: Float[Tensor, "B N D"], positions: Float[Tensor, "B N D"], injection: PositionInjection
) -> tuple[Float[Tensor, "B N D"], Float[Tensor, "B N D"]]:
    """Return the tokens, and the positions that every attention adds to them (paper, table 3).

    Args:
        tokens: input of the layers.
        positions: position encodings of the tokens.
        injection: "attention" adds positions at every attention, as published; "input" adds them to the tokens once;
            "none" ignores them. With the latter two, attention layers add zeros.
    """
    if injection == "attention":
        return tokens, positions
    return tokens + positions if injection == "input" else tokens, torch.zeros_like(positions)
