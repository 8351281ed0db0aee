"""Exported models as engines of a `Detector`.

Input: a `Batch`. Output: `Predictions`, for files with raw outputs and with post-processing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional as F

from detrkit.checkpoints.export_formats import export_format_of
from detrkit.config.model_validation import check_image_size
from detrkit.errors import CheckpointError, DatasetError
from detrkit.inference.engines.metadata import ExportMetadata
from detrkit.ops.boxes import xyxy_to_cxcywh
from detrkit.ops.padding import infer_stride
from detrkit.structures import Batch, ClassScores, ComputedMasks, Predictions


@runtime_checkable
class Session(Protocol):
    """Runs an exported network; inputs and outputs are tensors by name."""

    def run(self, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Run the network.

        Raises:
            CheckpointError: the network fails, because the file is damaged.
        """


class ExportedEngine:
    """An exported network (an `Engine`)."""

    def __init__(self, session: Session, metadata: ExportMetadata, source: object) -> None:
        self.session = session
        self.metadata = metadata
        self.config = metadata.model
        self.source = source

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the path of the file instead of its session, which lives in this process."""
        if not isinstance(self.source, Path):
            raise TypeError("only engines of exported files can be pickled")
        path = self.source.absolute()
        return _reopen, (path, self.metadata, _size_of(path))

    def __repr__(self) -> str:
        return f"ExportedEngine({str(self.source)!r}, precision={self.metadata.precision!r})"

    @torch.inference_mode()
    def predict(self, batch: Batch) -> Predictions:
        """Predict a batch. Models with masks predict image by image, because padding changes the masks of exported graphs.

        Raises:
            CheckpointError: the outputs do not match the metadata.
            ConfigError, DatasetError: see `check_size`.
        """
        if self.config.mask_head and self._is_padding_invariant and batch.is_padded:
            return _concatenate([self.predict(image) for image in batch.one_by_one()])
        self.check_size((batch.images.shape[-2], batch.images.shape[-1]))
        images, padding_mask = pad_to_min_side(batch.images, batch.padding_mask, self.metadata.min_side)
        inputs = {"images": images, "padding_mask": padding_mask}
        if self.metadata.postprocess:
            inputs["sizes"] = torch.ones(len(images), 2, dtype=torch.int64)  # boxes stay relative to the image
        outputs = self.session.run(inputs)
        self._check(outputs, len(images))
        predictions = self._to_predictions(outputs)
        return _remove_padding(predictions, images, batch.images)

    def check_size(self, size: tuple[int, int]) -> None:
        """Check the size of a resized image: its minimum applies to models that are not padding invariant.

        Raises:
            ConfigError: a ViT cannot cut it into patches and windows.
            DatasetError: the image would have to be padded, which would change its detections.
        """
        check_image_size(size, self.config.size_divisor)
        min_side = self.metadata.min_side
        if min(size) < min_side and not self._is_padding_invariant:
            raise DatasetError(
                f"image: resized to {size[1]} x {size[0]} px, expected at least {min_side} px per side for {self.source}, "
                "which is not padding invariant; predict it with the checkpoint"
            )

    @property
    def _is_padding_invariant(self) -> bool:
        return self.config.supports_padding_invariance and self.metadata.preprocessing.padding_invariant

    def _check(self, outputs: Mapping[str, Tensor], batch_size: int) -> None:
        classes = self.config.num_classes
        logits = classes + (self.config.class_scores == "softmax")
        queries = self.config.detections_per_image if self.metadata.postprocess else self.config.num_queries
        last_axis = {"class_logits": (logits,), "boxes": (4,), "scores": (), "labels": ()}
        for name in self.metadata.output_names:
            shape = tuple(outputs[name].shape) if name in outputs else None
            expected = (batch_size, queries, *last_axis.get(name, ()))
            if shape is None or (shape[:2] if name == "masks" else shape) != expected:
                raise CheckpointError(
                    f"{self.source}: output {name!r} has shape {shape}, expected {expected}; export it again"
                )
        labels = outputs.get("labels")
        if labels is not None and ((labels < 0) | (labels >= classes)).any():
            raise CheckpointError(f"{self.source}: found labels outside of 0 .. {classes - 1}; export it again")

    def _to_predictions(self, outputs: Mapping[str, Tensor]) -> Predictions:
        if self.metadata.postprocess:
            scores, labels = outputs["scores"].float(), outputs["labels"].long()
            logits = scores_to_logits(scores, labels, self.config.num_classes, self.config.class_scores)
            boxes = xyxy_to_cxcywh(outputs["boxes"].float())
        else:
            logits, boxes = outputs["class_logits"].float(), outputs["boxes"].float()
        masks = outputs.get("masks")
        return Predictions(
            logits[None],
            boxes[None],
            mask_source=None if masks is None else ComputedMasks(masks),
            class_scores=self.config.class_scores,
            max_detections=self.config.detections_per_image,
        )


def _reopen(path: Path, metadata: ExportMetadata, size: int) -> ExportedEngine:
    """Open a file again in the process that unpickles a detector.

    Raises:
        CheckpointError: the file is missing, or another one.
    """
    format = export_format_of(path)
    if format is None:
        raise CheckpointError(f"{path}: no such exported model, which this detector was pickled with; copy it there")
    engine = format.read(path)
    assert isinstance(engine, ExportedEngine)
    if engine.metadata != metadata or _size_of(path) != size:
        raise CheckpointError(f"{path}: is not the exported model that this detector was pickled with; load it again")
    return engine


def _size_of(path: Path) -> int:
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files)


def _concatenate(parts: Sequence[Predictions]) -> Predictions:
    """Concatenate the predictions of single images; masks are padded by replication, as `PanopticHead` does."""
    masks = [one.masks for one in parts if one.masks is not None]
    height, width = (max(mask.shape[axis] for mask in masks) for axis in (2, 3))
    padded = [F.pad(mask, (0, width - mask.shape[3], 0, height - mask.shape[2]), mode="replicate") for mask in masks]
    return replace(
        parts[0],
        layer_class_logits=torch.cat([one.layer_class_logits for one in parts], 1),
        layer_boxes=torch.cat([one.layer_boxes for one in parts], 1),
        mask_source=ComputedMasks(torch.cat(padded)),
    )


def _remove_padding(
    predictions: Predictions, images: Float[Tensor, "B C _ _"], original: Float[Tensor, "B C _ _"]
) -> Predictions:
    """Remove the padding of `pad_to_min_side` from masks."""
    masks = predictions.masks
    if masks is None:
        return predictions
    height, width = (
        -(-length // infer_stride(padded, cells))
        for length, padded, cells in zip(original.shape[2:], images.shape[2:], masks.shape[2:], strict=True)
    )
    return replace(predictions, mask_source=ComputedMasks(masks[:, :, :height, :width]))


def pad_to_min_side(
    images: Float[Tensor, "B C H W"], padding_mask: Bool[Tensor, "B H W"], side: int
) -> tuple[Float[Tensor, "B C _ _"], Bool[Tensor, "B _ _"]]:
    """Pad a batch to a minimum side in pixels."""
    right, bottom = (max(0, side - length) for length in (images.shape[-1], images.shape[-2]))
    if not right and not bottom:
        return images, padding_mask
    return F.pad(images, (0, right, 0, bottom)), F.pad(padding_mask, (0, right, 0, bottom), value=True)


def scores_to_logits(
    scores: Float[Tensor, "B Q"], labels: Int64[Tensor, "B Q"], num_classes: int, class_scores: ClassScores = "softmax"
) -> Float[Tensor, "B Q K1"]:
    """Return class logits whose probabilities are the scores of the best classes; the rest is "no object" for softmax."""
    if class_scores == "sigmoid":
        logits = torch.full((*scores.shape, num_classes), -torch.inf)
        return logits.scatter(-1, labels[..., None], torch.logit(scores)[..., None])
    logits = torch.full((*scores.shape, num_classes + 1), -torch.inf)
    logits[..., -1] = torch.log1p(-scores)
    return logits.scatter(-1, labels[..., None], scores.log()[..., None])
