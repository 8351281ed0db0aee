"""The page: complete, closed in itself, and safe to open whatever classes are called."""

import io
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console

from detrkit.data.categories import Categories
from detrkit.evaluation.analysis import Analysis, analyse
from detrkit.evaluation.panoptic import PanopticCounts, PanopticScores, score_panoptic
from detrkit.evaluation.report.masks import write_panoptic_report
from detrkit.evaluation.report.page import ReportPicture, write_report
from detrkit.evaluation.report.table import print_panoptic
from detrkit.evaluation.tide import KINDS, MISSED
from detrkit.visualization.charts import as_png, as_svg, draw_query_map, draw_reliability
from detrkit.visualization.draw import ERROR_CAPTIONS, ERROR_COLORS, draw_errors
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
    assert "ar100" not in page


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
    assert ERROR_COLORS.keys() == ERROR_CAPTIONS.keys() == {"correct", *KINDS, MISSED}
    drawn = draw_errors(
        Image.new("RGB", (200, 200)), [[20.0, 100, 80, 180], [100, 100, 180, 180]], ["duplicate", "correct"], ["cat"] * 2,
        [0.9, 0.8],
    )  # fmt: skip
    assert drawn.getpixel((20, 150)) == ERROR_COLORS["duplicate"]
    assert drawn.getpixel((100, 150)) == ERROR_COLORS["correct"]


def panoptic_scores(things: tuple[bool, ...] | None) -> PanopticScores:
    counts = PanopticCounts(np.array([1.6, 0, 0]), np.array([2, 0, 0]), np.array([1, 2, 0]), np.array([0, 1, 0]), 4)
    return score_panoptic(counts, Categories((1, 2, 3), ("<b>cat</b>", "sky", "absent"), things))


def test_the_page_shows_masks_and_segments_where_there_are_any(tmp_path: Path) -> None:
    one = random_case(1)
    analysis = analyse(one.truth, one.found, 100)
    masks = replace(analysis.scores, values={**analysis.scores.values, "ap": 0.123})
    path = tmp_path / "report.html"
    scores = panoptic_scores((True, False, True))
    write_report(path, title="t", subtitle="s", analysis=analysis, judged_by="unseen", masks=masks, panoptic=scores)
    page = path.read_text()
    assert "<h2>Masks</h2>" in page
    assert "0.123" in page
    assert "<h2>Panoptic quality</h2>" in page
    assert "&lt;b&gt;cat" in page
    assert "<b>" not in page
    assert "Masks" not in page_of(tmp_path, analysis)


def test_a_page_of_segments_alone(tmp_path: Path) -> None:
    scores = panoptic_scores((True, False, True))
    picture = (Image.new("RGB", (40, 30)), "photo 1")
    write_panoptic_report(tmp_path / "a.html", title="PQ", subtitle="on <data>", scores=scores, gallery=[picture])
    page = (tmp_path / "a.html").read_text()
    # the cat: overlap 1.6 of two found, one false: 1.6 / 2.5, 1.6 / 2, 2 / 2.5
    assert "<td>thing</td><td>2</td>" in page
    assert "<td>0.640</td><td>0.800</td><td>0.800</td><td>2</td><td>1</td><td>0</td>" in page
    assert "<td>all</td><td>2</td><td>0.320</td>" in page
    assert "<td>stuff</td><td>1</td><td>0.000</td>" in page
    assert "absent" not in page
    assert "left out: 1 class." in page
    assert "nan" not in page
    write_panoptic_report(tmp_path / "b.html", title="PQ", subtitle="s", scores=panoptic_scores(None))
    assert "<td>things</td>" not in (tmp_path / "b.html").read_text()


def test_the_table_of_segments_fits_80_columns() -> None:
    names = ("a class whose name is longer than anybody would want to read in a table [red]", *map(str, range(40)))
    counts = PanopticCounts(np.ones(41), np.full(41, 2), np.ones(41, np.int64), np.zeros(41, np.int64), 3)
    console = Console(file=io.StringIO(), width=80)
    print_panoptic(score_panoptic(counts, Categories(tuple(range(41)), names, (True,) * 41)), console)
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert max(len(line) for line in lines) <= 80
    assert any("... 21 between ..." in line for line in lines)
    assert "[red]" in "".join(lines)
