"""Pictures for papers: legible, whole, the same every time."""

from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from detrkit import ConfigError, Detector, Sample, build_model
from detrkit.explain.explanation import Explanation, explain
from detrkit.explain.figures import FIGURES, FigureName, FigureOptions, draw_figure, write_figure, write_stages_figure
from detrkit.explain.stages import capture_stage_io
from detrkit.models.attention.recording_deformable import DeformableAttentionInputs
from detrkit.visualization.figures import COLUMN_WIDTH, PAGE_WIDTH


def texts(figure: Figure) -> list[Text]:
    figure.draw_without_rendering()
    return [text for text in figure.findobj(Text) if text.get_visible() and text.get_text()]  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.parametrize("points", [((10.0, 20.0),), tuple((8.0 * i, 5.0 * i) for i in range(9))])
def test_pictures_are_legible_and_whole(
    name: FigureName, points: tuple[tuple[float, float], ...], explanation: Explanation
) -> None:
    wish = FigureOptions(points=points, queries=(0,) if len(points) == 1 else (0, 1, 2, 3, 4))
    figure = draw_figure(name, explanation, wish)
    width, height = figure.get_size_inches() * figure.dpi
    assert figure.get_figwidth() in (COLUMN_WIDTH, PAGE_WIDTH)
    for text in texts(figure):
        assert text.get_fontsize() >= 7
        place = text.get_window_extent()
        assert place.x0 >= -1, text
        assert place.x1 <= width + 1, text
        assert place.y0 >= -1, text
        assert place.y1 <= height + 1, text


@pytest.mark.parametrize("suffix", [".svg", ".png", ".pdf"])
def test_the_same_picture_gives_the_same_file(suffix: str, explanation: Explanation, tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}{suffix}" for number in range(2)]
    for path in paths:
        write_figure("decoder", explanation, path, FigureOptions(queries=(3, 1)))
    assert paths[0].read_bytes() == paths[1].read_bytes()
    if suffix == ".png":
        with Image.open(paths[0]) as picture:
            assert picture.width == round(300 * PAGE_WIDTH)
    if suffix == ".svg":
        assert "<svg" in paths[0].read_text()


def test_layers_heads_and_points_change_the_picture(explanation: Explanation, tmp_path: Path) -> None:
    wishes = [
        FigureOptions(points=((10, 20),)),
        FigureOptions(points=((80, 20),)),
        FigureOptions(points=((10, 20),), layer=0),
        FigureOptions(points=((10, 20),), head=3),
    ]
    for number, wish in enumerate(wishes):
        write_figure("encoder", explanation, tmp_path / f"{number}.png", wish)
    assert len({(tmp_path / f"{number}.png").read_bytes() for number in range(4)}) == 4


@pytest.mark.parametrize("content", ["box", "memory"])
def test_proposed_queries_are_a_stage_that_reads_the_scene(content: str) -> None:
    model = build_model("detrkit-s", num_queries=6, hidden_dim=64, two_stage_content=content).eval()
    with capture_stage_io(model) as passages:
        model(torch.zeros(1, 3, 64, 64))
    queries = next(one for one in passages if one.part == "query_source")
    assert queries.takes
    assert queries.gives
    assert queries.gives[0] == (1, 6, 64)
    assert queries.code == "models/queries/two_stage.py"


def test_sampled_points_are_dots_of_the_chosen_layer_and_head(deformable_detector: Detector, sample: Sample) -> None:
    found = explain(
        deformable_detector.model, deformable_detector.preprocessing, deformable_detector.categories, sample
    )
    for wish, heads in (
        (FigureOptions(queries=(2,), layer=1, head=5), [5]),
        (FigureOptions(queries=(2,), layer=1), None),
    ):
        figure = draw_figure("decoder", found, wish)
        dots = [one for one in figure.findobj(PathCollection) if len(one.get_offsets())]
        inputs = found.attention.inputs("decoder_cross", 1)
        assert isinstance(inputs, DeformableAttentionInputs)
        expected = inputs.sampling_points(heads, [2]).points.flatten(0, -2)
        assert len(dots) == 1
        np.testing.assert_allclose(dots[0].get_offsets(), expected.numpy(), atol=1e-3)


@pytest.mark.parametrize(
    ("name", "wish", "threshold", "message"),
    [
        ("decoder", FigureOptions(), 1.0, "nothing is detected at 1"),
        ("encoder", FigureOptions(), 1.0, "choose --points"),
        ("encoder", FigureOptions(points=((96, 0),)), 0.5, "point 96,0: lies outside"),
        ("decoder", FigureOptions(queries=(9,)), 0.5, "found query 9, expected 0 to 8"),
        ("decoder", FigureOptions(head=8), 0.5, "found head 8"),
    ],
)
def test_what_cannot_be_drawn_is_one_sentence(
    name: FigureName, wish: FigureOptions, threshold: float, message: str, explanation: Explanation
) -> None:
    with pytest.raises(ConfigError, match=message):
        draw_figure(name, explanation, wish, threshold)


def test_a_matching_needs_objects(detector: Detector, sample: Sample) -> None:
    plain = explain(detector.model, detector.preprocessing, detector.categories, sample)
    with pytest.raises(ConfigError, match="add --annotations"):
        draw_figure("matching", plain)


def test_the_shapes_are_in_the_picture_of_the_stages(explanation: Explanation, tmp_path: Path) -> None:
    write_stages_figure(explanation.passages, (1, 3, 64, 64), "tiny", tmp_path / "stages.svg")
    drawn = (tmp_path / "stages.svg").read_text()
    shapes = {passage.part: passage.gives for passage in explanation.passages}
    for part in ("backbone", "encoder", "decoder", "heads.class_head", "heads.box_head"):
        for shape in shapes[part]:
            assert str(shape) in drawn
