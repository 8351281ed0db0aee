"""The `Detector`: images in, detections out."""

from __future__ import annotations

import copy
from collections.abc import Generator, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, overload

import torch
from jaxtyping import UInt8
from torch import Tensor

from detrkit.checkpoints.export_formats import is_exported
from detrkit.checkpoints.hub import FolderFormat, push_checkpoint, write_model_folder
from detrkit.checkpoints.load import load_checkpoint
from detrkit.checkpoints.named_model import NamedModel
from detrkit.checkpoints.native import Checkpoint, Preprocessing, Thresholds, default_preprocessing
from detrkit.data.batching import collate
from detrkit.data.categories import Categories
from detrkit.data.dataset import unannotated
from detrkit.distributed.devices import choose_device
from detrkit.errors import ConfigError, arg, short
from detrkit.inference.batches import BatchPostprocessor, MinScores
from detrkit.inference.classes import ClassFilter, as_categories, select_labels
from detrkit.inference.engines.exported import ExportedEngine
from detrkit.inference.engines.load import load_exported
from detrkit.inference.engines.torch import Engine, TorchEngine, check_precision
from detrkit.inference.images import ImageInput, as_iterable, is_one_image, read_image_input, read_images
from detrkit.inference.options import Threshold, check_threshold
from detrkit.inference.stream import ErrorHandler, StreamConfig, stream_images
from detrkit.models.attention.recording import RecordedAttention, record_attention
from detrkit.models.detr import DETR
from detrkit.ops.tiles import Tiling
from detrkit.postprocess.panoptic import MIN_SCORE, Style
from detrkit.structures import Batch, Detections, PanopticSegments, Sample


class Detector:
    """A model with its categories and preprocessing, ready to predict.

    A detector is safe to share between threads, may be used while its model is trained, and changes nothing of the model:
    predictions are always made in eval mode, with the weights of that moment. It can be pickled.

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
        """The PyTorch model, as it was given: it may be trained while the detector predicts.

        Raises:
            ConfigError: the detector was loaded from an exported file.
        """
        return self._torch_engine.model

    @property
    def _torch_engine(self) -> TorchEngine:
        if not isinstance(self.engine, TorchEngine):
            raise ConfigError(
                "detector: an exported file has no PyTorch model; load the checkpoint it was exported from"
            )
        return self.engine

    def exact_model(self) -> DETR:
        """Return a copy of the model in eval mode, for the caller alone: it shares its weights, and nothing is fused.

        Raises:
            ConfigError: the detector was loaded from an exported file, or the weights are not float32.
        """
        return self._torch_engine.exact_model()

    def to(self, device: torch.device | str | int) -> Detector:
        """Return a detector on a device: this one if it is there, otherwise one with a copy of the weights.

        Args:
            device: such as "cpu", "cuda" or "cuda:1".

        Raises:
            ConfigError: there is no such device, or the detector was loaded from an exported file, which runs on the CPU.
        """
        if isinstance(device, torch.dtype):
            raise _no_other_dtype(str(device))
        chosen = choose_device(device)
        if not isinstance(self.engine, TorchEngine):
            if chosen.type != "cpu":
                raise ConfigError(f"{arg('device', str(device))}: exported files predict on the CPU; use 'cpu'")
            return self
        engine = self.engine.to(chosen)
        if engine is self.engine:
            return self
        moved = copy.copy(self)
        moved.engine = engine
        return moved

    def half(self) -> NoReturn:
        """Refuse to convert the weights to float16, in which detection transformers lose detections.

        Raises:
            ConfigError: always; it names what to do instead.
        """
        raise _no_other_dtype("torch.float16")

    @classmethod
    def from_model(
        cls,
        model: DETR,
        categories: Categories | Mapping[Any, Any] | Iterable[Any] | None = None,
        image_size: int | None = None,
        device: torch.device | str | int | None = None,
        *,
        precision: str = "float32",
        compile_model: bool = False,
    ) -> Detector:
        """Wrap a model, which is not changed: predictions are made in eval mode, and it may be trained meanwhile.

        Args:
            model: a model that was built or trained elsewhere.
            categories: the classes of the model: their names in the order of the labels, {id: name}, or `Categories`.
                Default: numbers.
            image_size: shorter side in pixels to which images are resized, or side of the square to which RT-DETR and its
                descendants stretch them. Default: as published, 800 or 640.
            device: device to predict on, to which the model is moved. Default: that of the model.
            precision: see `TorchEngine`.
            compile_model: compile the model, which makes the first prediction slow and later ones faster.

        Raises:
            ConfigError: the number of categories differs from the number of classes of the model, they are not names, or
                there is no such device or precision.
        """
        named = as_categories(categories, model.config.num_classes)
        preprocessing = default_preprocessing(model.config, image_size)
        chosen = None if device is None else choose_device(device)
        engine = TorchEngine(model, chosen, preprocessing.padding_invariant, precision, compile_model)
        return cls(engine, named, preprocessing)

    @classmethod
    def load(
        cls,
        source: Path | str,
        device: torch.device | str | int = "cpu",
        *,
        precision: str = "float32",
        compile_model: bool = False,
        model: NamedModel | None = None,
        state_dict_key: str | None = None,
    ) -> Detector:
        """Load a detector.

        Args:
            source: run folder, weights file (detrkit's `.safetensors`, an official `.pth`), Hugging Face folder or hub id,
                preset name, or a file or folder written by `detrkit.export`, which runs on the CPU.
            device: device to predict on; ``"auto"`` is a GPU if there is one.
            precision: see `TorchEngine`.
            compile_model: compile the model, which makes the first prediction slow and later ones faster.
            model: preset, ``config.yaml`` of a run, or config, for weights that do not describe their model, such as a
                saved `state_dict()` of a detrkit model.
            state_dict_key: entry of a `.pth` file that holds the weights, such as "ema_model". Default: the moving average
                if there is one.

        Raises:
            CheckpointError: the source does not exist, or is not a detection transformer, or leaves open which weights or
                model to use.
            ConfigError: there is no such device or precision, an exported file is loaded to another device than the CPU, or
                the library that runs it is not installed.
        """
        check_precision(precision)
        if is_exported(source):
            if model is not None or state_dict_key is not None:
                name = "model" if state_dict_key is None else "state_dict_key"
                raise ConfigError(f"{source}: an exported file describes its model; omit {arg(name)}")
            if str(device) != "auto" and not str(device).startswith("cpu"):
                raise ConfigError(
                    f"{arg('device', str(device))}: exported files predict on the CPU ({source}); use 'cpu'"
                )
            exported = load_exported(Path(source))
            metadata = exported.metadata
            return cls(exported, metadata.named_categories, metadata.preprocessing, metadata.thresholds)
        chosen = choose_device(device)
        checkpoint = load_checkpoint(source, model=model, state_dict_key=state_dict_key)
        return cls.from_checkpoint(checkpoint, chosen, precision=precision, compile_model=compile_model)

    @classmethod
    def from_checkpoint(
        cls,
        checkpoint: Checkpoint,
        device: torch.device | str | int = "cpu",
        *,
        precision: str = "float32",
        compile_model: bool = False,
    ) -> Detector:
        """Make a detector from a checkpoint in memory.

        Args:
            checkpoint: weights, architecture, classes and preprocessing, such as from `to_checkpoint`.
            device: see `load`.
            precision: see `load`.
            compile_model: see `load`.
        """
        padding_invariant = checkpoint.preprocessing.padding_invariant
        model = checkpoint.build().eval()
        model.padding_invariant = padding_invariant
        engine = TorchEngine(model, choose_device(device), padding_invariant, precision, compile_model)
        return cls(engine, checkpoint.categories, checkpoint.preprocessing, checkpoint.thresholds)

    @classmethod
    def from_pretrained(cls, source: Path | str, device: torch.device | str | int = "cpu") -> Detector:
        """Load a detector written by `save_pretrained` or `push_to_hub`; the same as `load`.

        Args:
            source: folder, or OWNER/NAME on the hub.
            device: device to predict on.

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
        self, images: ImageInput, threshold: Threshold = ..., *, classes: ClassFilter = ...
    ) -> Detections: ...

    @overload
    def predict(
        self, images: Iterable[ImageInput], threshold: Threshold = ..., *, classes: ClassFilter = ...
    ) -> list[Detections]: ...

    def predict(
        self, images: Any, threshold: Any = 0.5, *, classes: ClassFilter = None
    ) -> Detections | list[Detections]:
        """Detect the objects in one image, or in each of several. Thread-safe.

        Args:
            images: an image: a path, the bytes of an image file, an open binary file, a Pillow image, an (H, W, C) array or
                a (C, H, W) tensor of uint8 (or of floats from 0 to 1), in RGB. Or several of them, in a list, a batch with
                a further axis, or any iterable, predicted as one batch (one per image size if the model is not padding
                invariant). The detections of an image do not depend on the others.
            threshold: minimum score of a detection, 0 to 1; "auto" uses the thresholds that evaluation stored.
            classes: names or category ids of the classes to return. Default: all.

        Returns:
            Detections, best first; a list of them for several images.

        Raises:
            DatasetError: an image cannot be read, or is no image.
            ConfigError: the threshold is out of range, or "auto" for a model that has not been evaluated, or there is no
                such class.
        """
        min_scores = self.resolve_threshold(threshold)
        labels = self.resolve_classes(classes)
        given = read_images(images, self.engine.config.in_channels)
        detections = self._detect(self._batch(given.pixels), min_scores) if given.pixels else []
        return given.attach([one.with_labels(labels) for one in detections])

    def predict_segments(
        self, images: Any, threshold: Any = "auto", style: Style = "corrected"
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
        given = read_images(images, self.engine.config.in_channels)
        if not given.pixels:
            return given.attach([])
        return given.attach(self._postprocessor.segment(self._batch(given.pixels), min_score, style))

    def attention(self, image: Any) -> RecordedAttention:
        """Predict one image and record its attention; the matrices are computed on request. Thread-safe.

        `detector.attention(image).maps("decoder_cross", layer=-1, queries=[7])` returns the maps of query 7, one per head.

        Args:
            image: one image, as in `predict`.

        Raises:
            DatasetError: the image cannot be read.
            ConfigError: the detector was loaded from an exported file.
        """
        model = self.exact_model()
        pixels = read_image_input(image, self.engine.config.in_channels)
        return record_attention(model, collate([self.preprocess(pixels)]))[0]

    def stream(
        self,
        images: Any,
        threshold: Any = 0.5,
        *,
        batch_size: int = 1,
        workers: int = 2,
        classes: ClassFilter = None,
        tiling: Tiling | int | None = None,
        keep_images: bool = True,
        on_error: ErrorHandler | None = None,
    ) -> Generator[Detections, None, None]:
        """Detect the objects in any number of images, in bounded memory.

        Threads read images ahead. Images of similar size among the next few share a batch; detections still come in the
        order of the images. Closing the generator ends the threads.

        Args:
            images: any iterable, consumed only as far ahead as needed, or a single image; otherwise as in `predict`. An
                array may be filled anew for the next image, as cameras do.
            threshold: as in `predict`.
            batch_size: images, or tiles of one image, per batch.
            workers: threads that read images; 0 reads them in the calling thread.
            classes: names or category ids of the classes to return. Default: all.
            tiling: also predict large images tile by tile, and merge (`postprocess.merge`); a number is the side of a tile
                in pixels.
            keep_images: attach the images to the detections; without them less memory is used, and nothing can be drawn.
            on_error: called with an unreadable image, or what is no image, and its error; it is skipped. Default: the error
                is raised.

        Raises:
            DatasetError: an image cannot be read, and there is no `on_error`; or `images` is not iterable.
            ConfigError: a setting is out of range, or there is no such class.
        """
        config = StreamConfig(
            self.resolve_threshold(threshold),
            batch_size,
            workers,
            self.resolve_classes(classes),
            Tiling(tiling) if isinstance(tiling, int) else tiling,
            keep_images,
        )
        several = [images] if is_one_image(images) else as_iterable(images, self.engine.config.in_channels)
        return stream_images(self, several, config, on_error)

    @property
    def max_padding(self) -> float:
        """Maximum share of padding in a batch of images that were not passed together.

        With more than a quarter, a smaller batch is faster. 0 for models that are not padding invariant: detections must
        not depend on the other images of a batch.
        """
        return 0.25 if self._postprocessor.is_padding_invariant else 0.0

    def preprocess(self, pixels: UInt8[Tensor, "C H W"]) -> Sample:
        """Resize an image for the model. Thread-safe.

        Args:
            pixels: of the image, RGB or as many channels as the model has.

        Raises:
            DatasetError: the image is too small for an exported model.
        """
        sample = self.preprocessing.transform(self.engine.config.in_channels)(unannotated(pixels))
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

    def resolve_threshold(self, threshold: Any) -> MinScores:
        """Return the minimum score of all labels, or of each label for "auto".

        Args:
            threshold: as in `predict`.

        Raises:
            ConfigError: the threshold is out of range, or "auto" for a model that has not been evaluated.
        """
        if not isinstance(threshold, str) or threshold != "auto":
            return check_threshold(threshold)
        if self.thresholds is None:
            raise ConfigError(
                f"{arg('threshold', threshold)} needs thresholds stored in the model, and this one has none; store them by "
                f"an evaluation with {arg('store_thresholds', True)}, or pass a score between 0 and 1"
            )
        return self.thresholds.of(self.categories.ids)

    def resolve_segment_threshold(self, threshold: Any) -> float:
        """Return the minimum score of a query in panoptic segments.

        Args:
            threshold: as in `predict_segments`.

        Raises:
            ConfigError: the model has no mask head, or the threshold is out of range.
        """
        if not self.engine.config.mask_head:
            raise ConfigError("segments: this model has no mask head; train a preset whose name ends in -panoptic")
        if not isinstance(threshold, str) or threshold != "auto":
            return check_threshold(threshold)
        stored = None if self.thresholds is None else self.thresholds.segments
        return MIN_SCORE if stored is None else stored

    def resolve_classes(self, classes: ClassFilter) -> frozenset[int] | None:
        """Return the labels of some classes; None (all classes) stays None.

        Args:
            classes: names or category ids, as in `predict`.

        Raises:
            ConfigError: there is no such class.
        """
        return select_labels(classes, self.categories)

    @property
    def _postprocessor(self) -> BatchPostprocessor:
        return BatchPostprocessor(self.engine, self.categories, self.preprocessing)

    def _batch(self, images: Sequence[UInt8[Tensor, "C _ _"]]) -> Batch:
        return collate([self.preprocess(pixels) for pixels in images])

    def _detect(self, batch: Batch, min_scores: MinScores) -> list[Detections]:
        with_segments = self.engine.config.mask_head and self.categories.is_thing is not None
        min_segment_score = self.resolve_segment_threshold("auto") if with_segments else None
        return self._postprocessor.detect(batch, min_scores, min_segment_score)


def _no_other_dtype(dtype: str) -> ConfigError:
    return ConfigError(
        f"detector: weights stay float32, found {dtype.removeprefix('torch.')}; for speed, load the detector with "
        "precision='bfloat16' or 'auto'"
    )
