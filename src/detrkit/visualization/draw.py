"""Boxes with names and scores on a photo; several photos on a sheet."""

import colorsys
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from detrkit.structures import Detections
from detrkit.visualization.captions import font_for, place_captions, write_caption
from detrkit.visualization.mask_overlay import draw_masks

_CELL = 320  # pixels a side of a photo on a contact sheet
_LINE = 22  # pixels for its caption
_GOLDEN_RATIO = 0.618034  # steps of it round the colour circle keep neighbours apart


def colour_of(label: int) -> tuple[int, int, int]:
    """A bright colour for a category, always the same; white for -1."""
    if label < 0:
        return 255, 255, 255
    red, green, blue = colorsys.hsv_to_rgb(label * _GOLDEN_RATIO % 1.0, 0.85, 0.95)
    return round(255 * red), round(255 * green), round(255 * blue)


def draw_detections(photo: Image.Image, detections: Detections) -> Image.Image:
    """Draw detections, with their masks if they have any, on a copy of the photo they were found in, the best on top."""
    masks = detections.masks
    if masks is not None:
        photo = draw_masks(photo, masks.numpy(), [colour_of(one) for one in detections.category_ids.tolist()])
    scores = [f"{score:.2f}" for score in detections.scores.tolist()]
    captions = [(f"{name} {score}", score) for name, score in zip(detections.class_names, scores, strict=True)]
    return draw_boxes(photo, detections.boxes.tolist(), detections.category_ids.tolist(), captions)


def draw_boxes(
    photo: Image.Image,
    boxes: Sequence[Sequence[float]],
    labels: Sequence[int],
    captions: Sequence[Sequence[str]],
    colours: Sequence[tuple[int, int, int]] | None = None,
) -> Image.Image:
    """Draw boxes with captions on a copy of a photo, the first on top.

    Args:
        photo: of any mode.
        boxes: xyxy in pixels.
        labels: choose the colours, where none are given; -1 is drawn with a thin line.
        captions: of each box, from long to short: the longest is written for which there is room, or else none.
        colours: of the boxes.
    """
    picture = photo.convert("RGB")
    pen = ImageDraw.Draw(picture)
    colours = colours or [colour_of(label) for label in labels]
    cut = [_inside(box, picture.size) for box in boxes]
    for (left, top, right, bottom), label, colour in reversed(list(zip(cut, labels, colours, strict=True))):
        # a line of usual width would hide what is tiny
        usual, own = max(picture.size) / 240, min(right - left, bottom - top) / 16
        thickness = max(1, max(picture.size) // 1000, round(min(usual, own)))
        pen.rectangle((left, top, right, bottom), outline=colour, width=thickness if label >= 0 else 1)
    places = np.array(cut).reshape(-1, 4)
    font = font_for(picture.size, places)
    placed = place_captions(places, captions, font, picture.size)
    for found, colour in zip(placed, colours, strict=True):
        if found is not None:
            write_caption(pen, found[1], found[0], colour, font)
    return picture


def _inside(box: Sequence[float], size: tuple[int, int]) -> tuple[float, float, float, float]:
    width, height = size
    left, right = sorted(min(max(x, 0), width - 1) for x in box[0::2])
    top, bottom = sorted(min(max(y, 0), height - 1) for y in box[1::2])
    return left, top, right, bottom


def contact_sheet(pictures: Sequence[tuple[Image.Image, str]]) -> Image.Image:
    """Lay photos out in a grid, each `fitted` and with its caption below."""
    columns = math.ceil(math.sqrt(len(pictures)))
    rows = math.ceil(len(pictures) / columns)
    sheet = Image.new("RGB", (columns * _CELL, rows * (_CELL + _LINE)), "white")
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=14)
    for number, (picture, caption) in enumerate(pictures):
        left, top = number % columns * _CELL, number // columns * (_CELL + _LINE)
        sheet.paste(picture, (left + (_CELL - picture.width) // 2, top + (_CELL - picture.height) // 2))
        pen.text((left + 6, top + _CELL), caption, fill="black", font=font)
    return sheet


def fitted(photo: Image.Image) -> tuple[Image.Image, float]:
    """Make a photo as large as its place on a contact sheet; tell by which factor."""
    scale = (_CELL - 6) / max(photo.size)
    return photo.resize((max(1, round(photo.width * scale)), max(1, round(photo.height * scale)))), scale
