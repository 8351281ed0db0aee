"""Charts of an evaluation, as SVG that takes the page's colours, in the dark as well, or as PNG.

A chart is small, so that one fits a narrow screen and several stand side by side on a wide one.
"""

import io
import re
from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from detrkit._internal.provenance import MAKER

INK = "#123456"  # stands for the colour of the page's text
_COLOURS = (
    "#3b6fd4",
    "#d97706",
    "#0f9d6b",
    "#c2418c",
)  # told apart on white and on black, and by most colour-blind eyes
_OF_SHAPES = {"small": "#0f9d6b", "wide": "#d9432f", "tall": "#3b6fd4"}  # as in the paper's figure 7
_MAX_CLASSES = 30  # drawn as thin lines


def new_chart(xlabel: str, ylabel: str, *, is_square: bool = False) -> tuple[Figure, Axes]:
    """An empty chart of readable size."""
    figure = Figure(figsize=(4.2, 3.9 if is_square else 3.1), layout="constrained")
    axes = figure.subplots()
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.grid(alpha=0.2, color=INK, linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)
    axes.tick_params(colors=INK, labelsize=9)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set(color=INK, fontsize=10)
    return figure, axes


def as_svg(figure: Figure) -> str:
    """Write a chart to stand inside a page: text in the page's colour, no ground of its own, no addresses."""
    buffer = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "detrkit"}):
        metadata = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(buffer, format="svg", transparent=True, metadata=metadata)
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r' xmlns(:xlink)?="[^"]*"| width="[\d.]+pt"| height="[\d.]+pt"', "", text)
    return text.replace("xlink:href", "href").replace(INK, "currentColor")


def as_png(figure: Figure) -> bytes:
    """Write a chart as a picture of its own, on white."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, facecolor="white", metadata={"Software": MAKER})
    return buffer.getvalue()


def draw_precision_recall(precision: np.ndarray) -> Figure:
    """Precision against recall.

    Args:
        precision: (10, 101, K), at IoU 0.50 to 0.95 and recall 0 to 1; -1 where a class has no objects.
    """
    figure, axes = new_chart("recall", "precision")
    recall = np.linspace(0, 1, precision.shape[1])
    known = precision[:, :, (precision[0] > -1).any(0)]
    if known.shape[2]:
        for label in range(known.shape[2] if 1 < known.shape[2] <= _MAX_CLASSES else 0):
            axes.plot(recall, known[0, :, label], color=INK, alpha=0.25, linewidth=0.7)
        means = {"IoU 0.50": known[0].mean(1), "IoU 0.75": known[5].mean(1), "mean 0.50 to 0.95": known.mean((0, 2))}
        for (name, values), colour in zip(means.items(), _COLOURS, strict=False):
            axes.plot(recall, values, color=colour, linewidth=1.8, label=name)
    axes.set(xlim=(0, 1), ylim=(0, 1.02))
    _legend(axes)
    return figure


def draw_threshold_curves(
    thresholds: Sequence[float], curves: dict[str, Sequence[float]], best: tuple[float, float] | None
) -> Figure:
    """Curves over the threshold, and where the best F1 lies: threshold and F1."""
    figure, axes = new_chart("threshold", "share")
    for (name, values), colour in zip(curves.items(), _COLOURS, strict=False):
        axes.plot(thresholds, values, color=colour, linewidth=1.6, label=name)
    if best is not None:
        axes.axvline(best[0], color=INK, linewidth=0.9, linestyle=":")
        axes.plot(*best, marker="o", color=INK, linestyle="", label=f"best F1 {best[1]:.2f} at {best[0]:.2f}")
    axes.set(xlim=(0, 1), ylim=(0, 1.02))
    _legend(axes)
    return figure


def draw_reliability(scores: Sequence[float], shares: Sequence[float], counts: Sequence[int]) -> Figure:
    """Share of right detections against their score, beside how it would be if scores were probabilities.

    Args:
        scores: mean score of each bin; NaN in empty ones.
        shares: of right detections.
        counts: of detections.
    """
    figure, axes = new_chart("score", "share that is right")
    axes.plot([0, 1], [0, 1], color=INK, alpha=0.5, linewidth=1, linestyle="--", label="scores are probabilities")
    known = [index for index, count in enumerate(counts) if count]
    axes.plot(
        [scores[index] for index in known],
        [shares[index] for index in known],
        color=_COLOURS[0],
        marker="o",
        markersize=4,
        linewidth=1.6,
        label="this model",
    )
    for index in known:
        place = (min(scores[index], 0.94), shares[index])
        axes.annotate(
            _short(counts[index]), place, (0, 6), textcoords="offset points", fontsize=7, color=INK, ha="center"
        )
    axes.set(xlim=(0, 1), ylim=(0, 1.08))
    _legend(axes)
    return figure


def draw_layers(
    layers: Sequence[int], values: dict[str, Sequence[float]], with_nms: dict[str, Sequence[float]]
) -> Figure:
    """Scores after every decoder layer; dashed after NMS."""
    figure, axes = new_chart("decoder layer", "score")
    for (name, scores), colour in zip(values.items(), _COLOURS, strict=False):
        axes.plot(layers, scores, color=colour, marker="o", markersize=4, linewidth=1.6, label=name)
        axes.plot(layers, with_nms[name], color=colour, marker="o", markersize=3, linewidth=1.2, linestyle="--",
                  label=f"{name} after NMS")  # fmt: skip
    axes.set_xticks(list(layers))
    axes.set_ylim(bottom=0)
    _legend(axes)
    return figure


def draw_counts(present: Sequence[int], found: Sequence[float], least: Sequence[int], most: Sequence[int]) -> Figure:
    """Objects found against objects present, from the worst to the best photo."""
    figure, axes = new_chart("objects present", "objects found")
    axes.plot(
        [0, max(present)], [0, max(present)], color=INK, alpha=0.5, linewidth=1, linestyle="--", label="all of them"
    )
    axes.fill_between(present, least, most, color=_COLOURS[0], alpha=0.2, linewidth=0, label="worst to best photo")
    axes.plot(present, found, color=_COLOURS[0], marker="o", markersize=3, linewidth=1.6, label="found")
    axes.set(xlim=(0, None), ylim=(0, None))
    _legend(axes)
    return figure


def draw_query_map(
    names: Sequence[str], centres: Sequence[np.ndarray], shapes: Sequence[dict[str, np.ndarray]]
) -> Figure:
    """Where each query predicts: a panel a query, a point a box at its centre.

    Args:
        names: above the panels.
        centres: of each query, (P, 2), 0 .. 1 of the photo.
        shapes: of each query, which of its boxes are small, wide, tall: (P,) masks.
    """
    columns = min(5, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(1.7 * columns, 1.85 * rows + 0.3), layout="constrained")
    panels = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    size = float(np.clip(600 / max(len(centres[0]), 1), 0.6, 14))
    for panel, name, points, masks in zip(panels, names, centres, shapes, strict=False):
        for kind, mask in masks.items():
            panel.scatter(*points[mask].T, s=size, color=_OF_SHAPES[kind], linewidths=0, alpha=0.7)
        panel.set(xlim=(0, 1), ylim=(1, 0), xticks=[], yticks=[], aspect="equal")
        panel.set_title(name, fontsize=8)
    for panel in panels[len(names) :]:
        panel.set_visible(False)
    handles = [panels[0].scatter([], [], s=18, color=colour) for colour in _OF_SHAPES.values()]
    figure.legend(handles, [f"{kind} boxes" for kind in _OF_SHAPES], loc="outside lower center", ncols=3, fontsize=8,
                  frameon=False)  # fmt: skip
    return figure


def _legend(axes: Axes) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8, labelcolor=INK)


def _short(count: int) -> str:
    return f"{count / 1000:.0f}k" if count >= 10_000 else f"{count / 1000:.1f}k" if count >= 1000 else str(count)
