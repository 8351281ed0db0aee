"""Exported files as engines of a `Detector`: what lies beside the network, what goes in, and what comes out.

Input: a `Batch`. Output: `Predictions`, whichever of the two kinds of outputs the file has. The metadata is a JSON
document in the file's metadata (or beside it), which may come from anyone: every value is checked.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int64
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_serializer,
)
from torch import Tensor
from torch.nn import functional as F

from detrkit.checkpoints.native import Preprocessing, Thresholds
from detrkit.config.model import ModelConfig
from detrkit.data.categories import Categories
from detrkit.errors import CheckpointError, DatasetError
from detrkit.ops.boxes import xyxy_to_cxcywh
from detrkit.ops.padding import stride_of
from detrkit.structures import Batch, ClassScores, Predictions

FORMAT = "detrkit-export-1"
KEY = "detrkit"  # of the metadata, in metadata that hold several texts
_SMALLEST_SIDE = 64  # pixels, at least
_LONGEST_TEXT = 10_000_000  # characters: a hundred thousand classes fit

ExportPrecision = Literal["float32", "bfloat16", "int8"]


class CategoryEntry(BaseModel):
    """One class."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: int
    name: str
    isthing: bool | None = Field(None, description="whether it is countable; None where nobody said")

    @model_serializer(mode="wrap")
    def _without_what_nobody_said(self, write: Callable[[Any], Any]) -> dict[str, Any]:
        """Leave `isthing` out where it is unknown, so that files of boxes stay as older versions read them."""
        return {name: value for name, value in write(self).items() if value is not None}


class ExportMetadata(BaseModel):
    """What an exported network means."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["detrkit-export-1"]
    model: ModelConfig
    categories: tuple[CategoryEntry, ...] = Field(description="id and name, in the order of the labels")
    preprocessing: Preprocessing
    thresholds: Thresholds | None = Field(None, description="what was found best when the model was evaluated")
    precision: ExportPrecision = Field("float32", description="in which it was meant to be computed")
    postprocess: bool = Field(False, description="whether it gives scores, labels and boxes in pixels")

    @field_validator("categories")
    @classmethod
    def _ids_differ(cls, categories: tuple[CategoryEntry, ...]) -> tuple[CategoryEntry, ...]:
        _categories_of(categories)
        return categories

    @property
    def named_categories(self) -> Categories:
        """The classes as the rest of the house has them."""
        return _categories_of(self.categories)

    @property
    def input_names(self) -> tuple[str, ...]:
        """Inputs of the network, in order."""
        return ("images", "padding_mask", "sizes") if self.postprocess else ("images", "padding_mask")

    @property
    def output_names(self) -> tuple[str, ...]:
        """Outputs of the network, in order."""
        named = ("scores", "labels", "boxes") if self.postprocess else ("class_logits", "boxes")
        return (*named, "masks") if self.model.mask_head else named

    @property
    def min_side(self) -> int:
        """Pixels: below, feature maps of a single cell would need a graph of their own."""
        return min_side(self.model)

    def to_text(self) -> str:
        """Write as JSON."""
        return self.model_dump_json()

    @classmethod
    def from_text(cls, text: str | None, source: object) -> "ExportMetadata":
        """Read what `to_text` wrote.

        Raises:
            CheckpointError: it is missing, malformed, or of another version.
        """
        if text is None:
            raise CheckpointError(f"{source}: holds no metadata by detrkit; export it with detrkit export")
        if len(text) > _LONGEST_TEXT:
            raise CheckpointError(f"{source}: its metadata is longer than {_LONGEST_TEXT} characters; export it again")
        try:
            content = json.loads(text)
            if isinstance(content, dict) and content.get("format", FORMAT) != FORMAT:
                raise CheckpointError(
                    f"{source}: found format {content['format']!r}, expected {FORMAT!r}; update detrkit"
                )
            metadata = cls.model_validate(content)
        except (ValidationError, ValueError, RecursionError) as error:
            raise CheckpointError(f"{source}: its metadata is malformed ({_reason(error)}); export it again") from None
        if len(metadata.categories) != metadata.model.num_classes:
            raise CheckpointError(
                f"{source}: found {len(metadata.categories)} categories for {metadata.model.num_classes} classes; "
                "export it again"
            )
        return metadata


@runtime_checkable
class Session(Protocol):
    """Computes a network: tensors by name in, tensors by name out."""

    def run(self, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Compute once.

        Raises:
            CheckpointError: the network cannot be computed, so that the file is damaged.
        """


class ExportedEngine:
    """An exported network with its session (an `Engine`)."""

    def __init__(self, session: Session, metadata: ExportMetadata, source: object) -> None:
        self.session = session
        self.metadata = metadata
        self.config = metadata.model
        self.source = source

    def __repr__(self) -> str:
        return f"ExportedEngine({str(self.source)!r}, precision={self.metadata.precision!r})"

    @torch.inference_mode()
    def predict(self, batch: Batch) -> Predictions:
        """Predict a batch; with masks, photo by photo, since graphs draw them as published: padding changes them.

        Raises:
            CheckpointError: the network does not give what its metadata says.
            DatasetError: of `check_size`.
        """
        if self.config.mask_head and self.metadata.preprocessing.padding_invariant and batch.is_padded:
            return _together([self.predict(alone) for alone in batch.one_by_one()])
        self.check_size((batch.images.shape[-2], batch.images.shape[-1]))
        images, padding_mask = pad_to_min_side(batch.images, batch.padding_mask, self.metadata.min_side)
        inputs = {"images": images, "padding_mask": padding_mask}
        if self.metadata.postprocess:
            inputs["sizes"] = torch.ones(len(images), 2, dtype=torch.int64)  # boxes stay relative to each photo
        outputs = self.session.run(inputs)
        self._check(outputs, len(images))
        predictions = self._to_predictions(outputs)
        return replace(predictions, masks=_cut(predictions.masks, images, batch.images))

    def check_size(self, size: tuple[int, int]) -> None:
        """See whether a photo of that (height, width) is large enough; where padding stays out, none is too small.

        Raises:
            DatasetError: it would have to be padded, and be found other objects in than by the checkpoint.
        """
        least, keeps_out = self.metadata.min_side, self.config.supports_padding_invariance
        if min(size) < least and not (keeps_out and self.metadata.preprocessing.padding_invariant):
            raise DatasetError(
                f"photo: it is resized to {size[1]} x {size[0]} px, expected at least {least} px a side for {self.source}, "
                "into which padding leaks; predict it with the checkpoint that was exported"
            )

    def compute_masks(
        self, predictions: Predictions, batch: Batch, queries: Int64[Tensor, "P"], counts: Sequence[int]
    ) -> Float[Tensor, "P _ _"]:
        """Choose from the masks of all queries, which is what exported networks give."""
        assert predictions.masks is not None, "only a model with a mask head is asked for masks"
        return predictions.masks[torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)), queries]

    def _check(self, outputs: Mapping[str, Tensor], batch_size: int) -> None:
        classes = self.config.num_classes
        logits = classes + (self.config.class_scores == "softmax")
        queries = self.config.detections_per_image if self.metadata.postprocess else self.config.num_queries
        last_axis = {"class_logits": (logits,), "boxes": (4,), "scores": (), "labels": ()}
        for name in self.metadata.output_names:
            found = tuple(outputs[name].shape) if name in outputs else None
            expected = (batch_size, queries, *last_axis.get(name, ()))
            if found is None or (found[:2] if name == "masks" else found) != expected:
                raise CheckpointError(
                    f"{self.source}: its output {name!r} has shape {found}, expected {expected}; export it again"
                )
        labels = outputs.get("labels")
        if labels is not None and ((labels < 0) | (labels >= classes)).any():
            raise CheckpointError(f"{self.source}: it gives labels that are not in 0 .. {classes - 1}; export it again")

    def _to_predictions(self, outputs: Mapping[str, Tensor]) -> Predictions:
        if self.metadata.postprocess:
            scores, labels = outputs["scores"].float(), outputs["labels"].long()
            logits = scores_to_logits(scores, labels, self.config.num_classes, self.config.class_scores)
            boxes = xyxy_to_cxcywh(outputs["boxes"].float())
        else:
            logits, boxes = outputs["class_logits"].float(), outputs["boxes"].float()
        return Predictions(
            logits[None],
            boxes[None],
            outputs.get("masks"),
            class_scores=self.config.class_scores,
            max_detections=self.config.detections_per_image,
        )


def _together(alone: Sequence[Predictions]) -> Predictions:
    """Predictions of one photo each as those of a batch; masks are continued at their edges, as `PanopticHead` does."""
    masks = [one.masks for one in alone if one.masks is not None]
    height, width = (max(mask.shape[axis] for mask in masks) for axis in (2, 3))
    continued = [F.pad(mask, (0, width - mask.shape[3], 0, height - mask.shape[2]), mode="replicate") for mask in masks]
    return replace(
        alone[0],
        layer_class_logits=torch.cat([one.layer_class_logits for one in alone], 1),
        layer_boxes=torch.cat([one.layer_boxes for one in alone], 1),
        masks=torch.cat(continued),
    )


def _cut(
    masks: Float[Tensor, "B Q _ _"] | None, images: Float[Tensor, "B C _ _"], wanted: Float[Tensor, "B C _ _"]
) -> Float[Tensor, "B Q _ _"] | None:
    """Take from masks what `pad_to_min_side` added to the images."""
    if masks is None:
        return None
    height, width = (
        -(-length // stride_of(whole, cells))
        for length, whole, cells in zip(wanted.shape[2:], images.shape[2:], masks.shape[2:], strict=True)
    )
    return masks[:, :, :height, :width]


def min_side(config: ModelConfig) -> int:
    """Pixels a side of the smallest batch that a graph takes: two cells of the coarsest feature map."""
    return max(_SMALLEST_SIDE, 2 * config.strides[-1])


def pad_to_min_side(
    images: Float[Tensor, "B C H W"], padding_mask: Bool[Tensor, "B H W"], side: int
) -> tuple[Float[Tensor, "B C _ _"], Bool[Tensor, "B _ _"]]:
    """Pad a batch so that both sides are at least so long."""
    right, bottom = (max(0, side - length) for length in (images.shape[-1], images.shape[-2]))
    if not right and not bottom:
        return images, padding_mask
    return F.pad(images, (0, right, 0, bottom)), F.pad(padding_mask, (0, right, 0, bottom), value=True)


def scores_to_logits(
    scores: Float[Tensor, "B Q"], labels: Int64[Tensor, "B Q"], num_classes: int, class_scores: ClassScores = "softmax"
) -> Float[Tensor, "B Q K1"]:
    """Class logits whose softmax gives each query's best class its score, and no-object the rest; or whose sigmoid does."""
    if class_scores == "sigmoid":
        logits = torch.full((*scores.shape, num_classes), -torch.inf)
        return logits.scatter(-1, labels[..., None], torch.logit(scores)[..., None])
    logits = torch.full((*scores.shape, num_classes + 1), -torch.inf)
    logits[..., -1] = torch.log1p(-scores)
    return logits.scatter(-1, labels[..., None], scores.log()[..., None])


def make_metadata(
    config: ModelConfig,
    categories: Categories,
    preprocessing: Preprocessing,
    precision: ExportPrecision,
    postprocess: bool,
    thresholds: Thresholds | None = None,
) -> ExportMetadata:
    """Describe a network that is about to be exported."""
    entries: list[Any] = categories.to_json()
    return ExportMetadata(
        format="detrkit-export-1",
        model=config,
        categories=tuple(CategoryEntry.model_validate(entry) for entry in entries),
        preprocessing=preprocessing,
        thresholds=thresholds,
        precision=precision,
        postprocess=postprocess,
    )


def _categories_of(entries: Sequence[CategoryEntry]) -> Categories:
    return Categories.from_json([entry.model_dump() for entry in entries])


def _reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"[:150]
    return (str(error).splitlines() or [type(error).__name__])[0][:150]
