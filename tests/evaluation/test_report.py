"""The page: complete, closed in itself, and safe to open whatever classes are called."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from detrkit.data.categories import Categories
from detrkit.evaluation.analysis import Analysis, analyse
from detrkit.evaluation.errors import KINDS, MISSED
from detrkit.evaluation.report import ReportPicture, write_report
from detrkit.visualization.charts import as_png, as_svg, draw_query_map, draw_reliability
from detrkit.visualization.judged import COLOURS, WORDS, draw_judged
from tests.evaluation.cases import case, random_case


def page_of(tmp_path: Path, analysis: Analysis) -> str:
    picture = ReportPicture(Image.new("RGB", (40, 30)), "photo 1: <3 mistakes>")
    path = tmp_path / "report.html"
    write_report(path, title="a & b", subtitle="on <data>", analysis=analysis, judged_by="unseen", worst=[picture])
    return path.read_text()


def test_a_page_holds_all_and_fetches_nothing(tmp_path: Path) -> None:
    one = random_case(1)
    truth = replace(one.truth, categories=Categories((3, 7, 20), ("cat", "<script>alert(1)</script>", "ox & cow")))
    page = page_of(tmp_path, analyse(truth, one.found, 100))
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert not re.search(r"https?:|//[a-z]|url\((?!#)|@import|<link", page)
    assert page.count("<svg") == 3
    assert "currentColor" in page
    for heading in (
        "Scores",
        "By class",
        "Thresholds and curves",
        "Kinds of mistakes",
        "Confusions",
        "Photos with most",
    ):
        assert heading in page
    for kind in (*KINDS, MISSED):
        assert kind in page


def test_a_page_of_nothing_found_and_one_of_nothing_there(tmp_path: Path) -> None:
    for one in (case([(1, 3, [0.0, 0, 9, 9])], []), case([], [(1, 3, [0.0, 0, 9, 9], 0.5)])):
        page = page_of(tmp_path, analyse(one.truth, one.found, 100))
        assert "Nothing right was found at any threshold" in page
        assert "nan" not in re.sub(r"<svg.*?</svg>", "", page, flags=re.DOTALL)


def test_more_queries_than_published_are_said(tmp_path: Path) -> None:
    one = random_case(1)
    page = page_of(tmp_path, analyse(one.truth, one.found, 300))
    assert "published numbers count 100" in page
    assert "AR300" in page
    assert "AR100" not in page


def test_charts_take_the_page_s_colours_and_also_stand_alone() -> None:
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


def test_a_mistake_is_drawn_in_the_colour_of_its_kind() -> None:
    assert COLOURS.keys() == WORDS.keys() == {"right", *KINDS, MISSED}
    drawn = draw_judged(
        Image.new("RGB", (200, 200)), [[20.0, 100, 80, 180], [100, 100, 180, 180]], ["duplicate", "right"], ["cat"] * 2,
        [0.9, 0.8],
    )  # fmt: skip
    assert drawn.getpixel((20, 150)) == COLOURS["duplicate"]
    assert drawn.getpixel((100, 150)) == COLOURS["right"]
