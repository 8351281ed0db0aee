"""The nouns that travel between the rooms.

Boxes are xyxy in pixels in `Annotations`, `Sample` and `Detections`, and cxcywh relative to the image without padding in
`Target` and `Predictions`; `data.batching` and `postprocess.boxes` convert. Sizes are (height, width). A padding mask is
True on padding.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int32, Int64, UInt8
from torch import Tensor

from detrkit.errors import import_optional
from detrkit.ops.padding import stride_of

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Annotations:
    """The objects of one photo."""

    boxes: Float[Tensor, "N 4"]  # xyxy in pixels
    labels: Int64[Tensor, "N"]  # 0 .. K-1
    masks: Bool[Tensor, "N H W"] | None = None


@dataclass(frozen=True)
class Sample:
    """One photo with its objects, on the way through the transforms."""

    image: UInt8[Tensor, "C H W"]
    annotations: Annotations
    image_id: int
    original_size: tuple[int, int]  # (height, width) of the photo on disk, EXIF orientation honoured


@dataclass(frozen=True)
class Target:
    """What the model should have said about one photo."""

    boxes: Float[Tensor, "N 4"]  # cxcywh relative to the image without padding
    labels: Int64[Tensor, "N"]
    masks: Bool[Tensor, "N H W"] | None = (
        None  # of this image without padding, which batches add on the right and below
    )

    def to(self, device: torch.device | str) -> Target:
        """Copy to a device, without waiting for it."""
        masks = None if self.masks is None else self.masks.to(device, non_blocking=True)
        return Target(self.boxes.to(device, non_blocking=True), self.labels.to(device, non_blocking=True), masks)

    def pin_memory(self) -> Target:
        """Move to page-locked memory."""
        masks = None if self.masks is None else self.masks.pin_memory()
        return Target(self.boxes.pin_memory(), self.labels.pin_memory(), masks)


@dataclass(frozen=True)
class Batch:
    """Photos padded at the bottom and on the right to a common size, normalised, with their targets."""

    images: Float[Tensor, "B C H W"]
    padding_mask: Bool[Tensor, "B H W"]
    targets: list[Target]
    image_ids: list[int]
    sizes: list[tuple[int, int]]  # of the images, without padding
    original_sizes: list[tuple[int, int]]  # of the photos on disk

    def to(self, device: torch.device | str) -> Batch:
        """Copy to a device, without waiting for it."""
        return replace(
            self,
            images=self.images.to(device, non_blocking=True),
            padding_mask=self.padding_mask.to(device, non_blocking=True),
            targets=[target.to(device) for target in self.targets],
        )

    @property
    def is_padded(self) -> bool:
        """Whether any photo was padded: their sizes differ. Known without looking at the mask."""
        return len(set(self.sizes)) > 1

    def unpadded(self) -> list[Batch]:
        """Photos of one size each, without padding, in the order of the first of them."""
        of_size: dict[tuple[int, int], list[int]] = {}
        for index, size in enumerate(self.sizes):
            of_size.setdefault(size, []).append(index)
        return [self._of(indices, size) for size, indices in of_size.items()]

    def one_by_one(self) -> list[Batch]:
        """Every photo alone, without padding."""
        return [self._of([index], size) for index, size in enumerate(self.sizes)]

    def _of(self, indices: Sequence[int], size: tuple[int, int]) -> Batch:
        height, width = size
        return Batch(
            images=self.images[list(indices), :, :height, :width],
            padding_mask=self.padding_mask[list(indices), :height, :width],
            targets=[self.targets[index] for index in indices if self.targets],
            image_ids=[self.image_ids[index] for index in indices],
            sizes=[size] * len(indices),
            original_sizes=[self.original_sizes[index] for index in indices],
        )

    def pin_memory(self) -> Batch:
        """Move to page-locked memory (called by the data loader)."""
        return replace(
            self,
            images=self.images.pin_memory(),
            padding_mask=self.padding_mask.pin_memory(),
            targets=[target.pin_memory() for target in self.targets],
        )


ClassScores = Literal["softmax", "sigmoid"]  # one of K classes or no object; or a yes or no for every class


@dataclass(frozen=True)
class EncoderProposals:
    """What the encoder says about every cell, where queries start from its best boxes (two-stage Deformable DETR)."""

    class_logits: Float[Tensor, "B S K"]
    boxes: Float[Tensor, "B S 4"]  # as in `Predictions`


# what queries beside the model's own are there for, while training
AuxiliaryKind = Literal["group", "hybrid", "denoising"]


@dataclass(frozen=True)
class MaskInputs:
    """What the mask head draws from, kept until it is known for which queries."""

    decoded: Float[Tensor, "B Q D"]  # after the last decoder layer
    memory: Float[Tensor, "B D h w"]  # the encoder's output
    projected: Float[Tensor, "B D h w"]  # the backbone's last feature map at width D, before the encoder
    padding_mask: Bool[Tensor, "B h w"] | None  # of that feature map
    levels: tuple[Float[Tensor, "B _ _ _"], ...]  # the backbone's finer feature maps, coarsest first
    padded: tuple[int, int]  # (height, width) of the padded images

    @property
    def mask_size(self) -> tuple[int, int]:
        """Height and width of the masks: of the finest feature map."""
        return self.levels[-1].shape[-2], self.levels[-1].shape[-1]

    def of_photo(self, index: int, size: tuple[int, int]) -> MaskInputs:
        """One photo of the batch, cut to the cells that its (height, width) covers."""

        def cut(cells: Tensor) -> Tensor:
            # divided by the map's stride and rounded up, as convolutions do
            height, width = (
                -(-length // stride_of(whole, count))
                for length, whole, count in zip(size, self.padded, cells.shape[-2:], strict=True)
            )
            return cells[index : index + 1, ..., :height, :width]

        return MaskInputs(
            self.decoded[index : index + 1],
            cut(self.memory),
            cut(self.projected),
            None,
            tuple(cut(level) for level in self.levels),
            size,
        )


@dataclass(frozen=True)
class Predictions:
    """What the model says about a batch: class logits and one box per query, after every decoder layer.

    With softmax scores, K1 is K + 1 and the last class is "no object"; with sigmoid scores it is K. Boxes are cxcywh in
    0 .. 1, relative to each image without its padding.
    """

    layer_class_logits: Float[Tensor, "T B Q K1"]
    layer_boxes: Float[Tensor, "T B Q 4"]
    masks: Float[Tensor, "B Q h w"] | None = None  # logits, over the padded image
    mask_inputs: MaskInputs | None = None  # in place of masks, where only some queries' masks will be asked for
    class_scores: ClassScores = "softmax"
    most_detections: int | None = None  # pairs of query and class that are answered; None: as many as queries
    proposals: EncoderProposals | None = None
    extra: tuple[AuxiliaryPredictions, ...] = ()  # of queries beside the model's own

    @property
    def layer_probabilities(self) -> Float[Tensor, "T B Q K"]:
        """Score of every class, 0 .. 1, without no-object: the one place that knows how logits become scores."""
        logits = self.layer_class_logits.float()
        return logits.sigmoid() if self.class_scores == "sigmoid" else logits.softmax(-1)[..., :-1]

    @property
    def probabilities(self) -> Float[Tensor, "B Q K"]:
        """Score of every class after the last decoder layer."""
        return self.after_layer(-1).layer_probabilities[0]

    @property
    def layer_no_object(self) -> Float[Tensor, "T B Q"]:
        """How sure a query is of having found nothing: its probability, or, for sigmoids, what the best score leaves."""
        if self.class_scores == "sigmoid":
            return 1 - self.layer_probabilities.amax(-1)
        return self.layer_class_logits.float().softmax(-1)[..., -1]

    def after_layer(self, layer: int) -> Predictions:
        """What was said after one decoder layer alone; negative ones count from the last."""
        number = layer % len(self.layer_boxes)
        chosen = slice(number, number + 1)
        return replace(self, layer_class_logits=self.layer_class_logits[chosen], layer_boxes=self.layer_boxes[chosen])

    @property
    def class_logits(self) -> Float[Tensor, "B Q K1"]:
        """Class scores after the last decoder layer."""
        return self.layer_class_logits[-1]

    @property
    def boxes(self) -> Float[Tensor, "B Q 4"]:
        """Boxes after the last decoder layer."""
        return self.layer_boxes[-1]


@dataclass(frozen=True)
class AuxiliaryPredictions:
    """What queries beside the model's own say; see `models.queries.AuxiliaryQueries`."""

    helper: AuxiliaryKind
    predictions: Predictions


@dataclass(frozen=True)
class PanopticSegment:
    """One segment of a photo: a thing, or all of one kind of stuff."""

    id: int  # in the picture of ids, 1 or more
    label: int  # the dataset's own category id, as in Detections
    is_thing: bool
    score: float  # 0 .. 1
    area: int  # pixels
    name: str = ""


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
                "name": one.name,
                "category_id": one.label,
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
    labels: Int64[Tensor, "N"]  # the dataset's own category ids
    names: tuple[str, ...]
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
            names=tuple(self.names[i] for i in index.tolist()),
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
            {"image_id": image_id, "category_id": label, "bbox": [x1, y1, x2 - x1, y2 - y1], "score": score}
            for (x1, y1, x2, y2), label, score in zip(
                self.boxes.tolist(), self.labels.tolist(), self.scores.tolist(), strict=True
            )
        ]
        return [{**one, **mask} for one, mask in zip(results, self._masks_as("segmentation"), strict=True)]

    def to_objects(self) -> list[dict[str, Any]]:
        """List the objects as JSON has them: name, category_id, score, box (xyxy in pixels), mask (COCO run lengths)."""
        objects = [
            {"name": name, "category_id": label, "score": round(score, 6), "box": [round(x, 3) for x in box]}
            for name, label, score, box in zip(
                self.names, self.labels.tolist(), self.scores.tolist(), self.boxes.tolist(), strict=True
            )
        ]
        return [{**one, **mask} for one, mask in zip(objects, self._masks_as("mask"), strict=True)]

    def to_content(self) -> dict[str, Any]:
        """What was found in the photo, as JSON has it: objects, and segments where the model knows them."""
        content: dict[str, Any] = {"objects": self.to_objects()}
        return content if self.segments is None else {**content, "segments": self.segments.to_list()}

    def to_json(self) -> str:
        """Write the photo's path and `to_content` as one JSON document."""
        return json.dumps({"photo": self.path, **self.to_content()}, ensure_ascii=False, indent=2)

    def _masks_as(self, key: str) -> list[dict[str, Any]]:
        masks = self.masks
        if masks is None:
            return [{}] * len(self)
        from detrkit.ops.masks import encode_masks

        return [{key: encoded} for encoded in encode_masks(masks)]

    def to_supervision(self) -> Any:
        """Convert to `supervision.Detections`.

        Raises:
            ConfigError: the package is not installed.
        """
        supervision = import_optional("supervision", "to_supervision", "supervision")
        return supervision.Detections(
            xyxy=self.boxes.cpu().numpy(),
            confidence=self.scores.cpu().numpy(),
            class_id=self.labels.cpu().numpy(),
            data={"class_name": np.array(self.names, dtype=str)},
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
                "photo": [self.path] * len(self),
                "name": list(self.names),
                "category_id": self.labels.cpu().numpy(),
                "score": self.scores.cpu().numpy(),
                **{"x1": x1, "y1": y1, "x2": x2, "y2": y2},
            }
        )

    def to_yolo(
        self,
        category_ids: Sequence[int] | None = None,
        size: tuple[int, int] | None = None,
        *,
        with_scores: bool = False,
    ) -> str:
        """Write the objects as YOLO rows: CLASS CX CY WIDTH HEIGHT, relative to the photo, to which boxes are cut.

        Args:
            category_ids: of all classes in their order (`detector.categories.ids`), for classes 0 .. K-1; without them,
                a row's class is the category id, which for a dataset that came from YOLO is its class number.
            size: (height, width) of the photo in pixels, where these detections do not know it.
            with_scores: add the score as a sixth column.

        Raises:
            ValueError: the size is not known, or an id is not among the given ones.
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
                number = label if category_ids is None else list(category_ids).index(label)
                values = [*centre, *side, score] if with_scores else [*centre, *side]
                rows.append(" ".join([str(number), *(f"{value:.6f}" for value in values)]) + "\n")
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
