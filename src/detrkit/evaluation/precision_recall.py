"""Precision-recall curves at the IoU thresholds of COCO."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from detrkit.evaluation.report.section import Section


@dataclass(frozen=True)
class PrecisionRecall:
    """Precision-recall curves.

    Attributes:
        precision: (10, 101, K) at IoU 0.50 to 0.95 and recall 0 to 1; -1 for classes without objects.
        category_ids: of the K classes.
    """

    precision: np.ndarray
    category_ids: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        """Convert to plain values: the curves at IoU 0.50 and 0.75 by category id."""
        defined = np.where(self.precision < 0, np.nan, self.precision)
        curves = {
            name: {
                str(category_id): defined[iou, :, label].tolist() for label, category_id in enumerate(self.category_ids)
            }
            for name, iou in (("iou50", 0), ("iou75", 5))
        }
        return {"recall": np.linspace(0, 1, defined.shape[1]).tolist(), **curves}

    def to_section(self) -> Section:
        """Return the section of the report."""
        from detrkit.visualization.charts import as_svg, draw_precision_recall

        chart = as_svg(draw_precision_recall(self.precision))
        section = Section.render("Precision and recall", "precision_recall.html", chart=chart)
        return replace(section, is_narrow=True)
