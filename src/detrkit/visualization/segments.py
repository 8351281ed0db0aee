"""Panoptic segments on a photo: coloured surfaces with outlines and names."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from detrkit.structures import PanopticSegments
from detrkit.visualization.captions import above, extent_of, write_caption
from detrkit.visualization.draw import colour_of
from detrkit.visualization.mask_overlay import blend, outline

_LARGE = 0.004  # share of the photo: smaller segments get no name, which would hide them


def draw_segments(photo: Image.Image, found: PanopticSegments) -> Image.Image:
    """Colour every segment of a photo: stuff by its class, things a little apart from others of theirs."""
    ids = found.ids.numpy()
    colours = np.zeros((int(ids.max(initial=0)) + 1, 3), dtype=np.uint8)
    seen: dict[int, int] = {}
    for segment in found.segments:
        number = seen[segment.category_id] = seen.get(segment.category_id, -1) + 1
        colours[segment.id] = _shade(colour_of(segment.category_id), number)
    picture = blend(photo, colours[ids], ids > 0)
    outline(picture, ids)
    captions: list[tuple[str, np.ndarray, tuple[int, int, int]]] = [
        (f"{one.class_name} {one.score:.2f}", ids == one.id, tuple(colours[one.id].tolist()))
        for one in found.segments
        if (ids == one.id).mean() >= _LARGE
    ]
    return _write_names(picture, captions)


def _shade(colour: tuple[int, int, int], number: int) -> tuple[int, int, int]:
    """Make the second, third ... of a class darker and lighter, for neighbours to differ."""
    factor = (1.0, 0.62, 0.8, 0.45)[number % 4]
    red, green, blue = (round(value * factor) for value in colour)
    return red, green, blue


def _write_names(picture: Image.Image, captions: Sequence[tuple[str, np.ndarray, tuple[int, int, int]]]) -> Image.Image:
    """Write each name on its segment, on the pixel of it that is nearest to its middle."""
    pen = ImageDraw.Draw(picture)
    font = ImageFont.load_default(size=max(10, max(picture.size) // 45))
    for caption, mask, colour in captions:
        rows, columns = mask.nonzero()
        nearest = np.hypot(rows - rows.mean(), columns - columns.mean()).argmin()
        width = pen.textlength(caption, font=font)
        corner = (float(columns[nearest]) - width / 2, float(rows[nearest]) + 6)
        write_caption(pen, above(corner, extent_of(caption, font), picture.size), caption, colour, font)
    return picture
