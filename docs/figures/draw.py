"""Draws the figures of the concepts: `python docs/figures/draw.py` writes docs/concepts/pictures/*.svg.

Text and lines have colours that are legible on a light and on a dark page.
"""

import math
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np
from scipy.optimize import linear_sum_assignment

PLACE = Path(__file__).parents[1] / "concepts" / "pictures"
LINE, TEXT = "#8b93a3", "#7a8394"
SAME, CHANGED = "#4a5a80", "#b3541e"  # parts as in DETR, and those that a family changes; with white text
QUERY, OBJECT, GOOD = "#d2561a", "#3b78f0", "#15803d"
FONT = "font-family='system-ui, sans-serif'"

# stages of each family: (name, what it does, whether it differs from DETR)
Stage = tuple[str, str, bool]
PIPELINES: dict[str, list[Stage]] = {
    "detr": [
        ("Backbone", "ResNet: one feature map, stride 32", False),
        ("Encoder", "6 layers, every cell attends to every cell", False),
        ("Queries", "100 learned embeddings, the same for every image", False),
        ("Decoder", "6 layers, every query attends to every cell", False),
        ("Heads", "softmax with a no-object class; box from 0 to 1", False),
    ],
    "conditional-dab": [
        ("Backbone", "ResNet: one feature map, stride 32", False),
        ("Encoder", "6 layers, every cell attends to every cell", False),
        ("Queries", "300 with a reference point, or an anchor box (DAB)", True),
        ("Decoder", "content and position are compared separately", True),
        ("Heads", "sigmoid scores; box relative to the reference", True),
    ],
    "deformable": [
        ("Backbone", "ResNet: four feature maps, strides 8 to 64", True),
        ("Encoder", "6 layers, every cell samples 4 points per map", True),
        ("Queries", "300 with a reference point, or selected cells", True),
        ("Decoder", "6 layers, every query samples 4 points per map", True),
        ("Heads", "sigmoid scores; box relative to the reference", True),
    ],
    "rtdetr": [
        ("Backbone", "ResNet-vd: three feature maps, strides 8 to 32", True),
        ("Encoder", "attention on the coarsest map, then convolutions", True),
        ("Queries", "the 300 cells with the highest class scores", True),
        ("Decoder", "6 layers or fewer, 4 points per map", True),
        ("Heads", "sigmoid scores that follow the IoU; refined boxes", True),
    ],
    "dfine": [
        ("Backbone", "HGNetV2: two or three feature maps", True),
        ("Encoder", "attention on the coarsest map, then convolutions", True),
        ("Queries", "the 300 cells with the highest class scores", True),
        ("Decoder", "refines a distribution for each edge of the box", True),
        ("Heads", "sigmoid scores; box from the four distributions", True),
    ],
    "deimv2": [
        ("Backbone", "HGNetV2 up to stride 16 or 32", True),
        ("Encoder", "convolutions that add the maps", True),
        ("Queries", "the 100 to 300 cells with the highest scores", True),
        ("Decoder", "as D-FINE; RMS norms, SwiGLU, one position", True),
        ("Heads", "sigmoid scores; box from the four distributions", True),
    ],
    "rfdetr": [
        ("Backbone", "ViT: attention in windows, or over all patches", True),
        ("Encoder", "none: a projector joins features of several blocks", True),
        ("Queries", "boxes of the best cells, learned content", True),
        ("Decoder", "2 to 6 layers, all around the selected boxes", True),
        ("Heads", "sigmoid scores that follow the IoU; relative boxes", True),
    ],
    "detrkit": [
        ("Backbone", "small ResNet or any timm model, stride 8 and up", True),
        ("Encoder", "none, or one layer with sampling points", True),
        ("Queries", "the 50 or 100 cells with the highest scores", True),
        ("Decoder", "3 layers with sampling points", True),
        ("Heads", "sigmoid scores that follow the IoU; refined boxes", True),
    ],
}


def main() -> None:
    """Write all figures."""
    PLACE.mkdir(parents=True, exist_ok=True)
    for name, content in figures().items():
        (PLACE / name).write_text(content, encoding="utf-8")


def figures() -> dict[str, str]:
    """Return all figures as SVG, by file name."""
    drawn = {f"{name}.svg": pipeline(stages) for name, stages in PIPELINES.items()}
    return {**drawn, "attention.svg": attention(), "matching.svg": matching(), "duplicates.svg": duplicates()}


# --- elements


def svg(width: float, height: float, parts: Sequence[str], title: str) -> str:
    """Return a document."""
    head = f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width:g} {height:g}' role='img' {FONT}>"
    return "\n".join([head, f"<title>{escape(title)}</title>", *parts, "</svg>"]) + "\n"


def text(x: float, y: float, content: str, size: float = 14, *, color: str = TEXT, anchor: str = "start") -> str:
    """Return a line of text; bold where it is white on a box."""
    weight = " font-weight='600'" if color == "#fff" and size > 13 else ""
    return (
        f"<text x='{x:g}' y='{y:g}' font-size='{size:g}' fill='{color}' text-anchor='{anchor}'{weight}>"
        f"{escape(content)}</text>"
    )


def box(
    x: float, y: float, width: float, height: float, *, fill: str = "none", line: str = LINE, dash: str = ""
) -> str:
    """Return a rectangle."""
    dashes = f" stroke-dasharray='{dash}'" if dash else ""
    return (
        f"<rect x='{x:g}' y='{y:g}' width='{width:g}' height='{height:g}' rx='3' fill='{fill}' stroke='{line}' "
        f"stroke-width='1.5'{dashes}/>"
    )


def arrow(x: float, y: float, length: float) -> str:
    """Return an arrow downwards."""
    tip = y + length
    return (
        f"<path d='M{x:g} {y:g}V{tip:g}M{x - 4:g} {tip - 5:g}L{x:g} {tip:g}L{x + 4:g} {tip - 5:g}' fill='none' "
        f"stroke='{LINE}' stroke-width='1.5'/>"
    )


def dot(x: float, y: float, radius: float, color: str) -> str:
    """Return a filled circle with a white edge."""
    return f"<circle cx='{x:.1f}' cy='{y:.1f}' r='{radius:.1f}' fill='{color}' stroke='#fff' stroke-width='0.8'/>"


# --- figures


def pipeline(stages: Sequence[Stage]) -> str:
    """Draw the stages of a model from the image to its detections."""
    width, height, gap = 400.0, 46.0, 18.0
    parts = [text(width / 2, 14, "image", anchor="middle"), arrow(width / 2, 20, gap)]
    top = 42.0
    for name, what, changed in stages:
        parts.append(box(1, top, width - 2, height, fill=CHANGED if changed else SAME, line="none"))
        parts.append(text(14, top + 19, name, 15, color="#fff"))
        parts.append(text(14, top + 37, what, 13, color="#fff"))
        parts.append(arrow(width / 2, top + height + 2, gap - 4))
        top += height + gap
    parts.append(text(width / 2, top + 14, "one class and one box per query", anchor="middle"))
    top += 38
    parts += [box(1, top - 11, 13, 13, fill=SAME, line="none"), text(20, top, "as in DETR", 12.5)]
    parts += [box(120, top - 11, 13, 13, fill=CHANGED, line="none"), text(139, top, "different", 12.5)]
    return svg(width, top + 8, parts, "Stages of the model")


def attention() -> str:
    """Draw where one query looks in the decoders of the families, in panels."""
    panels = [
        ("DETR", "all cells", _dense),
        ("Conditional DETR", "relative to a point", _conditional),
        ("DAB-DETR", "scaled by an anchor", _anchor),
        ("Deformable DETR", "points around a point", _points),
        ("RT-DETR", "points in its box", _points_in_box),
        ("D-FINE", "edges move, too", _distributions),
    ]
    parts, side = [], 126.0
    for number, (name, what, draw) in enumerate(panels):
        left, top = 2 + (number % 3) * 138, 36 + (number // 3) * 196
        parts += [text(left, top - 20, name, 13.5, color=QUERY), text(left, top - 5, what, 11.5)]
        parts += [f"<g transform='translate({left:g} {top:g})'>", *draw(side), box(0, 0, side, side), "</g>"]
    return svg(406, 370, parts, "Where one query looks")


_OBJECT = (0.34, 0.28, 0.42, 0.52)  # left, top, width, height of the object in the panels


def _object(side: float) -> str:
    left, top, width, height = (value * side for value in _OBJECT)
    return box(left, top, width, height, line=OBJECT)


def _cells(side: float, weight: "np.ndarray") -> list[str]:
    cell = side / len(weight)
    return [
        f"<rect x='{column * cell:.1f}' y='{row * cell:.1f}' width='{cell:.1f}' height='{cell:.1f}' fill='{QUERY}' "
        f"fill-opacity='{weight[row, column]:.2f}'/>"
        for row in range(len(weight))
        for column in range(len(weight))
        if weight[row, column] >= 0.01
    ]


def _grid() -> tuple["np.ndarray", "np.ndarray"]:
    places = (np.arange(7) + 0.5) / 7
    return np.meshgrid(places, places)


def _center() -> tuple[float, float]:
    left, top, width, height = _OBJECT
    return left + width / 2, top + height / 2


def _dense(side: float) -> list[str]:
    x, y = _grid()
    left, top, width, height = _OBJECT
    inside = (x > left) & (x < left + width) & (y > top) & (y < top + height)
    near = np.exp(-12 * ((x - _center()[0]) ** 2 + (y - _center()[1]) ** 2))
    return [*_cells(side, 0.08 + 0.35 * inside + 0.25 * near), _object(side)]


def _conditional(side: float) -> list[str]:
    x, y = _grid()
    bands = 0.5 * np.exp(-60 * (x - _OBJECT[0]) ** 2) + 0.5 * np.exp(-60 * (y - _OBJECT[1]) ** 2)
    return [*_cells(side, 0.7 * bands), _object(side), *_cross(side)]


def _anchor(side: float) -> list[str]:
    x, y = _grid()
    (center_x, center_y), (_, _, width, height) = _center(), _OBJECT
    weight = np.exp(-((2 * (x - center_x) / width) ** 2 + (2 * (y - center_y) / height) ** 2))
    anchor = box(0.3 * side, 0.25 * side, 0.5 * side, 0.58 * side, line=QUERY, dash="4 3")
    return [*_cells(side, 0.75 * weight), _object(side), anchor]


def _cross(side: float) -> list[str]:
    x, y = (value * side for value in _center())
    return [f"<path d='M{x - 5:.1f} {y:.1f}h10M{x:.1f} {y - 5:.1f}v10' stroke='{QUERY}' stroke-width='2'/>"]


def _points(side: float) -> list[str]:
    center_x, center_y = _center()
    drawn = [
        dot(
            side * (center_x + radius * math.cos(angle)),
            side * (center_y + radius * math.sin(angle)),
            2 + 2.4 * radius / 0.34,
            color,
        )
        for radius, color, shift in ((0.11, GOOD, 0.2), (0.2, "#7c3aed", 0.9), (0.3, "#0891b2", 0.4))
        for angle in (shift + quarter * math.pi / 2 for quarter in range(4))
    ]
    return [_object(side), *_cross(side), *drawn]


def _points_in_box(side: float) -> list[str]:
    left, top, width, height = 0.3, 0.25, 0.5, 0.58
    places = [(0.05, 0.5), (0.95, 0.45), (0.5, 0.03), (0.55, 0.97), (0.3, 0.3), (0.7, 0.65), (0.5, 0.5), (0.2, 0.8)]
    colors = (GOOD, "#7c3aed", "#0891b2")
    drawn = [
        dot(side * (left + width * x), side * (top + height * y), 3.4, colors[number % 3])
        for number, (x, y) in enumerate(places)
    ]
    so_far = box(left * side, top * side, width * side, height * side, line=QUERY, dash="4 3")
    return [_object(side), so_far, *drawn]


def _distributions(side: float) -> list[str]:
    left, top, width, height = 0.3, 0.25, 0.5, 0.58
    edges = [(left, 0.04, True), (left + width, -0.04, True), (top, 0.03, False), (top + height, -0.03, False)]
    parts = [_object(side), box(left * side, top * side, width * side, height * side, line=QUERY, dash="4 3")]
    for place, shift, vertical in edges:
        along = np.linspace(-0.13, 0.13, 27)
        height_of = 0.13 * np.exp(-((along - shift) ** 2) / 0.0014)
        across = (top + height / 2) if vertical else (left + width / 2)
        pairs = [(place + offset, across - value) for offset, value in zip(along, height_of, strict=True)]
        points = [(x, y) if vertical else (y, x) for x, y in pairs]
        line = " ".join(f"{x * side:.1f},{y * side:.1f}" for x, y in points)
        parts.append(
            f"<polyline points='{line}' fill='{QUERY}' fill-opacity='0.35' stroke='{QUERY}' stroke-width='1.4'/>"
        )
    return parts


# boxes as (center x, center y, width, height); also in docs/concepts/matching.md
OBJECT_BOXES = np.array([[0.25, 0.35, 0.30, 0.40], [0.72, 0.62, 0.36, 0.44]])
OBJECT_CLASSES = ["cat", "dog"]
QUERY_BOXES = np.array(
    [[0.28, 0.38, 0.30, 0.44], [0.22, 0.33, 0.26, 0.34], [0.75, 0.60, 0.34, 0.42], [0.55, 0.20, 0.20, 0.20]]
)
QUERY_SCORES = np.array([[0.80, 0.10], [0.60, 0.20], [0.10, 0.70], [0.05, 0.05]])  # of cat and dog


def corners(boxes: "np.ndarray") -> "np.ndarray":
    """Return left, top, right, bottom of boxes."""
    return np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], axis=1)


def costs() -> "np.ndarray":
    """Return the matching costs of DETR: minus the probability, 5 times L1, minus 2 times the generalised IoU."""
    l1 = np.abs(QUERY_BOXES[:, None] - OBJECT_BOXES[None]).sum(-1)
    first, second = corners(QUERY_BOXES)[:, None], corners(OBJECT_BOXES)[None]
    overlap = np.clip(
        np.minimum(first[..., 2:], second[..., 2:]) - np.maximum(first[..., :2], second[..., :2]), 0, None
    )
    hull = np.maximum(first[..., 2:], second[..., 2:]) - np.minimum(first[..., :2], second[..., :2])
    areas = [(one[..., 2:] - one[..., :2]).prod(-1) for one in (first, second)]
    shared = overlap.prod(-1)
    union = areas[0] + areas[1] - shared
    giou = shared / union - (hull.prod(-1) - union) / hull.prod(-1)
    return -QUERY_SCORES + 5 * l1 - 2 * giou


def matching() -> str:
    """Draw four queries, two objects, the matrix of their costs, and the matching."""
    side, parts = 190.0, []
    parts.append(box(1, 1, side, side))
    for class_name, one in zip(OBJECT_CLASSES, corners(OBJECT_BOXES) * side, strict=True):
        parts.append(box(one[0], one[1], one[2] - one[0], one[3] - one[1], line=OBJECT))
        parts.append(
            text((one[0] + one[2]) / 2, (one[1] + one[3]) / 2 + 5, class_name, 13, color=OBJECT, anchor="middle")
        )
    for number, one in enumerate(corners(QUERY_BOXES) * side):
        parts.append(box(one[0], one[1], one[2] - one[0], one[3] - one[1], line=QUERY, dash="4 3"))
        parts.append(text(one[2] + 3, one[3] - 1, str(number), 12.5, color=QUERY))
    matrix = costs()
    matched = set(zip(*(list(map(int, one)) for one in linear_sum_assignment(matrix)), strict=True))
    left, top, cell = 250.0, 34.0, 38.0
    for column, class_name in enumerate(OBJECT_CLASSES):
        parts.append(text(left + (column + 0.5) * 70, top - 8, class_name, 13, color=OBJECT, anchor="middle"))
    for row in range(len(QUERY_BOXES)):
        parts.append(text(left - 6, top + (row + 0.62) * cell, f"{row}", 13, color=QUERY, anchor="end"))
        for column in range(len(OBJECT_BOXES)):
            is_matched = (row, column) in matched
            parts.append(
                box(left + column * 70, top + row * cell, 66, cell - 4, fill=GOOD if is_matched else "none", line=LINE)
            )
            color = "#fff" if is_matched else TEXT
            value = f"{matrix[row, column]:.2f}".replace("-", "\u2212")
            parts.append(
                text(left + column * 70 + 33, top + (row + 0.58) * cell, value, 14, color=color, anchor="middle")
            )
    return svg(400, 196, parts, "Four queries, two objects, and the costs of matching them")


def duplicates() -> str:
    """Draw what the losses teach four queries: two objects, two times no object."""
    rows = [
        (0, "cat", "class and box"),
        (1, "no object", "class only"),
        (2, "dog", "class and box"),
        (3, "no object", "class only"),
    ]
    parts = []
    for number, target, loss in rows:
        top = 4 + number * 32
        parts.append(box(1, top, 80, 26, fill=QUERY, line="none"))
        parts.append(text(41, top + 18, f"query {number}", 13, color="#fff", anchor="middle"))
        parts.append(f"<path d='M88 {top + 13}h36m-6 -4l6 4l-6 4' fill='none' stroke='{LINE}' stroke-width='1.5'/>")
        fill = SAME if target == "no object" else OBJECT
        parts.append(box(132, top, 110, 26, fill=fill, line="none"))
        parts.append(text(187, top + 18, target, 13, color="#fff", anchor="middle"))
        parts.append(text(256, top + 18, loss, 13))
    return svg(400, 134, parts, "Targets of four queries")


if __name__ == "__main__":
    main()
