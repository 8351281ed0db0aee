"""The detector: photos in, objects out, from Python."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import overload

import torch
from jaxtyping import UInt8
from numpy import ndarray
from PIL import Image
from torch import Tensor

from detrkit.checkpoints.file import Checkpoint, Preprocessing
from detrkit.checkpoints.source import read_checkpoint
from detrkit.data.batching import collate
from detrkit.data.categories import Categories, numbered_categories
from detrkit.data.dataset import unannotated
from detrkit.data.photos import image_to_pixels, read_pixels, tensor_to_photo
from detrkit.data.transforms import TestTransform
from detrkit.errors import ConfigError, DataError
from detrkit.explain.attention import Attention, observe
from detrkit.inference.runtime import Runtime, TorchRuntime
from detrkit.models.detr import DETR
from detrkit.postprocess.boxes import to_detections
from detrkit.structures import Detections

Photo = Path | str | Image.Image | ndarray | Tensor


class Detector:
    """A model with its categories and its preprocessing, ready to predict.

    Attributes:
        runtime: what computes: PyTorch, or another engine.
        categories: ids and names of its classes.
        preprocessing: how photos are prepared for it.
    """

    def __init__(self, runtime: Runtime, categories: Categories, preprocessing: Preprocessing) -> None:
        self.runtime = runtime
        self.categories = categories
        self.preprocessing = preprocessing

    @property
    def model(self) -> DETR:
        """The DETR, in eval mode.

        Raises:
            ConfigError: the detector runs on another engine than PyTorch.
        """
        if not isinstance(self.runtime, TorchRuntime):
            raise ConfigError("detector: an exported file holds no PyTorch model; load the checkpoint it was made of")
        return self.runtime.model

    @classmethod
    def from_model(
        cls,
        model: DETR,
        categories: Categories | Sequence[str] | None = None,
        image_size: int = 800,
        device: torch.device | str = "cpu",
    ) -> Detector:
        """Wrap a model, which is put into eval mode.

        Args:
            model: built or trained elsewhere.
            categories: of the model's classes, or their names in the order of the labels; None numbers them.
            image_size: shorter side in pixels to which photos are resized.
            device: where to predict.

        Raises:
            ConfigError: the number of categories is not the model's number of classes.
        """
        if categories is None:
            categories = numbered_categories(model.config.num_classes)
        elif not isinstance(categories, Categories):
            categories = Categories(tuple(range(len(categories))), tuple(categories))
        if len(categories) != model.config.num_classes:
            raise ConfigError(
                f"detector: found {len(categories)} categories and a model with {model.config.num_classes} classes; "
                "give one category per class"
            )
        preprocessing = Preprocessing(image_size=image_size)
        runtime = TorchRuntime(model, torch.device(device), preprocessing.exact_padding)
        return cls(runtime, categories, preprocessing)

    @classmethod
    def load(cls, source: Path | str, device: torch.device | str = "cpu") -> Detector:
        """Load a detector from a run folder, a weights file, a Hugging Face folder or id, or the name of a preset.

        Raises:
            CheckpointError: nothing is there, or it is not a DETR.
        """
        return cls.from_checkpoint(read_checkpoint(source), device)

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint, device: torch.device | str = "cpu") -> Detector:
        """Make a detector of a checkpoint."""
        runtime = TorchRuntime(checkpoint.build(), torch.device(device), checkpoint.preprocessing.exact_padding)
        return cls(runtime, checkpoint.categories, checkpoint.preprocessing)

    @overload
    def predict(  # type: ignore[overload-overlap]  # a str is a sequence of str, too
        self, photos: Photo, threshold: float = ...
    ) -> Detections: ...

    @overload
    def predict(self, photos: Sequence[Photo], threshold: float = ...) -> list[Detections]: ...

    def predict(self, photos: Photo | Sequence[Photo], threshold: float = 0.5) -> Detections | list[Detections]:
        """Find the objects in one photo, or in each of several.

        Args:
            photos: path, Pillow image, (H, W, C) uint8 array or (C, H, W) uint8 tensor, with the model's number of
                channels (RGB); or a list of them, which is predicted as one batch. A photo's objects do not depend on
                the others in its batch.
            threshold: least score of an object to be returned, 0 .. 1.

        Raises:
            DataError: a photo cannot be read.
            ConfigError: the threshold is out of range.
        """
        if not 0 <= threshold <= 1:
            raise ConfigError(f"threshold: found {threshold}, expected a score between 0 and 1")
        if isinstance(photos, Path | str | Image.Image | ndarray | Tensor):
            return self._predict_batch([photos], threshold)[0]
        return self._predict_batch(list(photos), threshold) if photos else []

    def attention(self, photo: Photo) -> Attention:
        """Look at one photo and keep what is needed to see who attended to what; matrices are computed when asked for.

        `detector.attention(photo).maps("decoder_cross", layer=-1, rows=[7])` is where query 7 looked, per head.

        Raises:
            DataError: the photo cannot be read.
            ConfigError: the detector runs on another engine than PyTorch.
        """
        sample = unannotated(_open(photo, self.runtime.config.in_channels))
        batch = collate([TestTransform(self.preprocessing.image_size)(sample)])
        return observe(self.model, batch, exact_padding=self.preprocessing.exact_padding)[0]

    def _predict_batch(self, photos: Sequence[Photo], threshold: float) -> list[Detections]:
        opened = [_open(photo, self.runtime.config.in_channels) for photo in photos]
        transform = TestTransform(self.preprocessing.image_size)
        batch = collate([transform(unannotated(pixels)) for pixels in opened])
        predictions = self.runtime.predict(batch)
        found = to_detections(predictions, batch.original_sizes, self.categories.ids, self.categories.names, threshold)
        return [
            Detections(
                boxes=one.boxes,
                scores=one.scores,
                labels=one.labels,
                names=one.names,
                image=tensor_to_photo(pixels),
                path=str(photo) if isinstance(photo, Path | str) else None,
            )
            for one, pixels, photo in zip(found, opened, photos, strict=True)
        ]


def _open(photo: Photo, channels: int) -> UInt8[Tensor, "C H W"]:
    if isinstance(photo, Path | str):
        return read_pixels(photo, channels=channels)
    if isinstance(photo, Image.Image):
        return image_to_pixels(photo, channels)
    shape = photo.shape if isinstance(photo, Tensor) else photo.shape[-1:] + photo.shape[:-1]
    if len(shape) != 3 or shape[0] != channels or str(photo.dtype).removeprefix("torch.") != "uint8":
        raise DataError(
            f"photo: found an array of shape {tuple(photo.shape)} and type {photo.dtype}, "
            f"expected uint8, (H, W, {channels}) as an array or ({channels}, H, W) as a tensor"
        )
    return photo.cpu() if isinstance(photo, Tensor) else torch.from_numpy(photo.copy()).movedim(-1, 0)
