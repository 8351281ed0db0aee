"""Draw boxes, masks, panoptic segments and detection errors on images.

All functions return a copy of the image. Boxes are xyxy in pixels.
"""

import colorsys
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from detrkit.structures import Detections, PanopticSegments
from detrkit.visualization.captions import above, caption_size, draw_caption, font_for, place_captions, text_color_on
from detrkit.visualization.fonts import Font, shown_width

Color = tuple[int, int, int]
_LEVEL_COLORS = ("#77ffee", "#ff8ad8", "#b6f25c", "#8fb8ff", "#ffb86b")
_CELL = 320  # pixels a side of an image on a contact sheet
_LINE = 22  # pixels for its caption
_GOLDEN_RATIO = 0.618034  # steps of it around the colour circle give neighbours different hues
_OPACITY = 0.45  # of masks
_MIN_NAMED_AREA = 0.004  # fraction of the image; smaller segments have no caption, which would cover them
_SHADES = (1.0, 0.62, 0.8, 0.45)  # brightness of the segments of one class, in turn

GROUND_TRUTH: Color = (255, 255, 255)
TRUE_POSITIVE = "true positive"
# written next to the box for each kind of error, so that the colours need not be distinguished
ERROR_CAPTIONS = {
    TRUE_POSITIVE: "",
    "localization": "localization",
    "classification": "class",
    "duplicate": "duplicate",
    "background": "background",
    "both": "class + localization",
    "missed": "missed",
}
ERROR_COLORS: dict[str, Color] = {
    TRUE_POSITIVE: (60, 200, 110),
    "localization": (250, 170, 40),
    "classification": (210, 90, 250),
    "duplicate": (60, 170, 250),
    "background": (250, 80, 70),
    "both": (250, 120, 180),
    "missed": (255, 255, 80),
}


def level_color(level: int) -> str:
    """Return the colour of a feature map, the finest is 0."""
    return _LEVEL_COLORS[level % len(_LEVEL_COLORS)]


def color_of(category_id: int) -> Color:
    """Return the colour of a category."""
    red, green, blue = colorsys.hsv_to_rgb(category_id * _GOLDEN_RATIO % 1.0, 0.85, 0.95)
    return round(255 * red), round(255 * green), round(255 * blue)


def draw_detections(
    image: Image.Image,
    detections: Detections,
    true_boxes: Sequence[Sequence[float]] = (),
    true_names: Sequence[str] = (),
) -> Image.Image:
    """Draw detections, and their masks if they have any, on the image they were detected in; best scores on top.

    Args:
        image: of any mode.
        detections: with boxes in its pixels.
        true_boxes: ground truth, drawn below the detections with dashed white lines.
        true_names: class names of the ground truth.
    """
    category_ids = detections.category_ids.tolist()
    colors = [color_of(number) for number in category_ids]
    if detections.masks is not None:
        image = draw_masks(image, detections.masks.numpy(), colors)
    scores = [f"{score:.2f}" for score in detections.scores.tolist()]
    captions = [(f"{name} {score}", score) for name, score in zip(detections.class_names, scores, strict=True)]
    num_true = len(true_boxes)
    return draw_boxes(
        image,
        [*detections.boxes.tolist(), *true_boxes],
        [*category_ids, *[0] * num_true],
        [*captions, *((name,) for name in true_names)],
        [*colors, *[GROUND_TRUTH] * num_true],
        num_dashed=num_true,
    )


def draw_boxes(
    image: Image.Image,
    boxes: Sequence[Sequence[float]],
    category_ids: Sequence[int],
    captions: Sequence[Sequence[str]],
    colors: Sequence[Color] | None = None,
    *,
    num_dashed: int = 0,
) -> Image.Image:
    """Draw boxes with captions, the first on top. Every line has a contrasting edge, so that it is visible on any image.

    Args:
        image: of any mode.
        boxes: xyxy in pixels.
        category_ids: choose the colours if none are given.
        captions: alternatives for each box, from long to short; the longest that fits is drawn.
        colors: of the boxes.
        num_dashed: the last boxes, so many, are drawn with dashed lines.
    """
    drawn = image.convert("RGB")
    pen = ImageDraw.Draw(drawn)
    colors = colors or [color_of(number) for number in category_ids]
    clipped = [_clip(box, drawn.size) for box in boxes]
    for index in reversed(range(len(boxes))):
        is_dashed = index >= len(boxes) - num_dashed
        _draw_outline(pen, clipped[index], colors[index], max(drawn.size), is_dashed=is_dashed)
    places = np.array(clipped).reshape(-1, 4)
    font = font_for(drawn.size, places)
    for placed, color in zip(place_captions(places, captions, font, drawn.size), colors, strict=True):
        if placed is not None:
            draw_caption(pen, placed[1], placed[0], color, font)
    return drawn


def _draw_outline(
    pen: ImageDraw.ImageDraw, box: tuple[float, float, float, float], color: Color, image_side: int, *, is_dashed: bool
) -> None:
    """Draw a rectangle with an edge that contrasts with its colour, or a dashed one on a line that does."""
    left, top, right, bottom = box
    # the usual line width would hide tiny objects
    usual, own = image_side / 240, min(right - left, bottom - top) / 16
    width = max(1, image_side // 1000, round(min(usual, own)))
    edge = text_color_on(color)
    if is_dashed:
        pen.rectangle(box, outline=edge, width=width)
        _draw_dashes(pen, box, color, width)
        return
    inner = 1 if own >= 1 else 0
    pen.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline=edge, width=width + 1 + inner)
    pen.rectangle(box, outline=color, width=width)


def _draw_dashes(pen: ImageDraw.ImageDraw, box: tuple[float, float, float, float], color: Color, width: int) -> None:
    """Draw dashes along the sides of a box, as long as the gaps between them."""
    left, top, right, bottom = (round(value) for value in box)
    length, inside = 4 * width + 2, width - 1
    for start in range(left, right + 1, 2 * length):
        end = min(start + length - 1, right)
        pen.rectangle((start, top, end, top + inside), fill=color)
        pen.rectangle((start, bottom - inside, end, bottom), fill=color)
    for start in range(top, bottom + 1, 2 * length):
        end = min(start + length - 1, bottom)
        pen.rectangle((left, start, left + inside, end), fill=color)
        pen.rectangle((right - inside, start, right, end), fill=color)


def draw_masks(image: Image.Image, masks: np.ndarray, colors: Sequence[Color]) -> Image.Image:
    """Draw boolean masks (N, H, W) with white outlines, the first on top."""
    ids = np.zeros(masks.shape[1:], dtype=np.int64)
    palette = np.zeros((len(masks) + 1, 3), dtype=np.uint8)
    for index in reversed(range(len(masks))):
        ids[masks[index]] = index + 1
        palette[index + 1] = colors[index]
    return _overlay(image, ids, palette)


def draw_segments(image: Image.Image, segments: PanopticSegments) -> Image.Image:
    """Draw panoptic segments with outlines and captions; things of one class have different shades of its colour."""
    ids = segments.ids.numpy()
    palette = np.zeros((int(ids.max(initial=0)) + 1, 3), dtype=np.uint8)
    counts: dict[int, int] = {}
    for segment in segments:
        number = counts[segment.category_id] = counts.get(segment.category_id, -1) + 1
        shade = _SHADES[number % len(_SHADES)]
        palette[segment.id] = [round(value * shade) for value in color_of(segment.category_id)]
    drawn = _overlay(image, ids, palette)
    for segment in segments:
        mask = ids == segment.id
        if mask.mean() >= _MIN_NAMED_AREA:
            _draw_name(drawn, f"{segment.class_name} {segment.score:.2f}", mask, tuple(palette[segment.id].tolist()))
    return drawn


def draw_errors(
    image: Image.Image,
    boxes: Sequence[Sequence[float]],
    kinds: Sequence[str],
    class_names: Sequence[str],
    scores: Sequence[float | None],
) -> Image.Image:
    """Draw detections and missed objects in the colour of their kind of error; correct ones have no caption.

    Args:
        image: of any mode.
        boxes: xyxy in pixels.
        kinds: of each box, a key of `ERROR_COLORS`.
        class_names: of each box.
        scores: of each detection; None for missed objects.
    """
    captions = []
    for kind, name, score in zip(kinds, class_names, scores, strict=True):
        words, number = ERROR_CAPTIONS[kind], "" if score is None else f" {score:.2f}"
        captions.append(() if kind == TRUE_POSITIVE else (f"{words}: {name}{number}", words))
    return draw_boxes(image, boxes, [0] * len(boxes), captions, [ERROR_COLORS[kind] for kind in kinds])


def contact_sheet(images: Sequence[tuple[Image.Image, str]]) -> Image.Image:
    """Arrange images, each from `fit_to_cell`, in a grid with their captions below."""
    columns = math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    sheet = Image.new("RGB", (columns * _CELL, rows * (_CELL + _LINE)), "white")
    pen = ImageDraw.Draw(sheet)
    font = Font(14)
    for number, (image, caption) in enumerate(images):
        left, top = number % columns * _CELL, number // columns * (_CELL + _LINE)
        sheet.paste(image, (left + (_CELL - image.width) // 2, top + (_CELL - image.height) // 2))
        font.draw(pen, (left + 6, top + _CELL + font.size), caption, "black")
    return sheet


def fit_to_cell(image: Image.Image) -> tuple[Image.Image, float]:
    """Resize an image to the cell of a contact sheet, and return the scale factor."""
    scale = (_CELL - 6) / max(image.size)
    return image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale)))), scale


def _clip(box: Sequence[float], size: tuple[int, int]) -> tuple[float, float, float, float]:
    width, height = size
    left, right = sorted(min(max(x, 0), width - 1) for x in box[0::2])
    top, bottom = sorted(min(max(y, 0), height - 1) for y in box[1::2])
    return left, top, right, bottom


def _overlay(image: Image.Image, ids: np.ndarray, palette: np.ndarray) -> Image.Image:
    """Blend the colours of ids (H, W) into an image, 0 excepted, with white lines where ids differ."""
    pixels = np.asarray(image.convert("RGB"))
    mixed = pixels * (1 - _OPACITY) + palette[ids] * _OPACITY
    drawn = Image.fromarray(np.where((ids > 0)[..., None], mixed, pixels).astype(np.uint8))
    edge = np.zeros(ids.shape, dtype=bool)
    edge[:, 1:] |= ids[:, 1:] != ids[:, :-1]
    edge[1:] |= ids[1:] != ids[:-1]
    drawn.paste((255, 255, 255), mask=Image.fromarray(edge.astype(np.uint8) * 200))
    return drawn


def _draw_name(drawn: Image.Image, caption: str, mask: np.ndarray, color: Color) -> None:
    """Draw the caption of a segment at its pixel closest to its centroid."""
    pen = ImageDraw.Draw(drawn)
    font = Font(max(10, max(drawn.size) // 45))
    rows, columns = mask.nonzero()
    nearest = np.hypot(rows - rows.mean(), columns - columns.mean()).argmin()
    corner = (float(columns[nearest]) - shown_width(caption, font) / 2, float(rows[nearest]) + 6)
    draw_caption(pen, above(corner, caption_size(caption, font), drawn.size), caption, color, font)
