"""Speeds side by side, as a picture for papers and slides."""

import io
from collections.abc import Sequence

from matplotlib.figure import Figure

from detrkit._internal.provenance import MAKER


def draw_speeds(bars: Sequence[tuple[str, float, float | None]]) -> bytes:
    """Draw photos per second, and memory.

    Args:
        bars: name, photos per second, largest memory in MiB or None.

    Returns:
        A PNG.
    """
    figure = Figure(figsize=(9, 1.2 + 0.4 * len(bars)), layout="constrained")
    speeds, memory = figure.subplots(1, 2, sharey=True, width_ratios=[3, 2])
    names = [name for name, _, _ in bars]
    for axes, values, title, digits in (
        (speeds, [speed for _, speed, _ in bars], "photos per second", "%.3g"),
        (memory, [mebibytes or 0 for _, _, mebibytes in bars], "peak memory, MiB", "%.0f"),
    ):
        drawn = axes.barh(names, values, color="#3b6fd4", height=0.65)
        axes.bar_label(drawn, fmt=digits, padding=3, fontsize=8)
        axes.set(title=title)
        axes.margins(x=0.15)
        axes.spines[["top", "right"]].set_visible(False)
    speeds.invert_yaxis()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130, metadata={"Software": MAKER})
    return buffer.getvalue()
