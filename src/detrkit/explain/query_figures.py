"""Figures of one query after every decoder layer, and of the cells that the queries are from."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from matplotlib.figure import Figure

from detrkit.errors import ConfigError, arg
from detrkit.explain.edges import EDGE_NAMES
from detrkit.explain.explanation import Explanation
from detrkit.explain.figure_parts import (
    MAX_PANELS,
    FigureOptions,
    attention_map,
    dots,
    drawn_query,
    level_names,
    map_size,
    shown_queries,
)
from detrkit.visualization.draw import color_of
from detrkit.visualization.figures import REFERENCE_COLOR, DrawnBox, Panel, draw_panels
from detrkit.visualization.query_figures import (
    Cell,
    DistributionRow,
    LevelCells,
    draw_distributions,
    draw_selection,
    signed,
)

_MARGIN = 0.15  # around boxes and points, relative to their extent
_MIN_VIEW = 0.2  # of the sides of the image


def layers_figure(explanation: Explanation, options: FigureOptions) -> Figure:
    """Draw attention, sampling points, reference and box of one query in every decoder layer."""
    query = _one_query(explanation, options, "layers")
    count = len(explanation.attention.layers["decoder_cross"])
    names = explanation.categories.names
    panels = []
    for layer in range(count):
        of_layer = replace(options, layer=layer)
        score, label = explanation.layer_probabilities[layer, query].max(-1)
        panels.append(
            Panel(
                attention_map(explanation, "decoder_cross", of_layer, query),
                f"layer {layer + 1}: {names[int(label)]} {score:.2f}",
                color_of(int(label)),
                tuple(explanation.layer_boxes[layer, query].tolist()),
                dots=dots(explanation, of_layer, query),
            )
        )
    view = _surroundings(panels, explanation.image.size)
    panels = [replace(panel, view=view) for panel in panels]
    heads = "all heads" if options.head is None else f"head {options.head + 1}"
    boxes = [drawn_query(explanation, query), DrawnBox(view, "", (255, 255, 255))]
    title = f"query {query}, {heads}"
    return draw_panels(explanation.image, map_size(explanation), panels, boxes, title, level_names(explanation))


def distributions_figure(explanation: Explanation, options: FigureOptions) -> Figure:
    """Draw the distributions of the edges of one query's box after every decoder layer (D-FINE)."""
    query = _one_query(explanation, options, "distributions")
    edges = explanation.edge_distributions(query)
    rows = [
        DistributionRow(f"layer {layer}", f"quality {signed(quality, 2)}", probabilities.numpy(), tuple(moved.tolist()))
        for layer, (quality, probabilities, moved) in enumerate(
            zip(edges.quality.tolist(), edges.probabilities, edges.moved, strict=True), 1
        )
    ]
    reference = DrawnBox(tuple(edges.reference.tolist()), "", REFERENCE_COLOR, is_dashed=True)
    boxes = [reference, drawn_query(explanation, query)]
    return draw_distributions(explanation.image, boxes, f"query {query}", EDGE_NAMES, edges.distances.numpy(), rows)


def selection_figure(explanation: Explanation, options: FigureOptions) -> Figure:
    """Draw the cells that the queries are from, by feature level, and the anchors and boxes of some of them."""
    selection = explanation.selected_cells()
    chosen = [query for query in shown_queries(explanation, options) if query < len(selection.levels)][:MAX_PANELS]
    strides = explanation.config.strides
    of_level: list[list[Cell]] = [[] for _ in selection.sizes]
    for query, level in enumerate(selection.levels.tolist()):
        is_valid = bool(selection.is_valid[query])
        of_level[level].append(
            Cell(
                area=tuple(selection.areas[query].tolist()),
                score=float(selection.scores[query]),
                caption=f"{query}: {selection.scores[query]:.2f}" if query in chosen else "",
                color=color_of(int(explanation.labels[query])),
                anchor=tuple(selection.anchors[query].tolist()) if query in chosen and is_valid else None,
                box=tuple(selection.boxes[query].tolist()) if query in chosen and is_valid else None,
            )
        )
    levels = [
        LevelCells(f"level {number} ({height} × {width} of {stride} px): {len(cells)}", tuple(cells))  # noqa: RUF001
        for number, (cells, (height, width), stride) in enumerate(
            zip(of_level, selection.sizes, strides, strict=True), 1
        )
    ]
    title = f"cells of {len(selection.levels)} queries"
    return draw_selection(explanation.image, levels, [drawn_query(explanation, query) for query in chosen], title)


def _surroundings(panels: Sequence[Panel], size: tuple[int, int]) -> tuple[float, ...]:
    """Return the part of the image (width, height) around boxes and points of all panels, xyxy, in its proportions."""
    all_dots = [panel.dots for panel in panels if panel.dots is not None]
    boxes = [
        box for box in (*(panel.box for panel in panels), *(one.reference_box for one in all_dots)) if box is not None
    ]
    points = [point for one in all_dots for point in one.values[:, :2].tolist()]
    corners = torch.tensor([*points, *(box[:2] for box in boxes), *(box[2:] for box in boxes)])
    whole = torch.tensor(size, dtype=torch.float32)
    corners = torch.minimum(corners.clamp(min=0), whole)
    low, high = corners.amin(0), corners.amax(0)
    share = min(1.0, max(float(((high - low) / whole).max()) * (1 + 2 * _MARGIN), _MIN_VIEW))
    start = torch.minimum(((low + high - share * whole) / 2).clamp(min=0), (1 - share) * whole)
    return tuple(torch.cat([start, start + share * whole]).tolist())


def _one_query(explanation: Explanation, options: FigureOptions, name: str) -> int:
    """Return the selected query, or the one with the highest score."""
    if len(options.queries) > 1:
        raise ConfigError(
            f"{arg('figure', name)} shows one query, but {arg('queries')} has {len(options.queries)}; pass one, and draw a "
            "figure for each."
        )
    return options.queries[0] if options.queries else explanation.ranked_queries()[0]
