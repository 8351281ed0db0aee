"""Distributions of edges and selected cells packed for the page."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from detrkit.explain.edges import query_edges
from detrkit.explain.packing import ArrayLocation, BinaryBlock, PackedMaps, pack
from detrkit.models.attention.recording import RecordedAttention
from detrkit.models.attention.recording_deformable import DeformableAttentionInputs
from detrkit.models.queries.selection import QuerySelection
from detrkit.visualization.draw import level_color


@dataclass(frozen=True)
class PackedEdges:
    """Distributions of the left, top, right and bottom edge.

    Attributes:
        probabilities: (queries, layers, edges, bins).
        distances: (queries, edges, bins) in pixels of the image, ascending; outwards is positive.
        references: (queries, [left, top, right, bottom]) that the distances start from, in pixels.
        quality: (queries, layers), added to the class logits.
    """

    probabilities: PackedMaps
    distances: ArrayLocation
    references: ArrayLocation
    quality: ArrayLocation


def pack_edges(block: BinaryBlock, attention: RecordedAttention, queries: Sequence[int]) -> PackedEdges | None:
    """Pack the distributions of queries; None if the model has none."""
    distributions = attention.predictions.distributions
    if distributions is None:
        return None
    edges = [query_edges(distributions, query, attention.grid.original) for query in queries]

    def add(values: list[Tensor]) -> ArrayLocation:
        return block.add(torch.stack(values).numpy())

    return PackedEdges(
        probabilities=pack(block, torch.stack([one.probabilities for one in edges])),
        distances=add([one.distances for one in edges]),
        references=add([one.reference for one in edges]),
        quality=add([one.quality for one in edges]),
    )


def pack_selection(block: BinaryBlock, selection: QuerySelection | None) -> dict[str, Any] | None:
    """Pack the cells of all queries: level, row and column, score, class, and locations of boxes in pixels."""
    if selection is None:
        return None
    boxes = {"areas": selection.areas, "anchors": selection.anchors, "boxes": selection.boxes}
    return {
        "cells": torch.cat([selection.levels[:, None], selection.positions], dim=1).tolist(),
        "scores": [round(score, 4) for score in selection.scores.tolist()],
        "labels": None if selection.labels is None else selection.labels.tolist(),
        "isValid": selection.is_valid.tolist(),
        **{name: asdict(block.add(values.numpy())) for name, values in boxes.items()},
    }


def levels_of(attention: RecordedAttention, strides: Sequence[int]) -> list[dict[str, Any]]:
    """Describe the feature maps that are sampled or that cells are selected from, finest first; else none."""
    first = attention.layers["decoder_cross"][0]
    if attention.selection is not None:
        sizes = attention.selection.sizes
    elif isinstance(first, DeformableAttentionInputs):
        sizes = first.features.sizes
    else:
        return []
    return [
        {"cells": size, "stride": stride, "color": level_color(level)}
        for level, (size, stride) in enumerate(zip(sizes, strides, strict=True))
    ]
