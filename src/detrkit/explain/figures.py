"""The paper's pictures for one photo, and the shapes of a model.

Encoder attention from points (figure 3), decoder attention per object (figure 6), the matching. Input: an `Explanation`.
Output: a matplotlib figure, or a file.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from detrkit.errors import ConfigError
from detrkit.explain.explanation import Explanation
from detrkit.explain.stages import StageIO
from detrkit.models.attention.recording_deformable import DeformableAttentionInputs
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

FigureName = Literal["encoder", "decoder", "matching"]
FIGURES: tuple[FigureName, ...] = ("encoder", "decoder", "matching")
SUFFIXES = (".svg", ".png", ".pdf")
_WHITE = (255, 255, 255)
_MAX_PANELS = 11
_MAX_OBJECTS = 10  # columns of the matrix that can be read
_MAX_OTHERS = 4  # queries without object, for comparison


@dataclass(frozen=True)
class FigureOptions:
    """What to show.

    Attributes:
        points: (x, y) in pixels of the photo, from where the encoder looks; none takes the middles of detections.
        queries: whose attention to show; none takes the detections.
        layer: from 0; negative ones count from the last.
        head: from 0; None averages.
    """

    points: tuple[tuple[float, float], ...] = ()
    queries: tuple[int, ...] = ()
    layer: int = -1
    head: int | None = None

    def check(self, explanation: Explanation) -> None:
        """See that points, queries, layer and head exist.

        Raises:
            ConfigError: one of them does not.
        """
        attention = explanation.attention
        heads = None if self.head is None else [self.head]
        if self.points and not attention.layers["encoder"]:
            raise ConfigError("--points: this model has no encoder")
        for point in self.points:
            attention.grid.token_at(*point)
        attention.weights("decoder_cross", -1, heads=heads, queries=list(self.queries) or [0])


def write_figure(
    name: FigureName, explanation: Explanation, path: Path, wish: FigureOptions | None = None, threshold: float = 0.5
) -> None:
    """Draw a picture and write it; the suffix of the path (.svg, .png, .pdf) says how.

    Raises:
        ConfigError: there is nothing to show, or what is wished for does not exist.
    """
    with print_style():
        save_figure(draw_figure(name, explanation, wish, threshold), path)


def draw_figure(
    name: FigureName, explanation: Explanation, wish: FigureOptions | None = None, threshold: float = 0.5
) -> Figure:
    """Draw a picture.

    Args:
        name: which one.
        explanation: of one photo.
        wish: what to show.
        threshold: least score of the detections, where the wish names none.

    Raises:
        ConfigError: there is nothing to show, or what is wished for does not exist.
    """
    wish = wish or FigureOptions()
    wish.check(explanation)
    draw = {"encoder": _encoder_figure, "decoder": _decoder_figure, "matching": _matching_figure}[name]
    with print_style():
        return draw(explanation, wish, threshold)


def _encoder_figure(explanation: Explanation, wish: FigureOptions, threshold: float) -> Figure:
    grid = explanation.attention.grid
    boxes = explanation.layer_boxes[-1]
    middles = [(boxes[query, :2] + boxes[query, 2:]) / 2 for query in _queries(explanation, wish, threshold)]
    points = wish.points or tuple(_inside((float(x), float(y)), grid.original) for x, y in middles)
    if not points:
        raise ConfigError(f"--figure encoder: nothing is detected at {threshold:g}; choose --points x,y, in pixels")
    panels = [
        Panel(
            map=_map(explanation, "encoder", wish, grid.token_at(*point)),
            title=f"from ({point[0]:.0f}, {point[1]:.0f})",
            color=point_color(number),
            point=point,
        )
        for number, point in enumerate(points[:_MAX_PANELS])
    ]
    return draw_panels(explanation.photo, _map_size(explanation), panels, [], _where("encoder", explanation, wish))


def _decoder_figure(explanation: Explanation, wish: FigureOptions, threshold: float) -> Figure:
    queries = _queries(explanation, wish, threshold)
    if not queries:
        raise ConfigError(f"--figure decoder: nothing is detected at {threshold:g}; lower --threshold, or --queries")
    drawn = {query: _detected(explanation, query) for query in queries[:_MAX_PANELS]}
    panels = [
        Panel(
            _map(explanation, "decoder_cross", wish, query),
            f"{query}: {box.caption}",
            box.color,
            box.box,
            dots=_dots(explanation, wish, query),
        )
        for query, box in drawn.items()
    ]
    title = _where("decoder", explanation, wish)
    return draw_panels(explanation.photo, _map_size(explanation), panels, list(drawn.values()), title)


def _dots(explanation: Explanation, wish: FigureOptions, query: int) -> Float[Tensor, "K 3"] | None:
    """The points that a query samples, with their weights; None where it looks at all cells."""
    inputs = explanation.attention.inputs("decoder_cross", wish.layer)
    if not isinstance(inputs, DeformableAttentionInputs):
        return None
    found = inputs.sampling_points(None if wish.head is None else [wish.head], [query])
    return torch.cat([found.points, found.weights[..., None]], dim=-1).flatten(0, -2)


def _matching_figure(explanation: Explanation, _wish: FigureOptions, _threshold: float) -> Figure:
    matching, annotations = explanation.matching, explanation.annotations
    if matching is None or annotations is None:
        raise ConfigError("--figure matching: shows objects and who answers for them; add --annotations")
    query_of = {number: query for query, number in matching.layer_pairs[-1]}
    objects = sorted(query_of)[:_MAX_OBJECTS]
    if not objects:
        raise ConfigError("--figure matching: this photo has no objects, so there is nothing to match")
    names = explanation.categories.names
    labels = annotations.labels.tolist()
    matched = [query_of[number] for number in objects]
    order = explanation.scores_and_labels[0].argsort(descending=True, stable=True).tolist()
    others = [query for query in order if query not in query_of.values()][:_MAX_OTHERS]
    costs: np.ndarray = matching.cost[[*matched, *others]][:, objects].numpy()
    boxes = [
        one
        for number in objects
        for one in (
            DrawnBox(tuple(annotations.boxes[number].tolist()), "", _WHITE, is_dashed=True),
            DrawnBox(
                tuple(explanation.layer_boxes[-1, query_of[number]].tolist()),
                f"{number}: query {query_of[number]}",
                color_of(labels[number]),
            ),
        )
    ]
    left_out = f" (first {len(objects)} of {len(labels)} objects)" if len(objects) < len(labels) else ""
    return draw_matching(
        explanation.photo,
        boxes,
        costs,
        [f"query {query}" for query in [*matched, *others]],
        [f"{number}: {names[labels[number]]}" for number in objects],
        f"cost of each query for each object{left_out}",
    )


def write_stages_figure(passages: Sequence[StageIO], image: tuple[int, ...], title: str, path: Path) -> None:
    """Draw the shapes at every stage and write the picture.

    Args:
        passages: of a forward pass.
        image: shape of the batch that went in.
        title: above it.
        path: .svg, .png or .pdf.
    """
    shapes = {passage.part: tuple(str(shape) for shape in passage.gives) for passage in passages}
    tokens = next((str(shape) for p in passages if p.part == "encoder" for _, shape in p.takes[:1]), "")
    boxes = [
        StageBox("photo", (str(image),), 0, 0),
        StageBox("backbone", shapes["backbone"], 0, 1),
        StageBox("projection", (*shapes["input_projection"], "as tokens:", tokens), 0, 2),
        StageBox("encoder", ("with positions", *shapes["positions"], "gives memory:", *shapes["encoder"]), 0, 3),
        StageBox("queries", shapes["query_source"], 1, 2),
        StageBox("decoder", ("after every layer:", *shapes["decoder"]), 1, 3),
        StageBox("heads", ("classes:", *shapes["heads.class_head"], "boxes:", *shapes["heads.box_head"]), 1, 4),
    ]
    arrows = [("photo", "backbone"), ("backbone", "projection"), ("projection", "encoder"), ("encoder", "decoder")]
    arrows += [("queries", "decoder"), ("decoder", "heads")]
    if "mask_head" in shapes:
        boxes.append(StageBox("mask head", shapes["mask_head"], 0, 4))
        arrows.append(("encoder", "mask head"))
    with print_style():
        save_figure(draw_stages(boxes, arrows, title), path)


def _queries(explanation: Explanation, wish: FigureOptions, threshold: float) -> list[int]:
    """Those wished for, or the detections, best first."""
    if wish.queries:
        return list(wish.queries)
    scores, _ = explanation.scores_and_labels
    order = scores.argsort(descending=True, stable=True)
    return [int(query) for query in order if scores[query] >= threshold]


def _detected(explanation: Explanation, query: int) -> DrawnBox:
    scores, labels = explanation.scores_and_labels
    label = int(labels[query])
    caption = f"{explanation.categories.names[label]} {scores[query]:.2f}"
    return DrawnBox(tuple(explanation.layer_boxes[-1, query].tolist()), caption, color_of(label))


def _map(
    explanation: Explanation, kind: Literal["encoder", "decoder_cross"], wish: FigureOptions, row: int
) -> Float[Tensor, "h w"]:
    heads = None if wish.head is None else [wish.head]
    return explanation.attention.maps(kind, wish.layer, heads=heads, queries=[row]).mean(0)[0]


def _map_size(explanation: Explanation) -> tuple[float, float]:
    """(height, width) in pixels of the photo that the feature map covers."""
    grid = explanation.attention.grid
    height, width = (
        count * grid.stride * whole / side
        for count, whole, side in zip(grid.cells, grid.original, grid.resized, strict=True)
    )
    return height, width


def _where(part: Literal["encoder", "decoder"], explanation: Explanation, wish: FigureOptions) -> str:
    count = len(explanation.attention.layers["encoder" if part == "encoder" else "decoder_cross"])
    heads = "all heads" if wish.head is None else f"head {wish.head}"
    return f"layer {wish.layer % count + 1} of {count}, {heads}"


def _inside(point: tuple[float, float], size: tuple[int, int]) -> tuple[float, float]:
    """Move a point into the photo."""
    return min(max(point[0], 0), size[1] - 1), min(max(point[1], 0), size[0] - 1)
