"""A metric is added to the report from outside of the package."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import detrkit
from detrkit.evaluation.analysis import Analysis, analyse
from detrkit.evaluation.report.section import Section
from tests.datasets import write_coco
from tests.evaluation.cases import case


@dataclass(frozen=True)
class MeanIoU:
    """Mean IoU of true positives."""

    value: float

    def to_json(self) -> dict[str, Any]:
        return {"value": self.value}

    def to_section(self) -> Section:
        return Section("Mean IoU", f"{self.value:.2f} < 1")


def mean_iou(analysis: Analysis) -> MeanIoU:
    matched = analysis.matches.matched_objects[analysis.pairs.detections] == analysis.pairs.objects
    return MeanIoU(float(analysis.pairs.ious[matched].mean()) if matched.any() else float("nan"))


def test_metric_is_computed_from_the_analysis() -> None:
    # moved by 25 of 100 px: IoU 0.6
    one = case([(1, 3, [0.0, 0, 100, 100])], [(1, 3, [25.0, 0, 100, 100], 0.9)])
    analysis = analyse(one.ground_truth, one.detections, 100, {"mean_iou": mean_iou})
    np.testing.assert_allclose(analysis.results["mean_iou"].to_json()["value"], 0.6)
    assert analysis.to_json()["mean_iou"] == {"value": 0.6}


def test_metric_is_in_the_result_and_in_the_report(tmp_path: Path) -> None:
    data = write_coco(tmp_path / "shapes")
    (tmp_path / "results.json").write_text('[{"image_id": 2, "category_id": 1, "bbox": [0, 0, 9, 9], "score": 0.5}]')
    result = detrkit.evaluate(tmp_path / "results.json", data, metrics={"mean_iou": mean_iou})
    assert result.to_json()["mean_iou"] == {"value": None}
    page = result.to_html(tmp_path / "report.html").read_text()
    assert "<h2>Mean IoU</h2>\nnan &lt; 1" in page
