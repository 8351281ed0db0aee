"""Figures for papers: legible in print at one column (3.35 in) or two (6.9 in), as SVG, PDF or PNG.

Boxes are xyxy in pixels of the image.
"""

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle
from PIL.Image import Image
from torch import Tensor

from detrkit._internal.files import atomic_write
from detrkit._internal.provenance import MAKER
from detrkit.visualization.captions import text_color_on
from detrkit.visualization.draw import color_of, level_color
from detrkit.visualization.figure_text import figure_text, font_families

COLUMN_WIDTH = 3.35  # inches, of a paper with two columns
PAGE_WIDTH = 6.9
REFERENCE_COLOR = (68, 204, 255)  # of boxes that predictions start from
SMALL = 7.0  # points: the smallest size that is legible in print
_CAPTION = 8.0
_SMALL_IMAGE = 400  # pixels a side
_MAX_TITLE = 48  # letters, of a panel
_MAX_HEADING = 100  # of a page's width
_STYLE: dict[Any, Any] = {
    "font.size": _CAPTION,
    "axes.titlesize": _CAPTION,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "axes.linewidth": 0.5,
    "svg.fonttype": "path",  # text as paths: no fonts needed
    "svg.hashsalt": "detrkit",  # deterministic ids
    "pdf.fonttype": 42,  # TrueType, as publishers ask for
    "savefig.dpi": 300,
}


@dataclass(frozen=True)
class Dots:
    """Sampling points of a query.

    Attributes:
        values: (x, y, weight) of every point; larger weights are drawn larger.
        levels: index of the feature map of every point, which gives its color.
        reference: (x, y) of the point that they are offsets from; a cross.
        reference_box: xyxy of the box that they are offsets from; dashed. None if the reference is a point.
    """

    values: Float[Tensor, "K 3"]
    levels: tuple[int, ...]
    reference: tuple[float, ...]
    reference_box: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Panel:
    """An image with a heat map over it.

    Attributes:
        map: (h, w), drawn from 0 to its maximum.
        title: above the image.
        color: of box and point.
        box: xyxy in pixels, or None.
        point: x and y of a marked point in pixels, or None.
        dots: sampling points, or None.
        view: xyxy in pixels of the part of the image to show; None for the whole image.
    """

    map: Float[Tensor, "h w"]
    title: str
    color: tuple[int, int, int]
    box: tuple[float, ...] | None = None
    point: tuple[float, float] | None = None
    dots: Dots | None = None
    view: tuple[float, ...] | None = None


@dataclass(frozen=True)
class DrawnBox:
    """A box with a caption."""

    box: tuple[float, ...]
    caption: str
    color: tuple[int, int, int]
    is_dashed: bool = False


@contextmanager
def print_style() -> Iterator[None]:
    """Context manager that sets matplotlib's style for print."""
    with matplotlib.rc_context(_STYLE):
        yield


def point_color(number: int) -> tuple[int, int, int]:
    """Return the colour of the marked point with this number."""
    return color_of(number)


def draw_panels(
    image: Image,
    map_size: tuple[float, float],
    panels: Sequence[Panel],
    boxes: Sequence[DrawnBox],
    title: str,
    level_names: Sequence[str] = (),
) -> Figure:
    """Draw an image with boxes and marked points, followed by a panel per heat map.

    Args:
        image: shown in colour in the first panel, in grey below the maps.
        map_size: (height, width) in pixels that the maps cover; cells may reach beyond the image.
        panels: the maps.
        boxes: on the first panel.
        title: of the first panel.
        level_names: names of the feature maps, for the legend of sampling points.
    """
    count = 1 + len(panels)
    columns = 2 if count in (1, 2, 4) else 3 if count <= 6 else 4
    rows = math.ceil(count / columns)
    width = COLUMN_WIDTH if columns <= 2 else PAGE_WIDTH
    side = width / columns
    shape = min(max(image.height / image.width, 0.25), 2.5)
    engine = ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02, wspace=0.02, hspace=0.02)
    has_legend = len(level_names) > 1 and any(panel.dots is not None for panel in panels)
    legend_rows = math.ceil(len(level_names) * 1.1 / width) if has_legend else 0
    figure = Figure(figsize=(width, rows * (side * shape + 0.22) + 0.17 * legend_rows), layout=engine)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    show_image(axes[0], image, title)
    for box in boxes:
        show_box(axes[0], box)
    for panel in panels:
        if panel.point is not None:
            _mark(axes[0], panel.point, panel.color)
    grey = image.convert("L").convert("RGB")
    for one, panel in zip(axes[1:], panels, strict=False):
        _show_panel(one, grey, map_size, panel)
    for one in axes[count:]:
        one.set_axis_off()
    if has_legend:
        add_level_legend(figure, level_names, math.ceil(len(level_names) / legend_rows))
    return figure


def add_level_legend(figure: Figure, names: Sequence[str], columns: int) -> None:
    """Add the colors of the feature maps below a figure with constrained layout."""
    handles = [
        Line2D([], [], linestyle="", marker="o", markersize=4, markerfacecolor=level_color(level), markeredgecolor="black",
               markeredgewidth=0.4, label=name)
        for level, name in enumerate(names)
    ]  # fmt: skip
    figure.legend(
        handles=handles, loc="outside lower center", ncols=columns, fontsize=SMALL, frameon=False, borderpad=0,
        handletextpad=0.1, columnspacing=1, labelspacing=0.2,
    )  # fmt: skip


def draw_matching(
    image: Image, boxes: Sequence[DrawnBox], costs: np.ndarray, rows: Sequence[str], columns: Sequence[str], title: str
) -> Figure:
    """Draw an image with objects and their matched queries next to the matrix of matching costs.

    Args:
        image: the image.
        boxes: dashed for ground truth.
        costs: (rows, columns); the first min(rows, columns) rows are the queries matched to the objects in order.
        rows: names of the queries.
        columns: names of the objects.
        title: of the matrix.
    """
    height = max(2.2, 0.17 * len(rows) + 0.8)
    figure = Figure(figsize=(PAGE_WIDTH, min(height, 8)), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.25))
    show_image(left, image, "objects (dashed) and matched queries")
    for box in boxes:
        show_box(left, box)
    cell_colors = right.imshow(costs, cmap="Blues_r", aspect="auto").to_rgba(costs)
    for (row, column), cost in np.ndenumerate(costs):
        red, green, blue = (round(255 * part) for part in cell_colors[row, column, :3])
        right.text(
            column,
            row,
            f"{cost:.1f}",
            ha="center",
            va="center",
            fontsize=SMALL,
            color=text_color_on((red, green, blue)),
        )
        if row == column:
            right.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor="#d62728", linewidth=1.5))
    names, families = [figure_text(name) for name in columns], font_families("".join(columns))
    right.set_xticks(range(len(names)), names, rotation=30, ha="right", rotation_mode="anchor", family=families)
    right.set_yticks(range(len(rows)), [figure_text(row) for row in rows])
    right.tick_params(length=0)
    right.set_title(title)
    return figure


@dataclass(frozen=True)
class StageBox:
    """A stage of a model in `draw_stages`: name, lines of shapes, and its cell in a grid of two rows."""

    name: str
    lines: tuple[str, ...]
    row: int
    column: int


def draw_stages(boxes: Sequence[StageBox], arrows: Sequence[tuple[str, str]], title: str) -> Figure:
    """Draw the stages of a model with the shapes of their outputs, and arrows (start, end) between them."""
    columns = 1 + max(box.column for box in boxes)
    tallest = max(len(box.lines) for box in boxes)
    step, tall, wide = 0.62 + 0.14 * tallest, 0.3 + 0.14 * tallest, PAGE_WIDTH / columns
    rows = 1 + max(box.row for box in boxes)
    figure = Figure(figsize=(PAGE_WIDTH, rows * step + 0.2))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, PAGE_WIDTH), ylim=(rows * step, -0.2))
    axes.set_axis_off()
    heading = figure_text(title, _MAX_HEADING)
    axes.text(0.06, -0.05, heading, fontsize=_CAPTION, family=font_families(title), fontweight="bold", va="center")
    middle = {box.name: ((box.column + 0.5) * wide, box.row * step + 0.05 + tall / 2) for box in boxes}
    for box in boxes:
        x, y = middle[box.name]
        corner = (x - wide / 2 + 0.1, y - tall / 2)
        axes.add_patch(
            FancyBboxPatch(
                corner, wide - 0.2, tall, boxstyle="round,pad=0,rounding_size=0.05", facecolor="#eef3fb",
                edgecolor="#2f62c9", linewidth=0.7,
            )
        )  # fmt: skip
        axes.text(x, corner[1] + 0.13, box.name, fontsize=SMALL, fontweight="bold", ha="center", va="center")
        for number, line in enumerate(box.lines):
            axes.text(x, corner[1] + 0.29 + 0.14 * number, line, fontsize=SMALL, ha="center", va="center")
    for start, end in arrows:
        axes.add_patch(_arrow(middle[start], middle[end], (wide - 0.2, tall)))
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Save a figure atomically, in the format of the suffix (svg, pdf, png); deterministic."""
    format = path.suffix.lower().lstrip(".")
    metadata = {
        "svg": {"Date": None, "Creator": MAKER},
        "pdf": {"CreationDate": None, "Creator": MAKER},
        "png": {"Software": MAKER},
    }[format]
    with atomic_write(path) as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # logged by `fonts_for`
        figure.savefig(temporary, format=format, metadata=metadata)


def _arrow(start: tuple[float, float], end: tuple[float, float], size: tuple[float, float]) -> FancyArrowPatch:
    """Arrow between the edges of two boxes: horizontal within a row, vertical between rows."""
    (x0, y0), (x1, y1) = start, end
    if abs(y1 - y0) < 0.01:
        side = math.copysign(size[0] / 2, x1 - x0)
        ends = (x0 + side, y0), (x1 - side, y1)
    else:
        down = math.copysign(size[1] / 2, y1 - y0)
        ends = (x0, y0 + down), (x1, y1 - down)
    return FancyArrowPatch(
        *ends, arrowstyle="-|>", mutation_scale=7, linewidth=0.8, color="#1d2433", shrinkA=0, shrinkB=0
    )


def show_image(axes: Axes, image: Image, title: str) -> None:
    """Show an image without ticks; coordinates are its pixels."""
    # vector formats embed a small image as it is, a large one resampled to the resolution of print
    interpolation = "none" if max(image.size) <= _SMALL_IMAGE else "antialiased"
    axes.imshow(image, extent=(0, image.width, image.height, 0), interpolation=interpolation)
    axes.set(xlim=(0, image.width), ylim=(image.height, 0), xticks=[], yticks=[])
    axes.set_title(figure_text(title, _MAX_TITLE), family=font_families(title))


def _show_panel(axes: Axes, grey: Image, map_size: tuple[float, float], panel: Panel) -> None:
    show_image(axes, grey, panel.title)
    values = panel.map.numpy()
    share = values / max(float(values.max()), 1e-12)
    overlay = matplotlib.colormaps["inferno"](share)
    overlay[..., 3] = 0.15 + 0.75 * np.sqrt(share)
    axes.imshow(overlay, extent=(0, map_size[1], map_size[0], 0), interpolation="none")
    axes.set(xlim=(0, grey.width), ylim=(grey.height, 0))
    if panel.box is not None:
        show_box(axes, DrawnBox(panel.box, "", panel.color))
    if panel.dots is not None:
        _show_dots(axes, panel.dots)
    if panel.point is not None:
        _mark(axes, panel.point, panel.color)
    if panel.view is not None:
        left, top, right, bottom = panel.view
        axes.set(xlim=(left, right), ylim=(bottom, top))


def _show_dots(axes: Axes, dots: Dots) -> None:
    if dots.reference_box is not None:
        show_box(axes, DrawnBox(dots.reference_box, "", REFERENCE_COLOR, is_dashed=True), width=0.8)
    left, top, weights = dots.values.unbind(-1)
    sizes, colors = 0.5 + 20 * weights.numpy(), [level_color(level) for level in dots.levels]
    axes.scatter(left.numpy(), top.numpy(), sizes, colors, edgecolors="black", linewidths=0.4)
    for color, line in (("black", 1.8), ("white", 0.9)):
        axes.plot(*dots.reference, marker="x", markersize=4, markeredgecolor=color, markeredgewidth=line)


def show_box(axes: Axes, drawn: DrawnBox, *, width: float = 1.2) -> None:
    """Show a box with a dark line below it, and its caption."""
    left, top, right, bottom = drawn.box
    color = hex_color(drawn.color)
    style = (0, (3, 2)) if drawn.is_dashed else "solid"
    for edge, line in (("black", width + 1), (color, width)):
        axes.add_patch(
            Rectangle(
                (left, top), right - left, bottom - top, fill=False, edgecolor=edge, linewidth=line, linestyle=style
            )
        )
    if drawn.caption:
        (low, high), (bottom_edge, _) = axes.get_xlim(), axes.get_ylim()
        is_right = left > low + 0.7 * (high - low)  # little room to the right: the caption ends where the box does
        place = min(max(right if is_right else left, low), high), min(max(top, 0), bottom_edge)
        side = "bottom" if place[1] > 0.1 * bottom_edge else "top"  # above the box, if there is room
        label = {"facecolor": color, "edgecolor": "none", "pad": 0.8}
        ink = text_color_on(drawn.color)
        caption, families = figure_text(drawn.caption), font_families(drawn.caption)
        axes.text(
            *place, caption, fontsize=SMALL, family=families, ha="right" if is_right else "left", va=side, color=ink,
            bbox=label, clip_on=True,
        )  # fmt: skip


def _mark(axes: Axes, point: tuple[float, float], color: tuple[int, int, int]) -> None:
    axes.plot(
        *point, marker="o", markersize=5, markerfacecolor=hex_color(color), markeredgecolor="white", markeredgewidth=1
    )


def hex_color(color: tuple[int, int, int]) -> str:
    """Return a color as matplotlib takes it."""
    return "#{:02x}{:02x}{:02x}".format(*color)
