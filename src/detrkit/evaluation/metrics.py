"""All metrics of one evaluation: box AP, mask AP and panoptic quality, whichever the model and the data allow."""

import math
from dataclasses import dataclass
from typing import Any

from detrkit.evaluation.coco import CocoMetrics
from detrkit.evaluation.panoptic import PanopticMetrics

_LABELS = {
    "ap": "AP",
    "ap50": "AP50",
    "ap75": "AP75",
    "ap_small": "AP small",
    "ap_medium": "AP medium",
    "ap_large": "AP large",
    "ar_small": "AR small",
    "ar_medium": "AR medium",
    "ar_large": "AR large",
    "pq": "PQ",
    "sq": "SQ",
    "rq": "RQ",
    "pq_things": "PQ things",
    "pq_stuff": "PQ stuff",
}


def format_metric(value: float) -> str:
    """Format a metric with three digits; a dash if it is undefined (NaN, or -1 as in COCO)."""
    return "-" if math.isnan(value) or value < 0 else f"{value:.3f}"


def metric_label(name: str) -> str:
    """Return the label of a metric in tables and plots: ``ap50`` is "AP50", ``mask_ap`` is "mask AP"."""
    if name.startswith("mask_"):
        return f"mask {metric_label(name.removeprefix('mask_'))}"
    return _LABELS.get(name, name.upper())


@dataclass(frozen=True)
class EvalMetrics:
    """Metrics of one evaluation.

    Attributes:
        boxes: COCO metrics of the boxes; None for panoptic results, which have no boxes.
        masks: COCO metrics of the masks; None if masks were not evaluated.
        panoptic: panoptic quality; None if the data is not panoptic.
    """

    boxes: CocoMetrics | None = None
    masks: CocoMetrics | None = None
    panoptic: PanopticMetrics | None = None

    @property
    def ap(self) -> float:
        """Box AP, mean over IoU 0.50 to 0.95; NaN if boxes were not evaluated."""
        return self.values.get("ap", float("nan"))

    @property
    def primary(self) -> str:
        """Name of the metric that checkpoints are compared by: ``pq``, ``mask_ap`` or ``ap``."""
        return "pq" if self.panoptic is not None else "mask_ap" if self.masks is not None else "ap"

    @property
    def primary_value(self) -> float:
        """Value of the primary metric; 0 if it is undefined."""
        value = self.values.get(self.primary, 0.0)
        return value if value > 0 else 0.0

    @property
    def values(self) -> dict[str, float]:
        """All metrics by name: ``ap`` and the other COCO metrics, ``mask_ap``, ..., ``pq``, ``pq_things``, ..."""
        values = {} if self.boxes is None else dict(self.boxes.values)
        if self.masks is not None:
            values |= {f"mask_{name}": value for name, value in self.masks.values.items()}
        if self.panoptic is not None:
            overall = self.panoptic.overall
            values |= {"pq": overall.pq, "sq": overall.sq, "rq": overall.rq}
            values |= {f"pq_{name}": group.pq for name, group in self.panoptic.groups.items() if name != "all"}
        return values

    def to_json(self) -> dict[str, Any]:
        """Convert to plain values."""
        return {name: None if part is None else part.to_json() for name, part in vars(self).items()}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "EvalMetrics":
        """Convert from what `to_json` returned."""
        boxes, masks, panoptic = content["boxes"], content["masks"], content["panoptic"]
        return cls(
            None if boxes is None else CocoMetrics.from_json(boxes),
            None if masks is None else CocoMetrics.from_json(masks),
            None if panoptic is None else PanopticMetrics.from_json(panoptic),
        )


def headline(metrics: EvalMetrics) -> str:
    """Format the primary metric, AP and AP50 in one line."""
    values = metrics.values
    names = dict.fromkeys((metrics.primary, "ap", "ap50"))
    return ", ".join(f"{metric_label(name)} {format_metric(values[name])}" for name in names if name in values)
