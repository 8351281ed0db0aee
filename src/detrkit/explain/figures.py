"""Figures for print.

Encoder attention of points (paper, figure 3), decoder attention of detections (figure 6), the matching, and the tensor
shapes of a model. Figures of one query's layers and of the selected cells are in `query_figures.py`.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from detrkit._internal.provenance import refuse_foreign_overwrite
from detrkit.errors import ConfigError, arg, did_you_mean
from detrkit.explain.explanation import Explanation, FigureName
from detrkit.explain.figure_parts import (
    MAX_PANELS,
    FigureOptions,
    attention_map,
    dots,
    drawn_query,
    layer_title,
    level_names,
    map_size,
    shown_queries,
    window_box,
)
from detrkit.explain.query_figures import distributions_figure, layers_figure, selection_figure
from detrkit.explain.stages import StageIO
from detrkit.visualization.draw import color_of
from detrkit.visualization.figures import (
    DrawnBox,
    Panel,
    StageBox,
    draw_matching,
    draw_panels,
    draw_stages,
    point_color,
    print_style,
    save_figure,
)

SUFFIXES = (".svg", ".png", ".pdf")
_WHITE = (255, 255, 255)
_MAX_OBJECTS = 10  # columns of the cost matrix that stay legible
_MAX_UNMATCHED = 4  # unmatched queries shown for comparison


def draw_figure(explanation: Explanation, name: FigureName, options: FigureOptions | None = None) -> Figure:
    """Draw a figure of an explanation.

    Raises:
        ConfigError: there is nothing to show, or there is no such figure, point, layer or head.
    """
    options = options or FigureOptions()
    drawings: dict[str, Callable[[Explanation, FigureOptions], Figure]] = {
        "encoder": _encoder_figure,
        "decoder": _decoder_figure,
        "layers": layers_figure,
        "distributions": distributions_figure,
        "selection": selection_figure,
        "matching": _matching_figure,
    }
    if name not in drawings:
        raise ConfigError(f"{arg('figure', name)} is not a figure; {did_you_mean(name, drawings)}.")
    with print_style():
        return drawings[name](explanation, options)


def write_figure(figure: Figure, path: Path) -> None:
    """Write a figure as .svg, .png or .pdf.

    Raises:
        ConfigError: the file has another suffix, or was not written by detrkit and would be overwritten.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"{path} is not the name of a figure; expected the suffix {', '.join(SUFFIXES)}.")
    refuse_foreign_overwrite(path)
    with print_style():
        save_figure(figure, path)


def _encoder_figure(explanation: Explanation, options: FigureOptions) -> Figure:
    grid = explanation.attention.grid
    if not explanation.attention.layers["encoder"]:
        raise ConfigError(f"{arg('figure', 'encoder')} cannot be drawn: this model has no encoder layers.")
    boxes = explanation.boxes
    centers = [(boxes[query, :2] + boxes[query, 2:]) / 2 for query in shown_queries(explanation, options)]
    points = options.points or tuple(_clamp((float(x), float(y)), grid.original) for x, y in centers)
    if not points:
        raise ConfigError(
            f"{arg('figure', 'encoder')} has nothing to show: there are no detections at "
            f"{arg('threshold', explanation.given_threshold)}. Pass {arg('points')}, or lower the threshold."
        )
    panels = [
        Panel(
            map=attention_map(explanation, "encoder", options, grid.token_at(*point)),
            title=f"from ({point[0]:.0f}, {point[1]:.0f})",
            color=point_color(index),
            point=point,
            box=window_box(explanation, options, grid.token_at(*point)),
        )
        for index, point in enumerate(points[:MAX_PANELS])
    ]
    title = layer_title("encoder", explanation, options)
    return draw_panels(explanation.image, map_size(explanation), panels, [], title)


def _decoder_figure(explanation: Explanation, options: FigureOptions) -> Figure:
    queries = shown_queries(explanation, options)
    if not queries:
        raise ConfigError(
            f"{arg('figure', 'decoder')} has nothing to show: there are no detections at "
            f"{arg('threshold', explanation.given_threshold)}. Lower it, or pass {arg('queries')}."
        )
    drawn = {query: drawn_query(explanation, query) for query in queries[:MAX_PANELS]}
    panels = [
        Panel(
            attention_map(explanation, "decoder_cross", options, query),
            f"{query}: {box.caption}",
            box.color,
            box.box,
            dots=dots(explanation, options, query),
        )
        for query, box in drawn.items()
    ]
    title = layer_title("decoder_cross", explanation, options)
    boxes = list(drawn.values())
    return draw_panels(explanation.image, map_size(explanation), panels, boxes, title, level_names(explanation))


def _matching_figure(explanation: Explanation, _options: FigureOptions) -> Figure:
    matching, annotations = explanation.matching, explanation.annotations
    if matching is None or annotations is None:
        raise ConfigError(f"{arg('figure', 'matching')} needs the ground truth; pass {arg('annotations')}.")
    query_of_object = {index: query for query, index in matching.layer_pairs[-1]}
    objects = sorted(query_of_object)[:_MAX_OBJECTS]
    if not objects:
        raise ConfigError(f"{arg('figure', 'matching')} has nothing to show: this image has no objects.")
    names, labels = explanation.categories.names, annotations.labels.tolist()
    matched = [query_of_object[index] for index in objects]
    unmatched = [query for query in explanation.ranked_queries() if query not in query_of_object.values()]
    queries = [*matched, *unmatched[:_MAX_UNMATCHED]]
    costs: np.ndarray = matching.cost[queries][:, objects].numpy()
    boxes = [
        box
        for index in objects
        for box in (
            DrawnBox(tuple(annotations.boxes[index].tolist()), "", _WHITE, is_dashed=True),
            DrawnBox(
                tuple(explanation.boxes[query_of_object[index]].tolist()),
                f"{index}: query {query_of_object[index]}",
                color_of(labels[index]),
            ),
        )
    ]
    omitted = f" (first {len(objects)} of {len(labels)} objects)" if len(objects) < len(labels) else ""
    return draw_matching(
        explanation.image,
        boxes,
        costs,
        [f"query {query}" for query in queries],
        [f"{index}: {names[labels[index]]}" for index in objects],
        f"matching cost of queries and objects{omitted}",
    )


def write_stages_figure(stages: Sequence[StageIO], image: tuple[int, ...], title: str, path: Path) -> None:
    """Draw the tensor shapes of a model and write the figure.

    Args:
        stages: of a forward pass.
        image: shape of the input batch.
        title: title of the figure.
        path: file to write, .svg, .png or .pdf.
    """
    shapes = {stage.part: tuple(str(shape) for shape in stage.outputs) for stage in stages}
    tokens = next((str(shape) for stage in stages if stage.part == "encoder" for _, shape in stage.inputs[:1]), "")
    boxes = [
        StageBox("image", (str(image),), 0, 0),
        StageBox("backbone", shapes["backbone"], 0, 1),
        StageBox("projection", (*shapes["neck.projection"], "as tokens:", tokens), 0, 2),
        StageBox("encoder", ("with positions", *shapes["neck.positions"], "memory:", *shapes["encoder"]), 0, 3),
        StageBox("queries", shapes["query_source"], 1, 2),
        StageBox("decoder", ("after every layer:", *shapes["decoder"]), 1, 3),
        StageBox("heads", ("classes:", *shapes["heads.class_head"], "boxes:", *shapes["heads.box_head"]), 1, 4),
    ]
    arrows = [("image", "backbone"), ("backbone", "projection"), ("projection", "encoder"), ("encoder", "decoder")]
    arrows += [("queries", "decoder"), ("decoder", "heads")]
    if "mask_head" in shapes:
        boxes.append(StageBox("mask head", shapes["mask_head"], 0, 4))
        arrows.append(("encoder", "mask head"))
    with print_style():
        figure = draw_stages(boxes, arrows, title)
    write_figure(figure, path)


def _clamp(point: tuple[float, float], size: tuple[int, int]) -> tuple[float, float]:
    """Move a point into the image."""
    return min(max(point[0], 0), size[1] - 1), min(max(point[1], 0), size[0] - 1)
