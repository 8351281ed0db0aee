"""Charts of training, evaluation and benchmarks, as SVG for pages or as PNG.

Charts for pages are small, so that one fits a narrow screen and several a wide one; their SVG takes the page's text colour,
also in dark mode.
"""

import io
import re
import warnings
from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from detrkit._internal.provenance import MAKER
from detrkit.visualization.figure_text import figure_text, font_families

INK = "#123456"  # placeholder for the page's text colour
_COLORS = ("#3b6fd4", "#d97706", "#0f9d6b", "#c2418c")  # distinct on white and black, and for most colour-blind eyes
_SHAPE_COLORS = {"small": "#0f9d6b", "wide": "#d9432f", "tall": "#3b6fd4"}  # as in the paper's figure 7
_MAX_CLASSES = 30  # whose precision-recall curves are drawn as thin lines
_LOSSES = {
    "loss": "total",
    "loss_ce": "class",
    "loss_bbox": "box (L1)",
    "loss_giou": "box (GIoU)",
    "loss_mask": "mask (focal)",
    "loss_dice": "mask (dice)",
    "loss_mask_ce": "mask (cross-entropy)",
    "loss_mask_dice": "mask (dice)",
}
_METRICS = {"ap": "AP", "ap50": "AP at IoU 0.50", "mask_ap": "mask AP", "pq": "panoptic quality"}


def new_chart(xlabel: str, ylabel: str, *, is_square: bool = False) -> tuple[Figure, Axes]:
    """Create an empty chart for a page."""
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
    """Render a chart as SVG for a page: text in the page's colour, transparent background, no URLs."""
    buffer = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "detrkit"}):
        metadata = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(buffer, format="svg", transparent=True, metadata=metadata)
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r' xmlns(:xlink)?="[^"]*"| width="[\d.]+pt"| height="[\d.]+pt"', "", text)
    return text.replace("xlink:href", "href").replace(INK, "currentColor")


def as_png(figure: Figure) -> bytes:
    """Render a chart as PNG on white."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, facecolor="white", metadata={"Software": MAKER})
    return buffer.getvalue()


def draw_precision_recall(precision: np.ndarray) -> Figure:
    """Draw precision-recall curves.

    Args:
        precision: (10, 101, K), at IoU 0.50 to 0.95 and recall 0 to 1; -1 for classes without objects.
    """
    figure, axes = new_chart("recall", "precision")
    recall = np.linspace(0, 1, precision.shape[1])
    known = precision[:, :, (precision[0] > -1).any(0)]
    if known.shape[2]:
        for label in range(known.shape[2] if 1 < known.shape[2] <= _MAX_CLASSES else 0):
            axes.plot(recall, known[0, :, label], color=INK, alpha=0.25, linewidth=0.7)
        means = {"IoU 0.50": known[0].mean(1), "IoU 0.75": known[5].mean(1), "mean 0.50 to 0.95": known.mean((0, 2))}
        for (name, values), color in zip(means.items(), _COLORS, strict=False):
            axes.plot(recall, values, color=color, linewidth=1.8, label=name)
    axes.set(xlim=(0, 1), ylim=(0, 1.02))
    _legend(axes)
    return figure


def draw_threshold_curves(
    thresholds: Sequence[float], curves: Mapping[str, Sequence[float]], best: tuple[float, float] | None
) -> Figure:
    """Draw metrics against the score threshold.

    Args:
        thresholds: x axis.
        curves: values at the thresholds, by name.
        best: threshold and value of the maximum F1, which is marked.
    """
    figure, axes = new_chart("threshold", "value")
    for (name, values), color in zip(curves.items(), _COLORS, strict=False):
        axes.plot(thresholds, values, color=color, linewidth=1.6, label=name)
    if best is not None:
        axes.axvline(best[0], color=INK, linewidth=0.9, linestyle=":")
        axes.plot(*best, marker="o", color=INK, linestyle="", label=f"best F1 {best[1]:.2f} at {best[0]:.2f}")
    axes.set(xlim=(0, 1), ylim=(0, 1.02))
    _legend(axes)
    return figure


def draw_reliability(scores: Sequence[float], precisions: Sequence[float], counts: Sequence[int]) -> Figure:
    """Draw a reliability diagram: precision against score, with the diagonal of perfect calibration.

    Args:
        scores: mean score of each bin; NaN if empty.
        precisions: fraction of true positives in each bin.
        counts: number of detections in each bin.
    """
    figure, axes = new_chart("score", "precision")
    axes.plot([0, 1], [0, 1], color=INK, alpha=0.5, linewidth=1, linestyle="--", label="perfect calibration")
    known = [index for index, count in enumerate(counts) if count]
    axes.plot(
        [scores[index] for index in known],
        [precisions[index] for index in known],
        color=_COLORS[0],
        marker="o",
        markersize=4,
        linewidth=1.6,
        label="this model",
    )
    for index in known:
        place = (min(scores[index], 0.94), precisions[index])
        axes.annotate(
            _short(counts[index]), place, (0, 6), textcoords="offset points", fontsize=7, color=INK, ha="center"
        )
    axes.set(xlim=(0, 1), ylim=(0, 1.08))
    _legend(axes)
    return figure


def draw_layers(
    layers: Sequence[int], values: dict[str, Sequence[float]], with_nms: dict[str, Sequence[float]]
) -> Figure:
    """Draw metrics after every decoder layer, dashed with non-maximum suppression."""
    figure, axes = new_chart("decoder layer", "score")
    for (name, scores), color in zip(values.items(), _COLORS, strict=False):
        axes.plot(layers, scores, color=color, marker="o", markersize=4, linewidth=1.6, label=name)
        axes.plot(layers, with_nms[name], color=color, marker="o", markersize=3, linewidth=1.2, linestyle="--",
                  label=f"{name} after NMS")  # fmt: skip
    axes.set_xticks(list(layers))
    axes.set_ylim(bottom=0)
    _legend(axes)
    return figure


def draw_counts(
    num_objects: Sequence[int], mean: Sequence[float], minimum: Sequence[int], maximum: Sequence[int]
) -> Figure:
    """Draw the number of detected objects against the number of objects: mean, minimum and maximum over images."""
    figure, axes = new_chart("objects", "detected objects")
    axes.plot(
        [0, max(num_objects)],
        [0, max(num_objects)],
        color=INK,
        alpha=0.5,
        linewidth=1,
        linestyle="--",
        label="all detected",
    )
    axes.fill_between(
        num_objects, minimum, maximum, color=_COLORS[0], alpha=0.2, linewidth=0, label="minimum to maximum"
    )
    axes.plot(num_objects, mean, color=_COLORS[0], marker="o", markersize=3, linewidth=1.6, label="mean")
    axes.set(xlim=(0, None), ylim=(0, None))
    _legend(axes)
    return figure


def draw_query_map(
    names: Sequence[str], centers: Sequence[np.ndarray], shapes: Sequence[dict[str, np.ndarray]]
) -> Figure:
    """Draw the boxes predicted by each query (the paper's figure 7): a panel per query, a point per box at its centre.

    Args:
        names: title of each panel.
        centers: of each query, (P, 2) in 0 .. 1, relative to the image.
        shapes: of each query, (P,) masks of the boxes that are small, wide and tall.
    """
    columns = min(5, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(1.7 * columns, 1.85 * rows + 0.3), layout="constrained")
    panels = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    size = float(np.clip(600 / max(len(centers[0]), 1), 0.6, 14))
    for panel, name, points, masks in zip(panels, names, centers, shapes, strict=False):
        for kind, mask in masks.items():
            panel.scatter(*points[mask].T, s=size, color=_SHAPE_COLORS[kind], linewidths=0, alpha=0.7)
        panel.set(xlim=(0, 1), ylim=(1, 0), xticks=[], yticks=[], aspect="equal")
        panel.set_title(figure_text(name), fontsize=8)
    for panel in panels[len(names) :]:
        panel.set_visible(False)
    handles = [panels[0].scatter([], [], s=18, color=color) for color in _SHAPE_COLORS.values()]
    figure.legend(handles, [f"{kind} boxes" for kind in _SHAPE_COLORS], loc="outside lower center", ncols=3, fontsize=8,
                  frameon=False)  # fmt: skip
    return figure


def draw_training_curves(metrics: Sequence[Mapping[str, object]]) -> bytes:
    """Draw training losses and validation metrics against the step, as PNG.

    Args:
        metrics: entries of `metrics.jsonl`.
    """
    figure = Figure(figsize=(8, 3), layout="constrained")
    losses, scores = figure.subplots(1, 2)
    for name, label in _LOSSES.items():
        steps, values = _series(metrics, "train", name)
        if steps:
            losses.plot(steps, values, label=label, marker="." if len(steps) == 1 else "", linewidth=1.2)
    losses.set(xlabel="step", ylabel="training loss", yscale="log")
    for name, label in _METRICS.items():
        steps, values = _series(metrics, "evaluation", name)
        if steps:
            scores.plot(steps, values, label=label, marker=".", linewidth=1.2)
    scores.set(xlabel="step", ylabel="validation metric", ylim=(0, 1))
    for axes in (losses, scores):
        axes.grid(alpha=0.3)
        if axes.has_data():  # above the axes, where it covers no curve
            axes.legend(frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
        axes.spines[["top", "right"]].set_visible(False)
    return _plain_png(figure)


def draw_throughput(bars: Sequence[tuple[str, float, float | None]]) -> bytes:
    """Draw images per second and peak memory of benchmark cases, as PNG.

    Args:
        bars: name, images per second, and peak memory in MiB or None.
    """
    figure = Figure(figsize=(9, 1.2 + 0.4 * len(bars)), layout="constrained")
    speeds, memory = figure.subplots(1, 2, sharey=True, width_ratios=[3, 2])
    names = [figure_text(name) for name, _, _ in bars]
    for axes, values, title, digits in (
        (speeds, [speed for _, speed, _ in bars], "images per second", "%.3g"),
        (memory, [mebibytes or 0 for _, _, mebibytes in bars], "peak memory, MiB", "%.0f"),
    ):
        drawn = axes.barh(range(len(bars)), values, color=_COLORS[0], height=0.65)
        axes.bar_label(drawn, fmt=digits, padding=3, fontsize=8)
        axes.set(title=title)
        axes.margins(x=0.15)
        axes.spines[["top", "right"]].set_visible(False)
    speeds.set_yticks(range(len(bars)), names, family=font_families("".join(name for name, _, _ in bars)))
    speeds.invert_yaxis()
    return _plain_png(figure)


def _plain_png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # logged by `fonts_for`
        figure.savefig(buffer, format="png", dpi=130, metadata={"Software": MAKER})
    return buffer.getvalue()


def _series(metrics: Sequence[Mapping[str, object]], kind: str, name: str) -> tuple[list[float], list[float]]:
    points = [
        (entry["step"], entry[name]) for entry in metrics if entry["kind"] == kind and entry.get(name) is not None
    ]
    return [float(str(step)) for step, _ in points], [float(str(value)) for _, value in points]


def _legend(axes: Axes) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8, labelcolor=INK)


def _short(count: int) -> str:
    return f"{count / 1000:.0f}k" if count >= 10_000 else f"{count / 1000:.1f}k" if count >= 1000 else str(count)
