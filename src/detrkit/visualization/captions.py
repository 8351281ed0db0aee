"""Captions on photos: where there is room for them, and none where they would hide objects.

Input: boxes (xyxy in pixels) and what is to stand at each, in longer and shorter words. Output: places for them.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float
from PIL import ImageDraw, ImageFont

Font = ImageFont.ImageFont | ImageFont.FreeTypeFont
Corner = tuple[float, float]
_MARGIN = 2  # pixels around the text
_MAX_HIDDEN = 0.2  # share of an object that a caption may cover


def font_for(size: tuple[int, int], boxes: Float[np.ndarray, "N 4"]) -> Font:
    """A font that suits a photo of (width, height), and its boxes: many small ones get small captions."""
    least, largest = (max(11, max(size) // share) for share in (90, 40))
    if not len(boxes):
        return ImageFont.load_default(size=largest)
    side = float(np.median(np.sqrt((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))))
    return ImageFont.load_default(size=min(largest, max(least, round(side / 7))))


def place_captions(
    boxes: Float[np.ndarray, "N 4"], captions: Sequence[Sequence[str]], font: Font, size: tuple[int, int]
) -> list[tuple[str, Corner] | None]:
    """Find a place for the longest words of every box that fit, the first boxes first.

    Captions lie beside each other, inside the photo, and hide no more than a fifth of any object.

    Args:
        boxes: of all objects, inside the photo.
        captions: of each box, from long to short; none for a box without.
        font: of the captions.
        size: (width, height) of the photo.

    Returns:
        What stands at each box, and the upper left corner of it; None where nothing fits.
    """
    areas = np.maximum((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]), 1.0)
    taken = np.zeros((0, 4))
    placed: list[tuple[str, Corner] | None] = []
    for box, words in zip(boxes.tolist(), captions, strict=True):
        placed.append(None)
        for text, place in _places(box, words, font, size):
            if _common(place, taken).any() or (_common(place, boxes) > _MAX_HIDDEN * areas).any():
                continue
            taken = np.vstack([taken, place])
            placed[-1] = text, (float(place[0]), float(place[1]))
            break
    return placed


def above(corner: Corner, extent: tuple[float, float], size: tuple[int, int]) -> Corner:
    """Where a caption of (width, height) lies above a corner, or below it where there is no room above."""
    left = min(max(corner[0], 0), max(size[0] - extent[0], 0))
    return left, corner[1] - extent[1] if corner[1] >= extent[1] else corner[1]


def extent_of(caption: str, font: Font) -> tuple[float, float]:
    """Width and height of a caption, with its ground."""
    x0, y0, x1, y1 = font.getbbox(caption)
    return x1 - x0 + 2 * _MARGIN, y1 - y0 + 2 * _MARGIN


def write_caption(
    pen: ImageDraw.ImageDraw, corner: Corner, caption: str, colour: tuple[int, int, int], font: Font
) -> None:
    """Write on a ground of the colour whose upper left corner is given."""
    left, top = round(corner[0]), round(corner[1])  # Pillow cuts text that starts between pixels above the photo's edge
    width, height = extent_of(caption, font)
    x0, y0, _, _ = font.getbbox(caption)
    pen.rectangle((left, top, left + width, top + height), fill=colour)
    brightness = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]
    ink = "black" if brightness > 140 else "white"
    pen.text((left + _MARGIN - x0, top + _MARGIN - y0), caption, fill=ink, font=font)


def _places(
    box: Sequence[float], words: Sequence[str], font: Font, size: tuple[int, int]
) -> Iterator[tuple[str, np.ndarray]]:
    """Where words could stand inside the photo, the best place first: above or below the box, beside it, inside."""
    x0, y0, x1, y1 = box
    for text in filter(None, words):
        width, height = extent_of(text, font)
        for left, top in (
            above((x0, y0), (width, height), size),
            (x1 - width, y0 - height),
            (x0, y1),
            (x1 - width, y1),
            (x1, y0),
            (x0 - width, y0),
            (x0, y0),
        ):
            if left >= 0 and top >= 0 and left + width <= size[0] and top + height <= size[1]:
                yield text, np.array([left, top, left + width, top + height])


def _common(place: np.ndarray, boxes: Float[np.ndarray, "N 4"]) -> np.ndarray:
    """The area that a place has in common with each box."""
    low, high = np.maximum(place[:2], boxes[:, :2]), np.minimum(place[2:], boxes[:, 2:])
    return np.asarray((high - low).clip(min=0).prod(1))
