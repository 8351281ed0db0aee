"""Panoptic segments of one image."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from jaxtyping import Bool, Int32
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class PanopticSegment:
    """One segment of a photo: a thing, or all of one kind of stuff."""

    id: int  # in the picture of ids, 1 or more
    label: int  # 0 .. K-1
    category_id: int  # the dataset's own
    is_thing: bool
    score: float  # 0 .. 1
    area: int  # pixels
    class_name: str = ""


@dataclass(frozen=True)
class PanopticSegments:
    """What every pixel of one photo belongs to."""

    ids: Int32[Tensor, "H W"]  # of the original photo's pixels; 0 where no segment is
    segments: tuple[PanopticSegment, ...]
    image: Image | None = None  # the photo itself, when the caller may want to draw on it
    path: str | None = None

    def __len__(self) -> int:
        return len(self.segments)

    def enlarged(self, factor: int) -> PanopticSegments:
        """Segments of the photo enlarged by a whole number; areas stay those of the original."""
        return replace(self, ids=self.ids.repeat_interleave(factor, 0).repeat_interleave(factor, 1))

    def mask(self, segment: PanopticSegment) -> Bool[Tensor, "H W"]:
        """The pixels of a segment."""
        return self.ids == segment.id

    def to_list(self) -> list[dict[str, Any]]:
        """List the segments, without the map, as JSON has them."""
        return [
            {
                "id": one.id,
                "name": one.class_name,
                "category_id": one.category_id,
                "is_thing": one.is_thing,
                "score": round(one.score, 6),
                "area": one.area,
            }
            for one in self.segments
        ]

    def draw(self) -> Image:
        """Draw the segments on a copy of the photo."""
        from detrkit.visualization.segments import draw_segments

        if self.image is None:
            raise ValueError(
                "these segments hold no photo; use detrkit.visualization.segments.draw_segments(photo, segments)"
            )
        return draw_segments(self.image, self)
