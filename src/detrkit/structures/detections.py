"""Detections of one image."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from detrkit._internal.notebook import html_table, png_bytes
from detrkit.errors import import_optional
from detrkit.ops.masks import binarize_masks, encode_masks
from detrkit.structures.collection import Position, Selection, resolve_index, summary
from detrkit.structures.panoptic import PanopticSegments

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class LowResMasks:
    """Mask logits of the objects of one image at the mask head's resolution, resized to the image on demand.

    Attributes:
        logits: over the padded image.
        padded_size: (height, width) of the padded image.
        size: (height, width) of the resized image within it, top left.
        original_size: (height, width) of the original image.
    """

    logits: Float[Tensor, "N h w"]
    padded_size: tuple[int, int]
    size: tuple[int, int]
    original_size: tuple[int, int]

    def select(self, index: Int64[Tensor, "n"]) -> LowResMasks:
        """Select masks by index."""
        return replace(self, logits=self.logits[index])

    def scale(self, factor: float) -> LowResMasks:
        """Masks of the original image enlarged by a factor."""
        height, width = (round(side * factor) for side in self.original_size)
        return replace(self, original_size=(height, width))

    def to_masks(self, threshold: float = 0.5) -> Bool[Tensor, "N H W"]:
        """Masks of the original image: pixels whose probability exceeds the threshold."""
        return binarize_masks(self.logits, self.padded_size, self.size, self.original_size, threshold)


@dataclass(frozen=True)
class Detection:
    """One detected object; what iterating over `Detections` yields.

    Attributes:
        box: x1, y1, x2, y2 in pixels of the original image.
        score: 0 .. 1.
        label: class in 0 .. K-1.
        category_id: the dataset's own id of the class.
        class_name: name of the class.
        low_res_mask: mask of this object alone, of models with a mask head.
    """

    box: tuple[float, float, float, float]
    score: float
    label: int
    category_id: int
    class_name: str
    low_res_mask: LowResMasks | None = None

    @property
    def mask(self) -> Bool[Tensor, "H W"] | None:
        """Mask of the object in the original image, of models with a mask head."""
        return None if self.low_res_mask is None else self.low_res_mask.to_masks()[0]


@dataclass(frozen=True, eq=False, repr=False)
class Detections:
    """Objects detected in one image, by descending score: a collection of `Detection`.

    `len`, iteration and an integer index go over single objects (`Detection`); a slice, a boolean mask or indices select
    some of them (`Detections`), for example ``detections[detections.scores > 0.7]`` or ``detections[:10]``. In a notebook
    it shows the image with boxes, or a table if the image was not kept.

    Attributes:
        boxes: xyxy in pixels of the original image.
        scores: 0 .. 1.
        labels: classes in 0 .. K-1.
        category_ids: the dataset's own ids of the classes.
        class_names: names of the classes.
        image: the original image, if it was kept for drawing.
        path: of the image file.
        size: (height, width) of the original image in pixels.
        queries: index of the query that predicted each object; None if several views were merged.
        low_res_masks: of models with a mask head.
        segments: panoptic segments, of panoptic models; not affected by selections.
    """

    boxes: Float[Tensor, "N 4"]
    scores: Float[Tensor, "N"]
    labels: Int64[Tensor, "N"]
    category_ids: Int64[Tensor, "N"]
    class_names: tuple[str, ...]
    image: Image | None = None
    path: str | None = None
    size: tuple[int, int] | None = None
    queries: Int64[Tensor, "N"] | None = None
    low_res_masks: LowResMasks | None = None
    segments: PanopticSegments | None = None

    @property
    def masks(self) -> Bool[Tensor, "N H W"] | None:
        """Masks in the original image, of models with a mask head; computed at every access."""
        return None if self.low_res_masks is None else self.low_res_masks.to_masks()

    def __len__(self) -> int:
        return len(self.scores)

    def __iter__(self) -> Iterator[Detection]:
        return (self[number] for number in range(len(self)))

    @overload
    def __getitem__(self, index: Position) -> Detection: ...
    @overload
    def __getitem__(self, index: Selection) -> Detections: ...
    def __getitem__(self, index: Position | Selection) -> Detection | Detections:
        chosen = resolve_index(index, len(self))
        return self._one(chosen) if isinstance(chosen, int) else self._select(chosen)

    def _one(self, index: int) -> Detection:
        x1, y1, x2, y2 = self.boxes[index].tolist()
        return Detection(
            box=(x1, y1, x2, y2),
            score=float(self.scores[index]),
            label=int(self.labels[index]),
            category_id=int(self.category_ids[index]),
            class_name=self.class_names[index],
            low_res_mask=None if self.low_res_masks is None else self.low_res_masks.select(torch.tensor([index])),
        )

    def _select(self, index: Int64[Tensor, "n"]) -> Detections:
        return replace(
            self,
            boxes=self.boxes[index],
            scores=self.scores[index],
            labels=self.labels[index],
            category_ids=self.category_ids[index],
            class_names=tuple(self.class_names[number] for number in index.tolist()),
            queries=None if self.queries is None else self.queries[index],
            low_res_masks=None if self.low_res_masks is None else self.low_res_masks.select(index),
        )

    @property
    def areas(self) -> Float[Tensor, "N"]:
        """Areas of the boxes in square pixels."""
        return (self.boxes[:, 2:] - self.boxes[:, :2]).clamp(min=0).prod(1)

    def filter(
        self,
        *,
        min_score: float | None = None,
        classes: Any = None,
        min_area: float | None = None,
        max_area: float | None = None,
    ) -> Detections:
        """Select by score, class and area; for anything else, index with a mask: ``detections[detections.scores > 0.7]``.

        Args:
            min_score: minimum score.
            classes: names or category ids to keep: one, several separated by commas, or any iterable.
            min_area: minimum area of the box in square pixels.
            max_area: maximum area of the box in square pixels.
        """
        keep = torch.ones(len(self), dtype=torch.bool)
        if min_score is not None:
            keep &= self.scores.cpu() >= min_score
        if classes is not None:
            pairs = zip(self.class_names, self.category_ids.tolist(), strict=True)
            chosen = self._chosen_classes(classes)
            keep &= torch.tensor([not chosen.isdisjoint(pair) for pair in pairs], dtype=torch.bool)
        if min_area is not None:
            keep &= self.areas.cpu() >= min_area
        if max_area is not None:
            keep &= self.areas.cpu() <= max_area
        return self[keep]

    def _chosen_classes(self, classes: Any) -> set[str | int]:
        if isinstance(classes, str):
            return {classes} if classes in self.class_names else {name.strip() for name in classes.split(",")}
        several = classes if isinstance(classes, Iterable) else [classes]
        return {str(one) if isinstance(one, str) else int(one) for one in several}

    def with_labels(self, labels: Collection[int] | None) -> Detections:
        """Select the objects with these `labels`; None selects all."""
        if labels is None:
            return self
        return self[[number for number, label in enumerate(self.labels.tolist()) if label in labels]]

    def __repr__(self) -> str:
        return f"Detections({summary('object', self.class_names, self.size)})"

    def scale(self, factor: float) -> Detections:
        """Multiply boxes and masks by `factor`, for an enlarged image."""
        masks = None if self.low_res_masks is None else self.low_res_masks.scale(factor)
        return replace(self, boxes=self.boxes * factor, size=None, low_res_masks=masks, segments=None)

    def translate(self, offset: tuple[float, float]) -> Detections:
        """Add `offset`, (x, y) in pixels, to the boxes, for the image that this one is a crop of; masks are dropped."""
        boxes = self.boxes + torch.tensor([*offset, *offset], dtype=self.boxes.dtype)
        return replace(self, boxes=boxes, size=None, queries=None, low_res_masks=None, segments=None)

    def to_coco(self, image_id: int) -> list[dict[str, Any]]:
        """Convert to COCO results of image `image_id`: boxes as xywh in pixels, ids of the dataset, masks as RLE."""
        results = [
            {"image_id": image_id, "category_id": category_id, "bbox": [x1, y1, x2 - x1, y2 - y1], "score": score}
            for (x1, y1, x2, y2), category_id, score in zip(
                self.boxes.tolist(), self.category_ids.tolist(), self.scores.tolist(), strict=True
            )
        ]
        return [{**result, **mask} for result, mask in zip(results, self._encoded_masks("segmentation"), strict=True)]

    def to_list(self) -> list[dict[str, Any]]:
        """List the objects as in JSON: name, category_id, score, box (xyxy in pixels) and mask (COCO run lengths)."""
        objects = [
            {"name": name, "category_id": category_id, "score": round(score, 6), "box": [round(x, 3) for x in box]}
            for name, category_id, score, box in zip(
                self.class_names, self.category_ids.tolist(), self.scores.tolist(), self.boxes.tolist(), strict=True
            )
        ]
        return [{**one, **mask} for one, mask in zip(objects, self._encoded_masks("mask"), strict=True)]

    def to_dict(self) -> dict[str, Any]:
        """Return `objects` and, of panoptic models, `segments`, as in JSON."""
        content: dict[str, Any] = {"objects": self.to_list()}
        return content if self.segments is None else {**content, "segments": self.segments.to_list()}

    def to_json(self) -> str:
        """Return the image's path and `to_dict` as a JSON document."""
        return json.dumps({"image": self.path, **self.to_dict()}, ensure_ascii=False, indent=2)

    def _encoded_masks(self, key: str) -> list[dict[str, Any]]:
        masks = self.masks
        if masks is None:
            return [{}] * len(self)
        return [{key: encoded} for encoded in encode_masks(masks)]

    def to_supervision(self) -> Any:
        """Convert to `supervision.Detections`.

        `class_id` holds the labels 0 .. K-1; `data` holds `class_name` and `category_id`.

        Raises:
            ConfigError: the package is not installed.
        """
        supervision = import_optional("supervision", "to_supervision", "supervision")
        masks = self.masks
        return supervision.Detections(
            xyxy=self.boxes.cpu().numpy(),
            confidence=self.scores.cpu().numpy(),
            class_id=self.labels.cpu().numpy(),
            mask=None if masks is None else masks.numpy(),
            data={"class_name": np.array(self.class_names, dtype=str), "category_id": self.category_ids.cpu().numpy()},
        )

    def to_pandas(self) -> Any:
        """Convert to a `pandas.DataFrame` with a row per object; x1, y1, x2, y2 are in pixels of the original image.

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
        """Convert to YOLO rows "label cx cy width height", relative to the image, to which boxes are clipped.

        Args:
            size: (height, width) of the image in pixels; default: `self.size`.
            with_scores: add the score as a sixth column.

        Raises:
            ValueError: the size is unknown.
        """
        size = size or self.size
        if size is None:
            raise ValueError("to_yolo: the image's size is unknown; pass size=(height, width)")
        height, width = size
        limits = torch.tensor([width, height, width, height], dtype=torch.float32)
        corners = self.boxes.cpu().clamp(min=0).minimum(limits) / limits
        centers, sides = (corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]
        rows = []
        for label, score, center, side in zip(
            self.labels.tolist(), self.scores.tolist(), centers.tolist(), sides.tolist(), strict=True
        ):
            if min(side) > 0:
                values = [*center, *side, score] if with_scores else [*center, *side]
                rows.append(" ".join([str(label), *(f"{value:.6f}" for value in values)]) + "\n")
        return "".join(rows)

    def draw(self, image: Image | None = None) -> Image:
        """Draw boxes and masks, or the segments of a panoptic model, on a copy of the image.

        Args:
            image: of the original size; default: `self.image`.

        Raises:
            ValueError: neither image is known.
        """
        from detrkit.visualization.draw import draw_detections, draw_segments

        image = image or self.image
        if image is None:
            raise ValueError("draw: these detections hold no image; pass it, as in detections.draw(image)")
        return draw_detections(image, self) if self.segments is None else draw_segments(image, self.segments)

    def _repr_png_(self) -> bytes | None:
        return None if self.image is None else png_bytes(self.draw())

    def _repr_html_(self) -> str | None:
        if self.image is not None:  # notebooks prefer HTML to the drawn image
            return None
        rows = [(one.class_name, one.score, *(round(value, 1) for value in one.box)) for one in self]
        return html_table(("class", "score", "x1", "y1", "x2", "y2"), rows, repr(self))
