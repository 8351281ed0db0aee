"""Panoptic segments of one image."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, overload

import torch
from jaxtyping import Bool, Int32
from torch import Tensor

from detrkit._internal.notebook import html_table, png_bytes
from detrkit.structures.collection import Position, Selection, resolve_index, summary

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class PanopticSegment:
    """One segment of an image: a thing, or all pixels of one class of stuff.

    Attributes:
        id: value of its pixels in `PanopticSegments.ids`, 1 or more.
        label: class in 0 .. K-1.
        category_id: the dataset's own id of the class.
        is_thing: True for countable classes (things), False for stuff.
        score: 0 .. 1.
        area: in pixels.
        class_name: name of the class.
    """

    id: int
    label: int
    category_id: int
    is_thing: bool
    score: float
    area: int
    class_name: str = ""


@dataclass(frozen=True, eq=False, repr=False)
class PanopticSegments:
    """Panoptic segmentation of one image: a collection of `PanopticSegment`.

    `len`, iteration and an integer index go over the segments; a slice, a boolean mask or indices select some of them and
    leave the pixels of the others without a segment.

    Attributes:
        ids: segment id of every pixel of the original image; 0 for pixels without a segment.
        segments: the segments.
        image: the original image, if it was kept for drawing.
        path: of the image file.
    """

    ids: Int32[Tensor, "H W"]
    segments: tuple[PanopticSegment, ...]
    image: Image | None = None
    path: str | None = None

    def __len__(self) -> int:
        return len(self.segments)

    def __iter__(self) -> Iterator[PanopticSegment]:
        return iter(self.segments)

    @overload
    def __getitem__(self, index: Position) -> PanopticSegment: ...
    @overload
    def __getitem__(self, index: Selection) -> PanopticSegments: ...
    def __getitem__(self, index: Position | Selection) -> PanopticSegment | PanopticSegments:
        chosen = resolve_index(index, len(self))
        if isinstance(chosen, int):
            return self.segments[chosen]
        kept = tuple(self.segments[number] for number in chosen.tolist())
        kept_ids = torch.tensor([segment.id for segment in kept], dtype=self.ids.dtype, device=self.ids.device)
        return replace(self, ids=self.ids.where(torch.isin(self.ids, kept_ids), 0), segments=kept)

    def __repr__(self) -> str:
        names = (segment.class_name for segment in self.segments)
        height, width = self.ids.shape
        return f"PanopticSegments({summary('segment', names, (height, width))})"

    def mask(self, segment: PanopticSegment) -> Bool[Tensor, "H W"]:
        """Mask of one segment."""
        return self.ids == segment.id

    def enlarge(self, factor: int) -> PanopticSegments:
        """Enlarge the map by an integer factor; areas stay those of the original image."""
        return replace(self, ids=self.ids.repeat_interleave(factor, 0).repeat_interleave(factor, 1))

    def to_list(self) -> list[dict[str, Any]]:
        """List the segments as in JSON: id, name, category_id, is_thing, score, area (without the map)."""
        return [
            {
                "id": segment.id,
                "name": segment.class_name,
                "category_id": segment.category_id,
                "is_thing": segment.is_thing,
                "score": round(segment.score, 6),
                "area": segment.area,
            }
            for segment in self.segments
        ]

    def draw(self, image: Image | None = None) -> Image:
        """Draw the segments on a copy of the image.

        Args:
            image: of the size of the map; default: `self.image`.

        Raises:
            ValueError: neither image is known.
        """
        from detrkit.visualization.draw import draw_segments

        image = image or self.image
        if image is None:
            raise ValueError("draw: these segments hold no image; pass it, as in segments.draw(image)")
        return draw_segments(image, self)

    def _repr_png_(self) -> bytes | None:
        return None if self.image is None else png_bytes(self.draw())

    def _repr_html_(self) -> str | None:
        if self.image is not None:  # notebooks prefer HTML to the drawn image
            return None
        rows = [(one.class_name, one.is_thing, one.score, one.area) for one in self.segments]
        return html_table(("class", "thing", "score", "area (px)"), rows, repr(self))
