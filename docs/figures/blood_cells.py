"""Draws the curves of the guide on blood cells from the table of the results: `python docs/figures/blood_cells.py`."""

import re
from pathlib import Path

from detrkit.visualization.charts import as_png, new_chart

DOCS = Path(__file__).parents[1]
ROW = re.compile(r"^\| (seed \d) \| (0\.\d{3}, .+) \|$", re.MULTILINE)


def main() -> None:
    """Write the picture."""
    text = (DOCS / "results" / "blood-cells.md").read_text(encoding="utf-8")
    header = re.search(r"^\| steps \| (459 .+) \|$", text, re.MULTILINE)
    assert header is not None
    steps = [int(cell.replace(",", "")) for cell in header[1].split(" | ")]
    figure, axes = new_chart("steps of training", "AP on 87 validation images")
    for name, cells in ROW.findall(text[header.end() :]):
        axes.plot(steps, [float(cell[:5]) for cell in cells.split(" | ")], marker=".", label=name)
    axes.set(xlim=(0, steps[-1] * 1.03), ylim=(0.5, 0.66))
    axes.legend(frameon=False, loc="lower right")
    figure.set_size_inches(6.4, 3.2)
    (DOCS / "guides" / "pictures" / "blood-cells.png").write_bytes(as_png(figure))


if __name__ == "__main__":
    main()
