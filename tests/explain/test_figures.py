"""Figures for print: legible, complete, reproducible."""

from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from matplotlib.collections import PathCollection, PolyCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from detrkit import ConfigError, Detector, Sample, build_model
from detrkit.explain.explain import explain_sample
from detrkit.explain.explanation import Explanation, FigureName
from detrkit.explain.figures import write_stages_figure
from detrkit.explain.stages import capture_stages
from detrkit.models.attention.recording_deformable import DeformableAttentionInputs
from detrkit.visualization.draw import level_color
from detrkit.visualization.figures import COLUMN_WIDTH, PAGE_WIDTH


def texts(figure: Figure) -> list[Text]:
    figure.draw_without_rendering()
    return [text for text in figure.findobj(Text) if text.get_visible() and text.get_text()]  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", get_args(FigureName))
@pytest.mark.parametrize("points", [((10.0, 20.0),), tuple((8.0 * i, 5.0 * i) for i in range(9))])
def test_all_text_is_legible_and_inside_the_figure(
    name: FigureName, points: tuple[tuple[float, float], ...], explanation: Explanation, fine_grained: Explanation
) -> None:
    of_one_query = name in ("layers", "distributions")
    queries = (len(points),) if of_one_query or len(points) == 1 else (0, 1, 2, 3, 4)
    source = fine_grained if of_one_query or name == "selection" else explanation
    figure = source.figure(name, points=points, queries=queries)
    width, height = figure.get_size_inches() * figure.dpi
    assert figure.get_figwidth() in (COLUMN_WIDTH, PAGE_WIDTH)
    for text in texts(figure):
        assert text.get_fontsize() >= 7
        extent = text.get_window_extent()
        assert extent.x0 >= -1, text
        assert extent.x1 <= width + 1, text
        assert extent.y0 >= -1, text
        assert extent.y1 <= height + 1, text


@pytest.mark.parametrize("suffix", [".svg", ".png", ".pdf"])
def test_the_same_figure_gives_the_same_file(suffix: str, explanation: Explanation, tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}{suffix}" for number in range(2)]
    for path in paths:
        explanation.save_figure("decoder", path, queries=(3, 1))
    assert paths[0].read_bytes() == paths[1].read_bytes()
    if suffix == ".png":
        with Image.open(paths[0]) as image:
            assert image.width == round(300 * PAGE_WIDTH)
    if suffix == ".svg":
        assert "<svg" in paths[0].read_text()


def test_points_layer_and_head_change_the_figure(explanation: Explanation, tmp_path: Path) -> None:
    options: list[dict[str, Any]] = [
        {"points": [(10, 20)]},
        {"points": [(80, 20)]},
        {"points": [(10, 20)], "layer": 0},
        {"points": [(10, 20)], "head": 3},
    ]
    for number, chosen in enumerate(options):
        explanation.save_figure("encoder", tmp_path / f"{number}.png", **chosen)
    assert len({(tmp_path / f"{number}.png").read_bytes() for number in range(4)}) == 4


@pytest.mark.parametrize("content", ["box", "memory"])
def test_two_stage_queries_are_a_stage_with_inputs(content: str) -> None:
    model = build_model("detrkit-s", num_queries=6, hidden_dim=64, two_stage_content=content).eval()
    with capture_stages(model) as stages:
        model(torch.zeros(1, 3, 64, 64))
    queries = next(stage for stage in stages if stage.part == "query_source")
    assert queries.inputs
    assert queries.outputs[0] == (1, 6, 64)
    assert queries.file == "models/queries/two_stage.py"


def test_sampling_points_of_the_chosen_layer_and_head_are_drawn(deformable_detector: Detector, sample: Sample) -> None:
    explanation = explain_sample(deformable_detector, sample)
    for head, heads in ((5, [5]), (None, None)):
        figure = explanation.figure("decoder", queries=(2,), layer=1, head=head)
        dots = [one for one in figure.findobj(PathCollection) if len(one.get_offsets())]
        inputs = explanation.attention.inputs("decoder_cross", 1)
        assert isinstance(inputs, DeformableAttentionInputs)
        expected = inputs.sampling_points(heads, [2]).points.flatten(0, -2)
        assert len(dots) == 1
        np.testing.assert_allclose(dots[0].get_offsets(), expected.numpy(), atol=1e-3)


@pytest.mark.parametrize(
    ("name", "options", "threshold", "message"),
    [
        ("decoder", {}, 1.0, "no detections at threshold=1.0"),
        ("encoder", {}, 1.0, "Pass points"),
        ("encoder", {"points": [(96, 0)]}, 0.5, "is outside the image"),
        ("decoder", {"queries": [9]}, 0.5, "queries=9 is out of range; expected 0 to 8"),
        ("decoder", {"queries": [1], "head": 8}, 0.5, "heads=8 is out of range"),
        ("layers", {"queries": [1, 2]}, 0.5, "figure='layers' shows one query, but queries has 2"),
        ("distributions", {}, 0.5, "tiny has no distributions of edges: its boxes are predicted directly"),
        ("distributions", {"queries": [9]}, 0.5, "queries=9 is out of range"),
        ("selection", {}, 0.5, "tiny selects no cells: its queries are learned"),
    ],
)
def test_figures_without_content_are_rejected(
    name: FigureName, options: dict[str, Any], threshold: float, message: str, explanation: Explanation
) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(explanation, threshold=threshold).figure(name, **options)


def test_layers_figure_of_dense_attention_has_a_panel_per_layer_without_points(explanation: Explanation) -> None:
    figure = explanation.figure("layers", queries=(1,))
    assert [axes.get_title() for axes in figure.axes[1:]] == [
        text for text in (text.get_text() for text in texts(figure)) if text.startswith("layer ")
    ]
    assert len(figure.axes) == 4
    assert not figure.findobj(PathCollection)


def test_layers_figure_shows_points_colored_by_level_around_the_box(fine_grained: Explanation) -> None:
    figure = fine_grained.figure("layers", queries=(2,), head=1)
    for layer, axes in enumerate(figure.axes[1:]):
        sampled = fine_grained.sampling_points([2], layer=layer, head=1)
        (dots,) = axes.findobj(PathCollection)
        np.testing.assert_allclose(dots.get_offsets(), sampled.points[0, 0].numpy(), atol=1e-3)  # type: ignore[attr-defined]
        colors = [to_hex(color) for color in dots.get_facecolors()]  # type: ignore[attr-defined]
        assert colors == [level_color(level) for level in [0] * 6 + [1] * 6]
        (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
        assert 0 <= left < right <= 96
        assert right - left == pytest.approx(bottom - top)  # the proportions of the image


def test_distributions_figure_has_a_chart_per_layer_and_edge(fine_grained: Explanation) -> None:
    figure, edges = fine_grained.figure("distributions", queries=(5,)), fine_grained.edge_distributions(5)
    charts = figure.axes[1:]
    assert len(charts) == 3 * 4
    assert [chart.get_title() for chart in charts[:5]] == ["left", "top", "right", "bottom", ""]
    for number, chart in enumerate(charts):
        layer, edge = divmod(number, 4)
        heights = [bar.get_height() for bar in chart.patches]  # type: ignore[attr-defined]
        np.testing.assert_allclose(heights, edges.probabilities[layer, edge].numpy(), rtol=1e-5)
        moved = float(chart.texts[0].get_text().split()[0])
        assert moved == pytest.approx(float(edges.moved[layer, edge]), abs=0.051)
    assert f"{edges.quality[2]:+.2f}" in charts[8].get_ylabel()
    assert charts[9].get_xticklabels()[2].get_text() == f"{edges.distances[1, -1]:.0f}"


def test_selection_figure_has_the_cells_of_all_queries_and_highlights_the_chosen(fine_grained: Explanation) -> None:
    figure, selection = fine_grained.figure("selection", queries=(3,)), fine_grained.selected_cells()
    counts = [int((selection.levels == level).sum()) for level in range(2)]
    assert [axes.get_title().split(": ")[-1] for axes in figure.axes[1:3]] == [str(count) for count in counts]
    for axes, count in zip(figure.axes[1:3], counts, strict=True):
        drawn = [path for cells in axes.findobj(PolyCollection) for path in cells.get_paths()]  # type: ignore[attr-defined]
        assert len(drawn) == count
    captions = [text.get_text() for text in figure.axes[1 + int(selection.levels[3])].texts]
    assert captions == [f"3: {selection.scores[3]:.2f}"]


def test_matching_figure_needs_ground_truth(detector: Detector, sample: Sample) -> None:
    with pytest.raises(ConfigError, match="pass annotations"):
        explain_sample(detector, sample).figure("matching")


def test_stages_figure_contains_all_shapes(explanation: Explanation, tmp_path: Path) -> None:
    write_stages_figure(explanation.stages, (1, 3, 64, 64), "tiny", tmp_path / "stages.svg")
    drawn = (tmp_path / "stages.svg").read_text()
    shapes = {stage.part: stage.outputs for stage in explanation.stages}
    for part in ("backbone", "encoder", "decoder", "heads.class_head", "heads.box_head"):
        for shape in shapes[part]:
            assert str(shape) in drawn
