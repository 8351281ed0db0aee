"""Parts that figures of an explanation share: their options, and the attention maps, points and boxes that they draw."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from detrkit.explain.explanation import Explanation
from detrkit.models.attention.recording_deformable import DeformableAttentionInputs
from detrkit.models.attention.recording_windows import WindowAttentionInputs
from detrkit.visualization.draw import color_of
from detrkit.visualization.figures import Dots, DrawnBox

MAX_PANELS = 11


@dataclass(frozen=True)
class FigureOptions:
    """Contents of a figure.

    Attributes:
        points: (x, y) in pixels of the image, for "encoder"; empty: centers of the detections.
        queries: queries to show; empty: the detections.
        layer: from 0; negative numbers count from the last.
        head: from 0; None averages all heads.
    """

    points: tuple[tuple[float, float], ...] = ()
    queries: tuple[int, ...] = ()
    layer: int = -1
    head: int | None = None

    @property
    def heads(self) -> list[int] | None:
        """The selected head as a list; None for all."""
        return None if self.head is None else [self.head]


def shown_queries(explanation: Explanation, options: FigureOptions) -> list[int]:
    """Return the selected queries, or the detections by descending score."""
    return list(options.queries) or explanation.detected_queries()


def drawn_query(explanation: Explanation, query: int) -> DrawnBox:
    """Return the box of a query after the last layer, with its class and score."""
    label = int(explanation.labels[query])
    caption = f"{explanation.categories.names[label]} {explanation.scores[query]:.2f}"
    return DrawnBox(tuple(explanation.boxes[query].tolist()), caption, color_of(label))


def attention_map(
    explanation: Explanation, kind: Literal["encoder", "decoder_cross"], options: FigureOptions, query: int
) -> Float[Tensor, "h w"]:
    """Return the attention of a query or token in the chosen layer and head."""
    return explanation.attention.maps(kind, options.layer, heads=options.heads, queries=[query]).mean(0)[0]


def window_box(explanation: Explanation, options: FigureOptions, cell: int) -> tuple[float, ...] | None:
    """Return the window of a ViT that a cell attends to in the chosen block; None if it attends to all cells."""
    inputs = explanation.attention.inputs("encoder", options.layer)
    return inputs.window_box(cell) if isinstance(inputs, WindowAttentionInputs) else None


def map_size(explanation: Explanation) -> tuple[float, float]:
    """Return (height, width) of the area that the feature map covers, in pixels of the image."""
    grid = explanation.attention.grid
    height, width = (
        count * grid.stride * whole / side
        for count, whole, side in zip(grid.cells, grid.original, grid.resized, strict=True)
    )
    return height, width


def layer_title(kind: Literal["encoder", "decoder_cross"], explanation: Explanation, options: FigureOptions) -> str:
    """Name the layer and the head, counted from 1 as on the page."""
    count = len(explanation.attention.layers[kind])
    heads = "all heads" if options.head is None else f"head {options.head + 1}"
    return f"layer {options.layer % count + 1} of {count}, {heads}"


def dots(explanation: Explanation, options: FigureOptions, query: int) -> Dots | None:
    """Return the sampling points of a query, and their reference; None if the attention is dense."""
    inputs = explanation.attention.inputs("decoder_cross", options.layer)
    if not isinstance(inputs, DeformableAttentionInputs):
        return None
    sampled = inputs.sampling_points(options.heads, [query])
    boxes = sampled.reference_boxes
    return Dots(
        torch.cat([sampled.points, sampled.weights[..., None]], dim=-1).flatten(0, -2),
        tuple(sampled.levels) * len(sampled.points),
        tuple(sampled.reference_points[0, 0].tolist()),
        None if boxes is None else tuple(boxes[0].tolist()),
    )


def level_names(explanation: Explanation) -> list[str]:
    """Name the feature maps that are sampled or that cells are selected from, finest first."""
    return [f"level {number} ({stride} px)" for number, stride in enumerate(explanation.config.strides, 1)]
