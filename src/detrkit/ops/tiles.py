"""Split large images into overlapping tiles, so that small objects are large enough to be detected."""

import math
from dataclasses import dataclass

from detrkit.errors import ConfigError, arg

Rectangle = tuple[int, int, int, int]  # xyxy in pixels of the image
_MIN_SIZE = 32  # pixels: one cell of a feature map
_MAX_OVERLAP = 0.5  # beyond, every pixel is in more than four tiles


@dataclass(frozen=True)
class Tiling:
    """Size and overlap of tiles.

    Attributes:
        size: side of a tile in pixels of the image.
        overlap: minimum overlap of neighboring tiles, as a share of their side, 0 to 0.5.
    """

    size: int
    overlap: float = 0.2

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ConfigError: a value is out of range.
        """
        if self.size < _MIN_SIZE:
            raise ConfigError(f"{arg('tile', self.size)} is too small; expected at least {_MIN_SIZE} pixels per side.")
        if not 0 <= self.overlap <= _MAX_OVERLAP:
            raise ConfigError(
                f"{arg('overlap', self.overlap)} is not a valid share of the tile; expected 0 to {_MAX_OVERLAP}."
            )

    def views(self, size: tuple[int, int]) -> list[Rectangle]:
        """Return the rectangles to predict: the whole image, and its tiles row by row if there are several.

        Tiles are evenly spaced and have the full size, unless the image is smaller.

        Args:
            size: (height, width) of the image.
        """
        height, width = size
        rows, columns = self._starts(height), self._starts(width)
        whole = (0, 0, width, height)
        if len(rows) == len(columns) == 1:
            return [whole]
        return [
            whole,
            *(
                (left, top, min(left + self.size, width), min(top + self.size, height))
                for top in rows
                for left in columns
            ),
        ]

    def _starts(self, side: int) -> list[int]:
        if side <= self.size:
            return [0]
        step = max(1, self.size - math.ceil(self.size * self.overlap))
        count = math.ceil((side - self.size) / step)
        return [round(number * (side - self.size) / count) for number in range(count + 1)]
