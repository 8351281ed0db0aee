"""The `Detector`: images in, detections out."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import overload

import torch
from jaxtyping import UInt8
from numpy import ndarray
from PIL import Image
from torch import Tensor

from detrkit.checkpoints.export_formats import is_exported
from detrkit.checkpoints.hub import FolderFormat, push_checkpoint, write_model_folder
from detrkit.checkpoints.load import load_checkpoint
from detrkit.checkpoints.native import Checkpoint, Preprocessing, Thresholds
from detrkit.data.batching import collate
from detrkit.data.categories import Categories, default_categories
from detrkit.data.dataset import unannotated
from detrkit.data.images import tensor_to_image
from detrkit.data.transforms.geometry import EvalTransform
from detrkit.distributed.devices import choose_device
from detrkit.errors import ConfigError, DatasetError, arg, did_you_mean, short
from detrkit.inference.batches import BatchPostprocessor, MinScores
from detrkit.inference.engines.exported import ExportedEngine
from detrkit.inference.engines.load import load_exported
from detrkit.inference.engines.torch import Engine, TorchEngine
from detrkit.inference.images import ImageInput, read_image_input
from detrkit.inference.options import Precision, Threshold, check_threshold
from detrkit.inference.stream import StreamConfig, stream_images
from detrkit.models.attention.recording import RecordedAttention, record_attention
from detrkit.models.detr import DETR
from detrkit.ops.tiles import Tiling
from detrkit.postprocess.panoptic import MIN_SCORE, Style
from detrkit.structures import Batch, Detections, PanopticSegments, Sample


class Detector:
    """A model with its categories and preprocessing, ready to predict.

    Attributes:
        engine: runs the model: PyTorch, or the runtime of an exported file.
        categories: ids and names of its classes.
        preprocessing: how images are prepared for it.
        thresholds: score thresholds for ``threshold="auto"``; None until the model has been evaluated.
    """

    def __init__(
        self,
        engine: Engine,
        categories: Categories,
        preprocessing: Preprocessing,
        thresholds: Thresholds | None = None,
    ) -> None:
        self.engine = engine
        self.categories = categories
        self.preprocessing = preprocessing
        self.thresholds = thresholds

    def __repr__(self) -> str:
        names = short(", ".join(self.categories.names))
        return (
            f"Detector({self.engine!r}, {len(self.categories)} classes: {names[1:-1]}, "
            f"image_size={self.preprocessing.image_size})"
        )

    @property
    def model(self) -> DETR:
        """The PyTorch model, in eval mode.

        Raises:
            ConfigError: the detector was loaded from an exported file.
        """
        if not isinstance(self.engine, TorchEngine):
            raise ConfigError(
                "detector: an exported file has no PyTorch model; load the checkpoint it was exported from"
            )
        return self.engine.model

    @classmethod
    def from_model(
        cls,
        model: DETR,
        categories: Categories | Sequence[str] | None = None,
        image_size: int = 800,
        device: torch.device | str = "cpu",
        *,
        precision: Precision = "float32",
        compile_model: bool = False,
    ) -> Detector:
        """Wrap a model, which is put into eval mode.

        Args:
            model: a model that was built or trained elsewhere.
            categories: the classes of the model, or their names in the order of the labels. Default: numbers.
            image_size: shorter side in pixels to which images are resized.
            device: device to predict on.
            precision: see `TorchEngine`.
            compile_model: compile the model, which makes the first prediction slow and later ones faster.

        Raises:
            ConfigError: the number of categories differs from the number of classes of the model.
        """
        if categories is None:
            categories = default_categories(model.config.num_classes)
        elif not isinstance(categories, Categories):
            categories = Categories(tuple(range(len(categories))), tuple(categories))
        if len(categories) != model.config.num_classes:
            raise ConfigError(
                f"{arg('categories')}: found {len(categories)} categories for a model with {model.config.num_classes} "
                "classes; pass one category per class"
            )
        preprocessing = Preprocessing(image_size=image_size)
        engine = TorchEngine(model, torch.device(device), preprocessing.padding_invariant, precision, compile_model)
        return cls(engine, categories, preprocessing)

    @classmethod
    def load(
        cls,
        source: Path | str,
        device: torch.device | str = "cpu",
        *,
        precision: Precision = "float32",
        compile_model: bool = False,
    ) -> Detector:
        """Load a detector.

        Args:
            source: run folder, weights file (detrkit's `.safetensors`, an official `.pth`), Hugging Face folder or hub id,
                preset name, or a file or folder written by `detrkit.export`, which runs on the CPU.
            device: device to predict on; ``"auto"`` is a GPU if there is one.
            precision: see `TorchEngine`.
            compile_model: compile the model, which makes the first prediction slow and later ones faster.

        Raises:
            CheckpointError: the source does not exist, or is not a detection transformer.
            ConfigError: there is no such device, an exported file is loaded to another device than the CPU, or the library
                that runs it is not installed.
        """
        if is_exported(source):
            if str(device) != "auto" and not str(device).startswith("cpu"):
                raise ConfigError(
                    f"{arg('device', str(device))}: exported files predict on the CPU ({source}); use 'cpu'"
                )
            exported = load_exported(Path(source))
            metadata = exported.metadata
            return cls(exported, metadata.named_categories, metadata.preprocessing, metadata.thresholds)
        chosen = choose_device(device)
        return cls.from_checkpoint(load_checkpoint(source), chosen, precision=precision, compile_model=compile_model)

    @classmethod
    def from_checkpoint(
        cls,
        checkpoint: Checkpoint,
        device: torch.device | str = "cpu",
        *,
        precision: Precision = "float32",
        compile_model: bool = False,
    ) -> Detector:
        """Make a detector from a checkpoint in memory."""
        padding_invariant = checkpoint.preprocessing.padding_invariant
        engine = TorchEngine(checkpoint.build(), torch.device(device), padding_invariant, precision, compile_model)
        return cls(engine, checkpoint.categories, checkpoint.preprocessing, checkpoint.thresholds)

    @classmethod
    def from_pretrained(cls, source: Path | str, device: torch.device | str = "cpu") -> Detector:
        """Load a detector written by `save_pretrained` or `push_to_hub`; the same as `load`.

        Raises:
            CheckpointError: the source does not exist, or is not a detection transformer.
        """
        return cls.load(source, device)

    def save_pretrained(
        self,
        folder: Path | str,
        *,
        format: FolderFormat = "detrkit",
        metrics: Mapping[str, float] | None = None,
        licence: str | None = None,
    ) -> None:
        """Write a folder with the weights and a model card; an existing card is kept.

        Args:
            folder: folder to write.
            format: "detrkit", or what `transformers` reads: "huggingface" (timm's backbone) or "huggingface-no-timm".
            metrics: for the card, such as AP, 0 to 1, by name.
            licence: for the card, as the hub names it, such as "apache-2.0". Default: left open in the card.

        Raises:
            CheckpointError: Hugging Face's DETR has no such variant.
            ConfigError: the folder cannot be written, or the detector was loaded from an exported file.
        """
        folder = Path(folder)
        write_model_folder(
            folder, self.to_checkpoint(), format, folder.resolve().name, metrics=metrics, licence=licence
        )

    def push_to_hub(
        self,
        repo_id: str,
        *,
        format: FolderFormat = "detrkit",
        metrics: Mapping[str, float] | None = None,
        licence: str | None = None,
        private: bool = False,
        token: str | None = None,
    ) -> str:
        """Upload what `save_pretrained` writes to the Hugging Face hub.

        Args:
            repo_id: OWNER/NAME; created if it does not exist.
            format: see `save_pretrained`.
            metrics: see `save_pretrained`.
            licence: see `save_pretrained`.
            private: make a new repository private.
            token: access token with write permission. Default: the token of `hf auth login`.

        Returns:
            The URL of the repository.

        Raises:
            CheckpointError: the hub cannot be reached, or rejects the upload.
            ConfigError: the id is malformed, there is no token, or the detector was loaded from an exported file.
        """
        return push_checkpoint(
            self.to_checkpoint(), format, repo_id, metrics=metrics, licence=licence, private=private, token=token
        )

    def to_checkpoint(self) -> Checkpoint:
        """Return everything that `from_checkpoint` needs.

        Raises:
            ConfigError: the detector was loaded from an exported file.
        """
        state = self.model.state_dict()
        return Checkpoint(state, self.model.config, self.categories, self.preprocessing, self.thresholds)

    @overload
    def predict(  # type: ignore[overload-overlap]  # a str is a sequence of str, too
        self, images: ImageInput, threshold: Threshold = ...
    ) -> Detections: ...

    @overload
    def predict(self, images: Sequence[ImageInput], threshold: Threshold = ...) -> list[Detections]: ...

    def predict(
        self, images: ImageInput | Sequence[ImageInput], threshold: Threshold = 0.5
    ) -> Detections | list[Detections]:
        """Detect the objects in one image, or in each of several.

        Args:
            images: a path, Pillow image, (H, W, C) uint8 array or (C, H, W) uint8 tensor with the model's number of
                channels (RGB); or a list of them, predicted as one batch (one per image size if the model is not padding
                invariant). The detections of an image do not depend on the others.
            threshold: minimum score of a detection, 0 to 1; "auto" uses the thresholds that evaluation stored.

        Returns:
            Detections, best first; a list of them for a list of images.

        Raises:
            DatasetError: an image cannot be read.
            ConfigError: the threshold is out of range, or "auto" for a model that has not been evaluated.
        """
        min_scores = self.resolve_threshold(threshold)
        given = _as_list(images)
        pixels, batch = self._prepare(given)
        detections = [] if batch is None else self._detect(batch, min_scores)
        results = [
            replace(one, image=tensor_to_image(own), path=_path_of(image))
            for one, own, image in zip(detections, pixels, given, strict=True)
        ]
        return results if given is images else results[0]

    def predict_segments(
        self, images: ImageInput | Sequence[ImageInput], threshold: Threshold = "auto", style: Style = "corrected"
    ) -> PanopticSegments | list[PanopticSegments]:
        """Predict the panoptic segments of one image, or of each of several.

        Args:
            images: as in `predict`.
            threshold: minimum score of a query; "auto" uses the threshold that evaluation stored, or the published 0.85.
            style: "corrected", "reference" (the published code with its defects) or "huggingface"; see
                `postprocess.panoptic`.

        Raises:
            DatasetError: an image cannot be read.
            ConfigError: the model has no mask head, or the threshold is out of range.
        """
        min_score = self.resolve_segment_threshold(threshold)
        given = _as_list(images)
        pixels, batch = self._prepare(given)
        segments = [] if batch is None else self._postprocessor.segment(batch, min_score, style)
        results = [
            replace(one, image=tensor_to_image(own), path=_path_of(image))
            for one, own, image in zip(segments, pixels, given, strict=True)
        ]
        return results if given is images else results[0]

    def attention(self, image: ImageInput) -> RecordedAttention:
        """Predict one image and record its attention; the matrices are computed on request.

        `detector.attention(image).maps("decoder_cross", layer=-1, rows=[7])` returns the maps of query 7, one per head.

        Raises:
            DatasetError: the image cannot be read.
            ConfigError: the detector was loaded from an exported file.
        """
        model = self.model
        _, batch = self._prepare([image])
        assert batch is not None
        return record_attention(model, batch)[0]

    def stream(
        self,
        images: Iterable[ImageInput],
        threshold: Threshold = 0.5,
        *,
        batch_size: int = 1,
        workers: int = 2,
        classes: Collection[str] | None = None,
        tiling: Tiling | None = None,
        keep_images: bool = True,
        on_error: Callable[[ImageInput, DatasetError], None] | None = None,
    ) -> Generator[Detections, None, None]:
        """Detect the objects in any number of images, in bounded memory.

        Threads read images ahead. Images of similar size among the next few share a batch; detections still come in the
        order of the images. Closing the generator ends the threads.

        Args:
            images: any iterable, consumed only as far ahead as needed; otherwise as in `predict`.
            threshold: as in `predict`.
            batch_size: images, or tiles of one image, per batch.
            workers: threads that read images; 0 reads them in the calling thread.
            classes: names of the classes to return. Default: all.
            tiling: also predict large images tile by tile, and merge (`postprocess.merge`).
            keep_images: attach the images to the detections; without them less memory is used, and nothing can be drawn.
            on_error: called with an unreadable image and its error; the image is skipped. Default: the error is raised.

        Raises:
            DatasetError: an image cannot be read, and there is no `on_error`.
            ConfigError: a setting is out of range, or there is no such class.
        """
        config = StreamConfig(
            self.resolve_threshold(threshold), batch_size, workers, self.resolve_classes(classes), tiling, keep_images
        )
        return stream_images(self, images, config, on_error)

    @property
    def max_padding(self) -> float:
        """Maximum share of padding in a batch of images that were not passed together.

        With more than a quarter, a smaller batch is faster. 0 for models that are not padding invariant: detections must
        not depend on the other images of a batch.
        """
        return 0.25 if self._postprocessor.is_padding_invariant else 0.0

    def preprocess(self, pixels: UInt8[Tensor, "C H W"]) -> Sample:
        """Resize an image for the model. Thread-safe.

        Raises:
            DatasetError: the image is too small for an exported model.
        """
        sample = EvalTransform(self.preprocessing.image_size)(unannotated(pixels))
        if isinstance(self.engine, ExportedEngine):
            self.engine.check_size((sample.image.shape[-2], sample.image.shape[-1]))
        return sample

    def predict_samples(self, samples: Sequence[Sample], min_scores: MinScores) -> list[Detections]:
        """Predict one batch of preprocessed images; boxes are in pixels of the original images.

        Args:
            samples: from `preprocess`.
            min_scores: from `resolve_threshold`.
        """
        return self._detect(collate(samples), min_scores)

    def resolve_threshold(self, threshold: Threshold) -> MinScores:
        """Return the minimum score of all labels, or of each label for "auto".

        Raises:
            ConfigError: the threshold is out of range, or "auto" for a model that has not been evaluated.
        """
        if threshold != "auto":
            return check_threshold(threshold)
        if self.thresholds is None:
            raise ConfigError(
                f"{arg('threshold', threshold)} needs thresholds stored in the model, and this one has none; store them by "
                f"an evaluation with {arg('store_thresholds', True)}, or pass a score between 0 and 1"
            )
        return self.thresholds.of(self.categories.ids)

    def resolve_segment_threshold(self, threshold: Threshold) -> float:
        """Return the minimum score of a query in panoptic segments.

        Raises:
            ConfigError: the model has no mask head, or the threshold is out of range.
        """
        if not self.engine.config.mask_head:
            raise ConfigError("segments: this model has no mask head; train a preset whose name ends in -panoptic")
        if threshold != "auto":
            return check_threshold(threshold)
        stored = None if self.thresholds is None else self.thresholds.segments
        return MIN_SCORE if stored is None else stored

    def resolve_classes(self, classes: Collection[str] | None) -> frozenset[int] | None:
        """Return the labels of the classes with the given names; None (all classes) stays None.

        Raises:
            ConfigError: there is no such class.
        """
        if classes is None:
            return None
        names = self.categories.names
        for name in classes:
            if name not in names:
                raise ConfigError(f"{arg('classes', name)} is not a class of this model; {did_you_mean(name, names)}")
        return frozenset(label for label, name in enumerate(names) if name in classes)

    @property
    def _postprocessor(self) -> BatchPostprocessor:
        return BatchPostprocessor(self.engine, self.categories, self.preprocessing)

    def _prepare(self, images: Sequence[ImageInput]) -> tuple[list[UInt8[Tensor, "C _ _"]], Batch | None]:
        pixels = [read_image_input(image, self.engine.config.in_channels) for image in images]
        return pixels, collate([self.preprocess(one) for one in pixels]) if pixels else None

    def _detect(self, batch: Batch, min_scores: MinScores) -> list[Detections]:
        with_segments = self.engine.config.mask_head and self.categories.is_thing is not None
        min_segment_score = self.resolve_segment_threshold("auto") if with_segments else None
        return self._postprocessor.detect(batch, min_scores, min_segment_score)


def _as_list(images: ImageInput | Sequence[ImageInput]) -> Sequence[ImageInput]:
    return [images] if isinstance(images, Path | str | Image.Image | ndarray | Tensor) else images


def _path_of(image: ImageInput) -> str | None:
    return str(image) if isinstance(image, Path | str) else None
