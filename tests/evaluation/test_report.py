"""The evaluation report: complete, self-contained, and escaped."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from detrkit.data.categories import Categories
from detrkit.data.dataset import SampleDataset
from detrkit.data.synthetic import SyntheticShapes, SyntheticStyle
from detrkit.evaluation.analysis import Analysis, analyse
from detrkit.evaluation.metrics import EvalMetrics
from detrkit.evaluation.panoptic import PanopticCounts, PanopticMetrics, panoptic_metrics
from detrkit.evaluation.registry import METRICS
from detrkit.evaluation.report.images import ReportImage, draw_predictions
from detrkit.evaluation.report.page import write_report
from detrkit.evaluation.tide import ERROR_TYPES, MISSED
from detrkit.visualization.charts import as_png, as_svg, draw_query_map, draw_reliability
from detrkit.visualization.draw import ERROR_CAPTIONS, ERROR_COLORS, TRUE_POSITIVE, draw_errors
from tests.detectors import small_detector
from tests.evaluation.cases import case, random_case


def render(tmp_path: Path, analysis: Analysis, **metrics: object) -> str:
    path = tmp_path / "report.html"
    write_report(
        path,
        title="a & b",
        subtitle="on <data>",
        metrics=EvalMetrics(analysis.metrics, **metrics),
        analysis=analysis,
        dataset="unseen",
        predictions=[ReportImage(Image.new("RGB", (40, 30)), "image 2: 1 detected")],
        predictions_text="Solid lines: a score of 0.21 or more.",
        worst_images=[ReportImage(Image.new("RGB", (40, 30)), "image 1: <3 errors>")],
    )
    return path.read_text()


def test_report_has_all_sections_and_loads_nothing(tmp_path: Path) -> None:
    one = random_case(1)
    names = ("cat", "<script>alert(1)</script>", "ox & cow")
    ground_truth = replace(one.ground_truth, categories=Categories((3, 7, 20), names))
    page = render(tmp_path, analyse(ground_truth, one.detections, 100, METRICS))
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert not re.search(r"https?:|//[a-z]|url\((?!#)|@import|<link", page)
    assert page.count("<svg") == 3
    assert "currentColor" in page
    headings = ("Metrics", "Per class", "Precision and recall", "Score thresholds", "Calibration", "Error types")
    for heading in (*headings, "Confusion matrix", "Images with most errors"):
        assert f"<h2>{heading}</h2>" in page
    assert "<p>Solid lines: a score of 0.21 or more.</p>" in page
    for error_type in (*ERROR_TYPES, MISSED):
        assert f"<td>{error_type}</td>" in page


def test_report_without_detections_or_objects_shows_no_nan(tmp_path: Path) -> None:
    for one in (case([(1, 3, [0.0, 0, 9, 9])], []), case([], [(1, 3, [0.0, 0, 9, 9], 0.5)])):
        page = render(tmp_path, analyse(one.ground_truth, one.detections, 100, METRICS))
        assert "There is no true positive at any threshold" in page
        assert "nan" not in re.sub(r"<svg.*?</svg>", "", page, flags=re.DOTALL)


def test_report_names_the_limit_of_detections_if_it_is_not_the_published_one(tmp_path: Path) -> None:
    one = random_case(1)
    page = render(tmp_path, analyse(one.ground_truth, one.detections, 300, METRICS))
    assert "published results use 100" in page
    assert "AR300" in page
    assert "AR100" not in page


def test_charts_are_rendered_as_svg_in_the_page_s_colours_and_as_png() -> None:
    figure = draw_reliability([0.1, float("nan"), 0.9], [0.2, float("nan"), 0.8], [12_345, 0, 3])
    svg = as_svg(figure)
    assert svg.startswith("<svg")
    assert "12k" in svg
    assert "#123456" not in svg
    assert "http" not in svg
    assert as_png(figure).startswith(b"\x89PNG")
    points = np.array([[0.5, 0.5], [0.1, 0.9]])
    shapes = {"small": np.array([True, False]), "wide": np.array([False, True]), "tall": np.array([False, False])}
    assert as_png(draw_query_map(["query 7"], [points], [shapes])).startswith(b"\x89PNG")


def test_errors_are_drawn_in_the_colour_of_their_type() -> None:
    assert ERROR_COLORS.keys() == ERROR_CAPTIONS.keys() == {TRUE_POSITIVE, *ERROR_TYPES, MISSED}
    boxes = [[20.0, 100, 80, 180], [100, 100, 180, 180]]
    drawn = draw_errors(Image.new("RGB", (200, 200)), boxes, ["duplicate", TRUE_POSITIVE], ["cat"] * 2, [0.9, 0.8])
    assert drawn.getpixel((20, 150)) == ERROR_COLORS["duplicate"]
    assert drawn.getpixel((100, 150)) == ERROR_COLORS[TRUE_POSITIVE]


def test_predictions_are_drawn_at_the_threshold_that_is_given() -> None:
    detector = small_detector()
    drawn = SyntheticShapes(2, 1, SyntheticStyle(size=64)).draw_all()
    samples = SampleDataset([replace(one, annotations=replace(one.annotations, masks=None)) for one in drawn])
    counts = [len(detector.predict(one.image, 0.3)) for one in drawn]
    best = detector.predict(drawn[0].image, 0.0).scores.max()
    images = draw_predictions(detector, samples, 2, threshold=0.3)
    assert [image.caption.split(": ")[1].split(" ")[0] for image in images] == [str(count) for count in counts]
    captions = [image.caption for image in draw_predictions(detector, samples, 2, threshold=0.9999)]
    assert (
        f"nothing detected, the best score is {best:.2f}, {len(drawn[0].annotations.labels)} annotated" in captions[0]
    )


def make_panoptic_metrics(things: tuple[bool, ...] | None) -> PanopticMetrics:
    counts = PanopticCounts(np.array([1.6, 0, 0]), np.array([2, 0, 0]), np.array([1, 2, 0]), np.array([0, 1, 0]), 4)
    return panoptic_metrics(counts, Categories((1, 2, 3), ("<b>cat</b>", "sky", "absent"), things))


def test_report_shows_masks_and_panoptic_quality_if_evaluated(tmp_path: Path) -> None:
    one = random_case(1)
    analysis = analyse(one.ground_truth, one.detections, 100, METRICS)
    masks = replace(analysis.metrics, values={**analysis.metrics.values, "ap": 0.123})
    page = render(tmp_path, analysis, masks=masks, panoptic=make_panoptic_metrics((True, False, True)))
    assert "<h2>Masks</h2>" in page
    assert "0.123" in page
    assert "<h2>Panoptic quality</h2>" in page
    assert "&lt;b&gt;cat" in page
    assert "<b>" not in page
    assert "Masks" not in render(tmp_path, analysis)


def test_report_of_panoptic_results_has_no_boxes(tmp_path: Path) -> None:
    def render_panoptic(things: tuple[bool, ...] | None) -> str:
        metrics = EvalMetrics(panoptic=make_panoptic_metrics(things))
        write_report(tmp_path / "a.html", title="PQ", subtitle="on <data>", metrics=metrics, analysis=None)
        return (tmp_path / "a.html").read_text()

    page = render_panoptic((True, False, True))
    # the cat: IoU sum 1.6 of two matches, one false positive: 1.6 / 2.5, 1.6 / 2, 2 / 2.5
    assert "<td>thing</td><td>2</td>" in page
    assert "<td>0.640</td><td>0.800</td><td>0.800</td><td>2</td><td>1</td><td>0</td>" in page
    assert "<td>all</td><td>2</td><td>0.320</td>" in page
    assert "<td>stuff</td><td>1</td><td>0.000</td>" in page
    assert "absent" not in page
    assert "predicted: 1 class." in page
    assert "nan" not in page
    assert "<h2>Metrics</h2>" not in page
    assert "<td>things</td>" not in render_panoptic(None)
