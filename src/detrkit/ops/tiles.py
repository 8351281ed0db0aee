"""A large photo cut into overlapping tiles, so that small objects are seen large enough.

Input: sizes (height, width) in pixels. Output: rectangles xyxy in pixels of the photo.
"""

import math
from dataclasses import dataclass

from detrkit.errors import ConfigError

Rectangle = tuple[int, int, int, int]
_SMALLEST = 32  # pixels a side: less than a cell of a feature map, no object is found in
_MAX_OVERLAP = 0.5  # beyond it, every place is looked at more than four times


@dataclass(frozen=True)
class Tiling:
    """How a photo is cut.

    Attributes:
        size: side of a tile in pixels of the photo.
        overlap: least share of a tile's side that it has in common with the next one.
    """

    size: int
    overlap: float = 0.2

    def __post_init__(self) -> None:
        """See that the numbers make sense.

        Raises:
            ConfigError: they do not.
        """
        if self.size < _SMALLEST:
            raise ConfigError(f"--tile: found {self.size}, expected at least {_SMALLEST} pixels a side")
        if not 0 <= self.overlap <= _MAX_OVERLAP:
            raise ConfigError(
                f"--overlap: found {self.overlap:g}, expected a share of the tile between 0 and {_MAX_OVERLAP}"
            )

    def views(self, size: tuple[int, int]) -> list[Rectangle]:
        """What is looked at: the whole photo, and its tiles row by row unless one tile holds it all.

        The tiles are spread evenly from edge to edge; none is smaller than asked for unless the photo is.
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
