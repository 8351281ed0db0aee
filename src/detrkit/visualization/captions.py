"""Placement and drawing of captions on images: near their boxes, inside the image, without hiding objects."""

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float
from PIL import ImageDraw

from detrkit.visualization.fonts import Font

Point = tuple[float, float]
_MARGIN = 2  # pixels around the text
_MAX_COVERED = 0.2  # fraction of an object that a caption may cover


def font_for(size: tuple[int, int], boxes: Float[np.ndarray, "N 4"]) -> Font:
    """Choose a font size for an image: smaller if its boxes are small.

    Args:
        size: (width, height) of the image.
        boxes: xyxy in pixels.
    """
    smallest, largest = (max(11, max(size) // divisor) for divisor in (90, 40))
    if not len(boxes):
        return Font(largest)
    side = float(np.median(np.sqrt((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))))
    return Font(min(largest, max(smallest, round(side / 7))))


def place_captions(
    boxes: Float[np.ndarray, "N 4"], captions: Sequence[Sequence[str]], font: Font, size: tuple[int, int]
) -> list[tuple[str, Point] | None]:
    """Place the longest caption that fits at every box, giving precedence to earlier boxes.

    Captions do not overlap each other, lie inside the image, and cover at most a fifth of any object.

    Args:
        boxes: of all objects, inside the image.
        captions: alternatives for each box, from long to short; empty for a box without a caption.
        font: of the captions.
        size: (width, height) of the image.

    Returns:
        Caption and its upper left corner for each box; None if nothing fits.
    """
    areas = np.maximum((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]), 1.0)
    occupied = np.zeros((0, 4))
    placed: list[tuple[str, Point] | None] = []
    for box, alternatives in zip(boxes.tolist(), captions, strict=True):
        placed.append(None)
        for text, place in _candidate_places(box, alternatives, font, size):
            if _intersection(place, occupied).any() or (_intersection(place, boxes) > _MAX_COVERED * areas).any():
                continue
            occupied = np.vstack([occupied, place])
            placed[-1] = text, (float(place[0]), float(place[1]))
            break
    return placed


def above(corner: Point, text_size: tuple[float, float], size: tuple[int, int]) -> Point:
    """Return the upper left corner of a caption above a point, or below it if there is no room above."""
    left = min(max(corner[0], 0), max(size[0] - text_size[0], 0))
    return left, corner[1] - text_size[1] if corner[1] >= text_size[1] else corner[1]


def caption_size(caption: str, font: Font) -> tuple[float, float]:
    """Return width and height of a caption with its background, in pixels."""
    x0, y0, x1, y1 = font.getbbox(caption)
    return x1 - x0 + 2 * _MARGIN, y1 - y0 + 2 * _MARGIN


def draw_caption(
    pen: ImageDraw.ImageDraw, corner: Point, caption: str, color: tuple[int, int, int], font: Font
) -> None:
    """Draw a caption on a background of the given colour with the given upper left corner."""
    left, top = round(corner[0]), round(corner[1])  # Pillow clips text at fractional positions at the upper edge
    width, height = caption_size(caption, font)
    x0, y0, _, _ = font.getbbox(caption)
    pen.rectangle((left, top, left + width, top + height), fill=color)
    font.draw(pen, (left + _MARGIN - x0, top + _MARGIN - y0), caption, text_color_on(color))


def text_color_on(color: tuple[int, int, int]) -> str:
    """Return "black" or "white", whichever is legible on a background."""
    return "black" if 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2] > 140 else "white"


def _candidate_places(
    box: Sequence[float], alternatives: Sequence[str], font: Font, size: tuple[int, int]
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield captions and places (xyxy) inside the image, best first: above, below, left or right of the box, or in it."""
    x0, y0, x1, y1 = box
    for text in filter(None, alternatives):
        width, height = caption_size(text, font)
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


def _intersection(place: np.ndarray, boxes: Float[np.ndarray, "N 4"]) -> np.ndarray:
    """Area that a place has in common with each box."""
    low, high = np.maximum(place[:2], boxes[:, :2]), np.minimum(place[2:], boxes[:, 2:])
    return np.asarray((high - low).clip(min=0).prod(1))
