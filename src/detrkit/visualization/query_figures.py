"""Figures of queries: distributions of the edges of a box, and the cells that queries are from.

Boxes are xyxy in pixels of the image.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Rectangle
from PIL.Image import Image

from detrkit.visualization.draw import level_color
from detrkit.visualization.figures import (
    COLUMN_WIDTH,
    PAGE_WIDTH,
    REFERENCE_COLOR,
    SMALL,
    DrawnBox,
    hex_color,
    show_box,
    show_image,
)

_BAR_COLOR = "#2f62c9"
_EXPECTATION_COLOR = "#d62728"


@dataclass(frozen=True)
class DistributionRow:
    """Distributions of four edges after one layer.

    Attributes:
        name: of the layer.
        note: below the name.
        probabilities: of every bin.
        moved: expected distance of every edge in pixels.
    """

    name: str
    note: str
    probabilities: Float[np.ndarray, "4 N"]
    moved: tuple[float, ...]


def draw_distributions(
    image: Image,
    boxes: Sequence[DrawnBox],
    title: str,
    edge_names: Sequence[str],
    distances: Float[np.ndarray, "4 N"],
    rows: Sequence[DistributionRow],
) -> Figure:
    """Draw an image with boxes next to the distributions of edges: a row per layer, a column per edge.

    Bins have equal widths, although their distances are finest around zero; the red line is at the expected distance.

    Args:
        image: the image.
        boxes: on the image.
        title: of the image.
        edge_names: names of the edges.
        distances: of every bin, in pixels, ascending.
        rows: of the layers.
    """
    engine = ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.03, wspace=0.03, hspace=0.02)
    figure = Figure(figsize=(PAGE_WIDTH, max(1.7, 0.55 * len(rows) + 0.75)), layout=engine)
    grid = figure.add_gridspec(len(rows), 5, width_ratios=(1.5, 1, 1, 1, 1))
    left = figure.add_subplot(grid[:, 0])
    show_image(left, image, title)
    left.set_anchor("N")
    for box in boxes:
        show_box(left, box)
    highest = max(float(row.probabilities.max()) for row in rows)
    for number, row in enumerate(rows):
        for edge, name in enumerate(edge_names):
            axes = figure.add_subplot(grid[number, edge + 1])
            _show_distribution(axes, distances[edge], row.probabilities[edge], row.moved[edge])
            axes.set(ylim=(0, 1.35 * highest), yticks=[])
            if number == 0:
                axes.set_title(name)
            if edge == 0:
                label = f"{row.name}\n{row.note}"
                axes.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=SMALL, multialignment="right")
            if number < len(rows) - 1:
                axes.set_xticklabels([])
    note = f"distance from the first layer's box (dashed) in px, outwards positive; the highest bar is {highest:.2f}"
    figure.supxlabel(note, fontsize=SMALL)
    return figure


def _show_distribution(
    axes: Axes, distances: Float[np.ndarray, "N"], probabilities: Float[np.ndarray, "N"], moved: float
) -> None:
    bins = np.arange(len(distances))
    axes.bar(bins, probabilities, width=1.0, color=_BAR_COLOR, linewidth=0)
    middle = len(bins) // 2
    axes.axvline(middle, color="#8a93a5", linewidth=0.5)
    axes.axvline(float(np.interp(moved, distances, bins)), color=_EXPECTATION_COLOR, linewidth=0.8)
    axes.text(
        0.03,
        0.94,
        f"{signed(moved, 1)} px",
        transform=axes.transAxes,
        fontsize=SMALL,
        va="top",
        color=_EXPECTATION_COLOR,
    )
    axes.set_xlim(-0.5, len(bins) - 0.5)
    shown = [0, middle, len(bins) - 1]
    axes.set_xticks(shown, [f"{distances[bin]:.0f}" for bin in shown])
    axes.tick_params(length=2, pad=1.5)
    sides: tuple[Literal["left", "center", "right"], ...] = ("left", "center", "right")
    for label, side in zip(axes.get_xticklabels(), sides, strict=True):
        label.set_horizontalalignment(side)


def signed(value: float, digits: int) -> str:
    """Format a number with its sign; zero has a plus."""
    return f"{round(value, digits) + 0.0:+.{digits}f}"


@dataclass(frozen=True)
class Cell:
    """A cell that a query is from.

    Attributes:
        area: of the cell.
        score: of the cell, 0 to 1.
        caption: of a highlighted cell; empty for the others.
        color: of a highlighted cell.
        anchor: of a highlighted cell, or None; dashed.
        box: predicted for a highlighted cell, or None.
    """

    area: tuple[float, ...]
    score: float
    caption: str
    color: tuple[int, int, int]
    anchor: tuple[float, ...] | None
    box: tuple[float, ...] | None


@dataclass(frozen=True)
class LevelCells:
    """Cells of one feature map, and the title of its panel."""

    title: str
    cells: tuple[Cell, ...]


def draw_selection(image: Image, levels: Sequence[LevelCells], boxes: Sequence[DrawnBox], title: str) -> Figure:
    """Draw an image with the cells of all feature maps and the boxes of detections, followed by a panel per feature map.

    Cells are as opaque as their score is high, relative to the highest.

    Args:
        image: shown in colour in the first panel, in grey below the cells of a map.
        levels: cells of the feature maps, finest first.
        boxes: on the first panel.
        title: of the first panel.
    """
    count = 1 + len(levels)
    columns = min(count, 2 if count in (1, 2, 4) else 3)
    rows, width = math.ceil(count / columns), COLUMN_WIDTH if columns == 1 else PAGE_WIDTH
    shape = min(max(image.height / image.width, 0.25), 1.5)
    engine = ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.04, wspace=0.02, hspace=0.02)
    figure = Figure(figsize=(width, rows * (width / columns * shape + 0.26)), layout=engine)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    highest = max((cell.score for level in levels for cell in level.cells), default=0.0)
    show_image(axes[0], image, title)
    for number, level in reversed(list(enumerate(levels))):  # small cells above large ones
        _show_cells(axes[0], level.cells, level_color(number), highest)
    for box in boxes:
        show_box(axes[0], box)
    grey = image.convert("L").convert("RGB")
    for number, (one, level) in enumerate(zip(axes[1:], levels, strict=False)):
        show_image(one, grey, level.title)
        _show_cells(one, level.cells, level_color(number), highest)
        for cell in level.cells:
            _highlight(one, cell)
    for one in axes[count:]:
        one.set_axis_off()
    return figure


def _show_cells(axes: Axes, cells: Sequence[Cell], color: str, highest: float) -> None:
    if not cells:
        return
    corners = [
        [(x, y), (right, y), (right, bottom), (x, bottom)] for x, y, right, bottom in (one.area for one in cells)
    ]
    colors = [to_rgba(color, 0.15 + 0.5 * cell.score / max(highest, 1e-12)) for cell in cells]
    axes.add_collection(PolyCollection(corners, facecolors=colors, edgecolors="black", linewidths=0.3), autolim=False)


def _highlight(axes: Axes, cell: Cell) -> None:
    """Outline a cell, and draw its anchor and its box, if it has a caption."""
    if not cell.caption:
        return
    if cell.anchor is not None:
        show_box(axes, DrawnBox(cell.anchor, "", REFERENCE_COLOR, is_dashed=True))
    left, top, right, bottom = cell.area
    axes.add_patch(
        Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=hex_color(cell.color), linewidth=1.5)
    )
    show_box(axes, DrawnBox(cell.area if cell.box is None else cell.box, cell.caption, cell.color))
