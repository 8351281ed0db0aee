"""Names of classes and models in figures: drawn literally, whatever is in them."""

import io
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from detrkit._internal.text import printable
from detrkit.data.categories import Categories
from detrkit.visualization.charts import draw_query_map, draw_throughput
from detrkit.visualization.figure_text import MAX_LENGTH, figure_text
from detrkit.visualization.figures import (
    DrawnBox,
    StageBox,
    draw_matching,
    draw_panels,
    draw_stages,
    print_style,
    save_figure,
)
from tests.parameters import slow_except

NAMES = [
    "$$", "a $x_{$ b", "$\\frac{", "a$b$c^^", r"\$", "\\", "%", "50%s", "{}", "{0}", "{{ 7*7 }}", "${HOME}", "_x", "", " ",
    "<b>", "</script>", "[red]", "[/]", "x" * 300, "new\nline", "bell\x07\x1b[31m", "שלום", "\u202eabc", "是", "\udc80",
]  # fmt: skip
FAST = ("a $x_{$ b", r"\$", "{}", "", "</script>", "new\nline", "\udc80")


def shown(figure: Figure) -> str:
    """Return all that is drawn, as matplotlib draws it."""
    texts = [text for text in figure.findobj(Text) if text.get_visible()]  # type: ignore[attr-defined]
    drawn = []
    for text in texts:
        line, is_mathematics = text._preprocess_math(text.get_text())
        assert not is_mathematics, line
        drawn.append(line)
    return "\n".join(drawn)


@pytest.fixture(autouse=True)
def warnings_are_errors() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of fonts without a letter, of axes without room
        yield


@pytest.mark.parametrize("name", slow_except(FAST, NAMES))
def test_names_are_drawn_literally_in_figures_of_a_model(name: str, tmp_path: Path) -> None:
    image, boxes = Image.new("RGB", (64, 48)), [DrawnBox((8, 8, 40, 40), f"{name} 0.12", (200, 30, 30))]
    costs = np.zeros((2, 2))
    with print_style():
        figures = [
            draw_panels(image, (48, 64), [], boxes, name),
            draw_matching(image, boxes, costs, ["query 1", "query 2"], [f"0: {name}", "1: cat"], "costs"),
            draw_stages([StageBox("image", ("(1, 3)",), 0, 0), StageBox("heads", ("a",), 0, 1)], [], name),
        ]
        for number, figure in enumerate(figures):
            save_figure(figure, tmp_path / f"{number}.svg")
    literal = "".join(sign for sign in printable(name) if sign != "\udc80")
    if len(literal) < MAX_LENGTH - 5:
        assert all(literal in shown(figure) for figure in figures)
    assert "0.12" in shown(figures[0])


@pytest.mark.parametrize("name", slow_except(FAST, NAMES))
def test_names_are_drawn_literally_in_charts(name: str) -> None:
    content = draw_throughput([(name, 12.0, 300.0), (name, 3.0, None), ("runs/$first_{$", 5.0, 1.0)])
    with Image.open(io.BytesIO(content)) as image:
        assert image.width > 100
    points = np.array([[0.5, 0.5]])
    figure = draw_query_map([name], [points], [{kind: np.array([True]) for kind in ("small", "wide", "tall")}])
    assert figure_text(name).replace(r"\$", "$") in shown(figure)


def test_long_names_keep_their_score() -> None:
    assert figure_text("x" * 300 + " 0.12") == "x" * 23 + "...x 0.12"


def test_halves_of_characters_are_replaced_in_class_names() -> None:
    assert Categories((1, 2, 3), ("a\udc80", "\ud83d\ude00", "cat")).names == ("a\ufffd", "\U0001f600", "cat")


def test_characters_that_reorder_a_line_are_escaped() -> None:
    assert printable("a\u202eb\u2066c\u2028d") == "a\\u202eb\\u2066c\\u2028d"
    assert printable("שלום") == "שלום"
