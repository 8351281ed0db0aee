"""Curves of a run: loss and AP over the steps, as a picture."""

import io
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure


def draw_curves(metrics: Sequence[Mapping[str, object]]) -> bytes:
    """Draw losses and scores.

    Args:
        metrics: the entries of `metrics.jsonl`.

    Returns:
        A PNG.
    """
    figure = Figure(figsize=(8, 3), layout="constrained")
    losses, scores = figure.subplots(1, 2)
    for name, label in (
        ("loss", "total"),
        ("loss_ce", "class"),
        ("loss_bbox", "box (L1)"),
        ("loss_giou", "box (GIoU)"),
        ("loss_mask", "mask (focal)"),
        ("loss_dice", "mask (dice)"),
    ):
        steps, values = _series(metrics, "train", name)
        if steps:
            losses.plot(steps, values, label=label, marker="." if len(steps) == 1 else "", linewidth=1.2)
    losses.set(xlabel="step", ylabel="training loss", yscale="log")
    for name, label in (("ap", "AP"), ("ap50", "AP at IoU 0.50"), ("mask_ap", "mask AP"), ("pq", "panoptic quality")):
        steps, values = _series(metrics, "evaluation", name)
        if steps:
            scores.plot(steps, values, label=label, marker=".", linewidth=1.2)
    scores.set(xlabel="step", ylabel="score on test photos", ylim=(0, 1))
    for axes in (losses, scores):
        axes.grid(alpha=0.3)
        if axes.has_data():  # the legend stands above, where no curve runs
            axes.legend(frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
        axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()


def _series(metrics: Sequence[Mapping[str, object]], kind: str, name: str) -> tuple[list[float], list[float]]:
    points = [
        (entry["step"], entry[name]) for entry in metrics if entry["kind"] == kind and entry.get(name) is not None
    ]
    return [float(str(step)) for step, _ in points], [float(str(value)) for _, value in points]
