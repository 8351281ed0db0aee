"""Detections of one image."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from detrkit.errors import import_optional
from detrkit.structures.panoptic import PanopticSegments

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class LowResMasks:
    """Masks of the objects of one photo, as small as the model draws them; enlarged when they are asked for.

    Sizes are (height, width).
    """

    logits: Float[Tensor, "N h w"]  # over the padded image
    padded: tuple[int, int]  # size of the padded image
    processed: tuple[int, int]  # size of the image within it, top left
    original: tuple[int, int]  # size of the photo that was resized to it

    def keep(self, index: Int64[Tensor, "n"]) -> LowResMasks:
        """Choose some of them, in the wanted order."""
        return replace(self, logits=self.logits[index])

    def scaled(self, factor: float) -> LowResMasks:
        """Masks of the photo enlarged."""
        height, width = (round(side * factor) for side in self.original)
        return replace(self, original=(height, width))

    def cut(self, threshold: float = 0.5) -> Bool[Tensor, "N H W"]:
        """The pixels of the photo whose probability is above a threshold."""
        from detrkit.ops.masks import cut_masks

        return cut_masks(self.logits, self.padded, self.processed, self.original, threshold)


@dataclass(frozen=True)
class Detections:
    """The objects found in one photo, best first."""

    boxes: Float[Tensor, "N 4"]  # xyxy in pixels of the original photo
    scores: Float[Tensor, "N"]  # 0 .. 1
    labels: Int64[Tensor, "N"]  # 0 .. K-1
    category_ids: Int64[Tensor, "N"]  # the dataset's own
    class_names: tuple[str, ...]
    image: Image | None = None  # the photo itself, when the caller may want to draw on it
    path: str | None = None
    size: tuple[int, int] | None = None  # (height, width) of the photo
    queries: Int64[Tensor, "N"] | None = None  # which query says so; None where several views were merged
    drawn: LowResMasks | None = None  # of models with a mask head
    segments: PanopticSegments | None = None  # of models that know stuff, too; whichever objects are kept

    @property
    def masks(self) -> Bool[Tensor, "N H W"] | None:
        """Pixels of each object in the photo, of models with a mask head; enlarged anew at every call."""
        return None if self.drawn is None else self.drawn.cut()

    def __len__(self) -> int:
        return len(self.scores)

    def keep(self, chosen: Bool[Tensor, "N"] | Sequence[int]) -> Detections:
        """Select some of the objects, by a mask or by indices in the wanted order."""
        index = torch.as_tensor(chosen)
        if index.dtype == torch.bool:
            index = index.nonzero()[:, 0]
        index = index.to(torch.int64)
        return replace(
            self,
            boxes=self.boxes[index],
            scores=self.scores[index],
            labels=self.labels[index],
            category_ids=self.category_ids[index],
            class_names=tuple(self.class_names[i] for i in index.tolist()),
            queries=None if self.queries is None else self.queries[index],
            drawn=None if self.drawn is None else self.drawn.keep(index),
        )

    def scaled(self, factor: float) -> Detections:
        """Multiply boxes and masks, as if the photo had been enlarged."""
        drawn = None if self.drawn is None else self.drawn.scaled(factor)
        return replace(self, boxes=self.boxes * factor, size=None, drawn=drawn, segments=None)

    def moved(self, by: tuple[float, float]) -> Detections:
        """Add (x, y) in pixels to the boxes, as if the photo were a part of a larger one; masks are left behind."""
        boxes = self.boxes + torch.tensor([*by, *by], dtype=self.boxes.dtype)
        return replace(self, boxes=boxes, size=None, queries=None, drawn=None, segments=None)

    def to_coco(self, image_id: int) -> list[dict[str, Any]]:
        """List the objects as COCO results: xywh in pixels, category ids of the dataset; masks as run lengths."""
        results = [
            {"image_id": image_id, "category_id": category_id, "bbox": [x1, y1, x2 - x1, y2 - y1], "score": score}
            for (x1, y1, x2, y2), category_id, score in zip(
                self.boxes.tolist(), self.category_ids.tolist(), self.scores.tolist(), strict=True
            )
        ]
        return [{**one, **mask} for one, mask in zip(results, self._masks_as("segmentation"), strict=True)]

    def to_objects(self) -> list[dict[str, Any]]:
        """List the objects as JSON has them: name, category_id, score, box (xyxy in pixels), mask (COCO run lengths)."""
        objects = [
            {"name": name, "category_id": category_id, "score": round(score, 6), "box": [round(x, 3) for x in box]}
            for name, category_id, score, box in zip(
                self.class_names, self.category_ids.tolist(), self.scores.tolist(), self.boxes.tolist(), strict=True
            )
        ]
        return [{**one, **mask} for one, mask in zip(objects, self._masks_as("mask"), strict=True)]

    def to_content(self) -> dict[str, Any]:
        """What was found in the photo, as JSON has it: objects, and segments where the model knows them."""
        content: dict[str, Any] = {"objects": self.to_objects()}
        return content if self.segments is None else {**content, "segments": self.segments.to_list()}

    def to_json(self) -> str:
        """Write the photo's path and `to_content` as one JSON document."""
        return json.dumps({"image": self.path, **self.to_content()}, ensure_ascii=False, indent=2)

    def _masks_as(self, key: str) -> list[dict[str, Any]]:
        masks = self.masks
        if masks is None:
            return [{}] * len(self)
        from detrkit.ops.masks import encode_masks

        return [{key: encoded} for encoded in encode_masks(masks)]

    def to_supervision(self) -> Any:
        """Convert to `supervision.Detections`; `class_id` holds the labels 0 .. K-1, `data` class names and category ids.

        Raises:
            ConfigError: the package is not installed.
        """
        supervision = import_optional("supervision", "to_supervision", "supervision")
        return supervision.Detections(
            xyxy=self.boxes.cpu().numpy(),
            confidence=self.scores.cpu().numpy(),
            class_id=self.labels.cpu().numpy(),
            data={
                "class_name": np.array(self.class_names, dtype=str),
                "category_id": self.category_ids.cpu().numpy(),
            },
        )

    def to_pandas(self) -> Any:
        """Convert to a `pandas.DataFrame`: a row per object, its box in columns x1, y1, x2, y2 in pixels of the photo.

        Raises:
            ConfigError: the package is not installed.
        """
        pandas = import_optional("pandas", "to_pandas", "pandas")
        x1, y1, x2, y2 = self.boxes.cpu().numpy().T
        return pandas.DataFrame(
            {
                "image": [self.path] * len(self),
                "class_name": list(self.class_names),
                "label": self.labels.cpu().numpy(),
                "category_id": self.category_ids.cpu().numpy(),
                "score": self.scores.cpu().numpy(),
                **{"x1": x1, "y1": y1, "x2": x2, "y2": y2},
            }
        )

    def to_yolo(self, size: tuple[int, int] | None = None, *, with_scores: bool = False) -> str:
        """Write the objects as YOLO rows: LABEL CX CY WIDTH HEIGHT, relative to the photo, to which boxes are cut.

        Args:
            size: (height, width) of the photo in pixels, where these detections do not know it.
            with_scores: add the score as a sixth column.

        Raises:
            ValueError: the size is not known.
        """
        size = size or self.size
        if size is None:
            raise ValueError("to_yolo: these detections do not know how large the photo is; give its (height, width)")
        height, width = size
        limits = torch.tensor([width, height, width, height], dtype=torch.float32)
        corners = self.boxes.cpu().clamp(min=0).minimum(limits) / limits
        centres, sides = (corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]
        rows = []
        for label, score, centre, side in zip(
            self.labels.tolist(), self.scores.tolist(), centres.tolist(), sides.tolist(), strict=True
        ):
            if min(side) > 0:
                values = [*centre, *side, score] if with_scores else [*centre, *side]
                rows.append(" ".join([str(label), *(f"{value:.6f}" for value in values)]) + "\n")
        return "".join(rows)

    def draw(self) -> Image:
        """Draw what was found on a copy of the photo: segments where the model knows them, or else the objects."""
        from detrkit.visualization.draw import draw_detections
        from detrkit.visualization.segments import draw_segments

        if self.image is None:
            raise ValueError(
                "these detections hold no photo; use detrkit.visualization.draw.draw_detections(photo, detections)"
            )
        return draw_detections(self.image, self) if self.segments is None else draw_segments(self.image, self.segments)
