"""Result of an evaluation."""

import html
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from detrkit.checkpoints.native import Thresholds
from detrkit.data.dataset import Split
from detrkit.errors import import_optional
from detrkit.evaluation.analysis import SCORES_FORMAT, Analysis, replace_nan
from detrkit.evaluation.arrays import DetectionArrays
from detrkit.evaluation.coco import ClassMetrics
from detrkit.evaluation.metrics import EvalMetrics, format_metric, headline, metric_label
from detrkit.evaluation.panoptic import ClassPanopticQuality
from detrkit.evaluation.paper.analysis import PaperAnalysis
from detrkit.structures import Sample


@dataclass(frozen=True, repr=False)
class EvalResult:
    """Metrics of a model, or of saved predictions, on a dataset split.

    Attributes:
        title: what was evaluated on what.
        metrics: of boxes, masks and panoptic segments; empty if the images have no annotations.
        detections: all of them, without a score threshold; None for panoptic results.
        analysis: error types, thresholds and curves; None without boxes or annotations.
        thresholds: score thresholds that maximise F1 and panoptic quality; None without a true positive.
        paper_analyses: those that were requested.
        notes: decisions taken while reading the data.
        stored_in: checkpoint that the thresholds were stored in, if any.
        split: images and annotations.
        images: samples of the split, not transformed.
    """

    title: str
    metrics: EvalMetrics
    detections: DetectionArrays | None
    analysis: Analysis | None
    thresholds: Thresholds | None
    split: Split
    images: Dataset[Sample]
    paper_analyses: tuple[PaperAnalysis, ...] = ()
    notes: tuple[str, ...] = field(default=())
    stored_in: Path | None = None

    @property
    def ap(self) -> float:
        """Box AP, mean over IoU 0.50 to 0.95, in 0 .. 1; -1 without objects, NaN if boxes were not evaluated."""
        return self._value("ap")

    @property
    def ap50(self) -> float:
        """Box AP at IoU 0.50."""
        return self._value("ap50")

    @property
    def ap75(self) -> float:
        """Box AP at IoU 0.75."""
        return self._value("ap75")

    @property
    def ap_small(self) -> float:
        """Box AP of objects with an area below 32² px."""
        return self._value("ap_small")

    @property
    def ap_medium(self) -> float:
        """Box AP of objects with an area from 32² to 96² px."""
        return self._value("ap_medium")

    @property
    def ap_large(self) -> float:
        """Box AP of objects with an area above 96² px."""
        return self._value("ap_large")

    @property
    def mask_ap(self) -> float:
        """Mask AP, mean over IoU 0.50 to 0.95; NaN if masks were not evaluated."""
        return self._value("mask_ap")

    @property
    def pq(self) -> float:
        """Panoptic quality; NaN if segments were not evaluated."""
        return self._value("pq")

    @property
    def per_class(self) -> tuple[ClassMetrics, ...] | tuple[ClassPanopticQuality, ...]:
        """Metrics of each class: COCO metrics of the boxes, or panoptic quality for panoptic results."""
        if self.metrics.boxes is not None:
            return self.metrics.boxes.per_class
        return () if self.metrics.panoptic is None else self.metrics.panoptic.per_class

    def _value(self, name: str) -> float:
        return self.metrics.values.get(name, float("nan"))

    def __repr__(self) -> str:
        return f"EvalResult({self.title}: {headline(self.metrics) or 'no annotations'})"

    def _repr_html_(self) -> str:
        """Show the metrics as a table in a notebook."""
        cells = "".join(
            f"<tr><td>{metric_label(name)}</td><td>{format_metric(value)}</td></tr>"
            for name, value in self.metrics.values.items()
        )
        return f"<table><caption>{html.escape(self.title)}</caption>{cells}</table>"

    def to_json(self) -> dict[str, Any]:
        """Convert to plain values, the content of scores.json; undefined values are None."""
        content: dict[str, Any] = {"format": SCORES_FORMAT, "title": self.title}
        if self.analysis is not None:
            content |= self.analysis.to_json()
        if self.metrics.masks is not None:
            content["masks"] = self.metrics.masks.to_json()
        if self.metrics.panoptic is not None:
            content["panoptic"] = self.metrics.panoptic.to_json()
        return dict(replace_nan({**content, **{one.name: one.content for one in self.paper_analyses}}))

    def to_pandas(self) -> Any:
        """Convert `per_class` to a pandas DataFrame, one row per class.

        Raises:
            ConfigError: pandas is not installed.
        """
        pandas = import_optional("pandas", "EvalResult.to_pandas", "pandas")
        return pandas.DataFrame([vars(one) for one in self.per_class])

    def to_html(self, path: str | Path) -> Path:
        """Write the report, a self-contained HTML page.

        Args:
            path: of the HTML file.

        Returns:
            The path.
        """
        from detrkit.evaluation.report.images import draw_worst_images
        from detrkit.evaluation.report.page import write_report

        image_ids = self.split.records.image_ids
        worst = [] if self.analysis is None else draw_worst_images(self.analysis, self.images, image_ids)
        write_report(
            Path(path),
            title=headline(self.metrics) or "no annotations",
            subtitle=self.title,
            metrics=self.metrics,
            analysis=self.analysis,
            dataset=f"from {self.split.source.name}",
            worst_images=worst,
            figures=[one.figure for one in self.paper_analyses],
        )
        return Path(path)
