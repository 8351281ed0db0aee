"""The detector: photos in, objects out, from Python."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar, overload

import torch
from jaxtyping import Float, Int64, UInt8
from numpy import ndarray
from PIL import Image
from torch import Tensor

from detrkit.checkpoints.exported import is_exported
from detrkit.checkpoints.hub import FolderForm, push_checkpoint, write_model_folder
from detrkit.checkpoints.load import read_checkpoint
from detrkit.checkpoints.model_card import CardFacts
from detrkit.checkpoints.native import Checkpoint, Preprocessing, Thresholds
from detrkit.data.batching import collate
from detrkit.data.categories import Categories, numbered_categories
from detrkit.data.dataset import unannotated
from detrkit.data.images import tensor_to_image
from detrkit.data.transforms.geometry import EvalTransform
from detrkit.errors import ConfigError, DatasetError, did_you_mean
from detrkit.inference.engines.exported import ExportedEngine
from detrkit.inference.engines.load import load_exported
from detrkit.inference.engines.torch import Engine, MaskEngine, Precision, TorchEngine
from detrkit.inference.images import ImageInput, read_image_input
from detrkit.inference.stream import StreamConfig, stream_photos
from detrkit.models.attention.recording import RecordedAttention, record_attention
from detrkit.models.detr import DETR
from detrkit.ops.tiles import Tiling
from detrkit.postprocess.boxes import to_detections
from detrkit.postprocess.masks import with_masks
from detrkit.postprocess.panoptic import MIN_SCORE, Style, candidates_of, merge_segments, to_segments
from detrkit.structures import Batch, Detections, PanopticSegments, Predictions, Sample

Threshold = float | Literal["auto"]
_Found = TypeVar("_Found", Detections, PanopticSegments)


class Detector:
    """A model with its categories and its preprocessing, ready to predict.

    Attributes:
        engine: what computes: PyTorch, or another engine.
        categories: ids and names of its classes.
        preprocessing: how photos are prepared for it.
        thresholds: what "auto" means; None until the model has been evaluated.
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

    @property
    def model(self) -> DETR:
        """The DETR, in eval mode.

        Raises:
            ConfigError: the detector runs on another engine than PyTorch.
        """
        if not isinstance(self.engine, TorchEngine):
            raise ConfigError("detector: an exported file holds no PyTorch model; load the checkpoint it was made of")
        return self.engine.model

    @property
    def max_padding(self) -> float:
        """Share of padding in batches of photos that happen to wait together.

        Beyond a quarter, a smaller batch is sooner done. Where padding leaks into photos, as published, there is none: what
        is found in a photo must not depend on what came with it.
        """
        return 0.25 if self._supports_padding_invariance else 0.0

    @property
    def _supports_padding_invariance(self) -> bool:
        return self.preprocessing.padding_invariant and self.engine.config.supports_padding_invariance

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
            model: built or trained elsewhere.
            categories: of the model's classes, or their names in the order of the labels; None numbers them.
            image_size: shorter side in pixels to which photos are resized.
            device: where to predict.
            precision: see `TorchEngine`.
            compile_model: compile it: slow at first, quicker after.

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
        """Load a detector from a run folder, a weights file, a Hugging Face folder or id, or the name of a preset.

        Args:
            source: of the weights; or what `detrkit export` wrote, which its own engine computes, on the CPU.
            device: where to predict.
            precision: see `TorchEngine`.
            compile_model: compile it: slow at first, quicker after.

        Raises:
            CheckpointError: nothing is there, or it is not a DETR.
            ConfigError: an exported file is asked to run on another device, or its engine is not installed.
        """
        if is_exported(source):
            if torch.device(device).type != "cpu":
                raise ConfigError(
                    f"{source}: exported files predict on the CPU, found device {str(device)!r}; use 'cpu'"
                )
            exported = load_exported(Path(source))
            metadata = exported.metadata
            return cls(exported, metadata.named_categories, metadata.preprocessing, metadata.thresholds)
        return cls.from_checkpoint(read_checkpoint(source), device, precision=precision, compile_model=compile_model)

    @classmethod
    def from_checkpoint(
        cls,
        checkpoint: Checkpoint,
        device: torch.device | str = "cpu",
        *,
        precision: Precision = "float32",
        compile_model: bool = False,
    ) -> Detector:
        """Make a detector of a checkpoint."""
        padding_invariant = checkpoint.preprocessing.padding_invariant
        engine = TorchEngine(checkpoint.build(), torch.device(device), padding_invariant, precision, compile_model)
        return cls(engine, checkpoint.categories, checkpoint.preprocessing, checkpoint.thresholds)

    @classmethod
    def from_pretrained(cls, source: Path | str, device: torch.device | str = "cpu") -> Detector:
        """Load a detector from a folder or a hub id, as `save_pretrained` and `push_to_hub` leave it; the same as `load`.

        Raises:
            CheckpointError: nothing is there, or it is not a DETR.
        """
        return cls.load(source, device)

    def save_pretrained(
        self,
        folder: Path | str,
        *,
        format: FolderForm = "detrkit",
        scores: Mapping[str, float] | None = None,
        licence: str | None = None,
    ) -> None:
        """Write a folder with the weights and a model card; a card that lies there already stays.

        Args:
            folder: where to.
            format: "detrkit", or what `transformers` reads: "huggingface" (timm's backbone) or "huggingface-no-timm".
            scores: for the card, such as AP, 0 .. 1.
            licence: for the card, in the hub's words, such as "apache-2.0"; None leaves it to you.

        Raises:
            CheckpointError: Hugging Face's DETR has no such variant.
            ConfigError: the folder cannot be written to, or the detector runs on another engine than PyTorch.
        """
        folder = Path(folder)
        write_model_folder(folder, self.to_checkpoint(), format, CardFacts(folder.resolve().name, scores, licence))

    def push_to_hub(
        self,
        repo_id: str,
        *,
        format: FolderForm = "detrkit",
        scores: Mapping[str, float] | None = None,
        licence: str | None = None,
        private: bool = False,
        token: str | None = None,
    ) -> str:
        """Upload what `save_pretrained` writes to the Hugging Face hub, and tell the address.

        Args:
            repo_id: OWNER/NAME; made if it is not there.
            format: see `save_pretrained`.
            scores: see `save_pretrained`.
            licence: see `save_pretrained`.
            private: whether a new repository can be seen by its owner alone.
            token: the right to write; by default, the one that was logged in with.

        Raises:
            CheckpointError: the hub cannot be reached, or refuses.
            ConfigError: the id is none, nobody has logged in, or the detector runs on another engine than PyTorch.
        """
        facts = CardFacts(repo_id, scores, licence)
        return push_checkpoint(self.to_checkpoint(), format, facts, private=private, token=token)

    def to_checkpoint(self) -> Checkpoint:
        """Everything that `from_checkpoint` needs.

        Raises:
            ConfigError: the detector runs on another engine than PyTorch.
        """
        state = self.model.state_dict()
        return Checkpoint(state, self.model.config, self.categories, self.preprocessing, self.thresholds)

    @overload
    def predict(  # type: ignore[overload-overlap]  # a str is a sequence of str, too
        self, photos: ImageInput, threshold: Threshold = ...
    ) -> Detections: ...

    @overload
    def predict(self, photos: Sequence[ImageInput], threshold: Threshold = ...) -> list[Detections]: ...

    def predict(
        self, photos: ImageInput | Sequence[ImageInput], threshold: Threshold = 0.5
    ) -> Detections | list[Detections]:
        """Find the objects in one photo, or in each of several.

        Args:
            photos: path, Pillow image, (H, W, C) uint8 array or (C, H, W) uint8 tensor, with the model's number of
                channels (RGB); or a list of them, which is predicted as one batch, or as one for each size where padding
                leaks into photos. A photo's objects do not depend on the others.
            threshold: least score of an object to be returned, 0 .. 1; "auto" takes what evaluation found best.

        Raises:
            DatasetError: a photo cannot be read.
            ConfigError: the threshold is out of range, or "auto" and the model has not been evaluated.
        """
        least = self.resolve_threshold(threshold)
        if isinstance(photos, Path | str | Image.Image | ndarray | Tensor):
            return self._predict_batch([photos], least)[0]
        return self._predict_batch(list(photos), least) if photos else []

    def attention(self, photo: ImageInput) -> RecordedAttention:
        """Look at one photo and keep what is needed to see who attended to what; matrices are computed when asked for.

        `detector.attention(photo).maps("decoder_cross", layer=-1, queries=[7])` is where query 7 looked, per head.

        Raises:
            DatasetError: the photo cannot be read.
            ConfigError: the detector runs on another engine than PyTorch.
        """
        batch = collate([self.preprocess(read_image_input(photo, self.engine.config.in_channels))])
        return record_attention(self.model, batch, padding_invariant=self.preprocessing.padding_invariant)[0]

    def stream(
        self,
        photos: Iterable[ImageInput],
        threshold: Threshold = 0.5,
        *,
        batch_size: int = 1,
        workers: int = 2,
        classes: Collection[str] | None = None,
        tiling: Tiling | None = None,
        with_images: bool = True,
        fault: Callable[[ImageInput, DatasetError], None] | None = None,
    ) -> Generator[Detections, None, None]:
        """Find the objects in any number of photos, one after the other, in memory that does not grow.

        Photos are opened ahead by threads. Those of like shapes are predicted together, among the next few; what was
        found still comes in the photos' own order. Closing the generator ends the threads.

        Args:
            photos: any iterable, read as far ahead as needed; else as in `predict`.
            threshold: as in `predict`.
            batch_size: photos, or tiles of one photo, at a time.
            workers: threads that open photos; 0 opens them in the caller's.
            classes: names of the categories to be returned; None returns all.
            tiling: large photos are also looked at tile by tile (`postprocess.merge`).
            with_images: the detections hold their photos; without, less memory is used, and nothing can be drawn.
            fault: told of a photo that cannot be read, which is then passed over; by default its error is raised.

        Raises:
            DatasetError: a photo cannot be read, and nobody listens to faults.
            ConfigError: a setting is out of range, or there is no such class.
        """
        least = self.resolve_threshold(threshold)
        settings = StreamConfig(least, batch_size, workers, self.resolve_classes(classes), tiling, with_images)
        return stream_photos(self, photos, settings, fault)

    def resolve_threshold(self, threshold: Threshold) -> float | tuple[float, ...]:
        """Understand a threshold: of all labels, or of each.

        Raises:
            ConfigError: it is out of range, or "auto" and the model has not been evaluated.
        """
        if threshold == "auto":
            if self.thresholds is None:
                raise ConfigError(
                    "threshold auto: this model holds no thresholds of its own; detrkit evaluate SOURCE DATA "
                    "--store-thresholds finds them and keeps them in it, or give a score between 0 and 1"
                )
            return self.thresholds.of(self.categories.ids)
        if isinstance(threshold, str) or not 0 <= threshold <= 1:
            raise ConfigError(f"threshold: found {threshold}, expected a score between 0 and 1, or auto")
        return threshold

    def resolve_segment_threshold(self, threshold: Threshold) -> float:
        """Understand a threshold of `predict_segments`.

        Raises:
            ConfigError: the model has no mask head, or the threshold is out of range.
        """
        if not self.engine.config.panoptic:
            raise ConfigError("segments: this model has no mask head; train one of a preset that ends in -panoptic")
        if threshold == "auto":
            found = None if self.thresholds is None else self.thresholds.segments
            return MIN_SCORE if found is None else found
        if isinstance(threshold, str) or not 0 <= threshold <= 1:
            raise ConfigError(f"threshold: found {threshold}, expected a score between 0 and 1, or auto")
        return threshold

    def resolve_classes(self, classes: Collection[str] | None) -> frozenset[int] | None:
        """Return the labels of the classes with the given names; None (all classes) stays None.

        Raises:
            ConfigError: there is no such class.
        """
        if classes is None:
            return None
        for name in classes:
            if name not in self.categories.names:
                raise ConfigError(f"class {name!r}: the model has none; {did_you_mean(name, self.categories.names)}")
        return frozenset(label for label, name in enumerate(self.categories.names) if name in classes)

    def _predict_batch(self, photos: Sequence[ImageInput], threshold: float | tuple[float, ...]) -> list[Detections]:
        opened = [read_image_input(photo, self.engine.config.in_channels) for photo in photos]
        found = self.predict_samples([self.preprocess(pixels) for pixels in opened], threshold)
        return [
            replace(one, image=tensor_to_image(pixels), path=str(photo) if isinstance(photo, Path | str) else None)
            for one, pixels, photo in zip(found, opened, photos, strict=True)
        ]

    def preprocess(self, pixels: UInt8[Tensor, "C H W"]) -> Sample:
        """Resize a photo as the model wants it; any thread may.

        Raises:
            DatasetError: it is too small for an exported network.
        """
        sample = EvalTransform(self.preprocessing.image_size)(unannotated(pixels))
        if isinstance(self.engine, ExportedEngine):
            self.engine.check_size((sample.image.shape[-2], sample.image.shape[-1]))
        return sample

    def predict_samples(self, samples: Sequence[Sample], threshold: float | tuple[float, ...]) -> list[Detections]:
        """Predict one batch of prepared photos; boxes are in pixels of the photos as they were."""
        return self._apart(collate(samples), partial(self._find, threshold=threshold))

    def _apart(self, batch: Batch, find: Callable[[Batch], list[_Found]]) -> list[_Found]:
        """What is found in each photo of a batch, or of one for each size where padding leaks into photos."""
        if self._supports_padding_invariance or not batch.is_padded:
            return find(batch)
        of_sizes = [iter(find(one)) for one in batch.unpadded()]
        of_size = dict(zip(dict.fromkeys(batch.sizes), of_sizes, strict=True))
        return [next(of_size[size]) for size in batch.sizes]

    def _find(self, batch: Batch, threshold: float | tuple[float, ...]) -> list[Detections]:
        predictions = self.engine.predict(batch)
        found = to_detections(predictions, batch.original_sizes, self.categories.ids, self.categories.names, threshold)
        if not self.engine.config.panoptic:
            return found
        draw = partial(self._draw_masks, predictions, batch)
        found = with_masks(found, draw, batch, self.preprocessing.padding_invariant)
        if self.categories.is_thing is None:
            return found
        segments = self._merged(predictions, batch, self.resolve_segment_threshold("auto"), "corrected")
        return [replace(one, segments=of_one) for one, of_one in zip(found, segments, strict=True)]

    def predict_segments(
        self, photos: ImageInput | Sequence[ImageInput], threshold: Threshold = "auto", style: Style = "corrected"
    ) -> PanopticSegments | list[PanopticSegments]:
        """Tell what every pixel belongs to, in one photo or in each of several, predicted as one batch.

        Args:
            photos: as in `predict`.
            threshold: least score of a query to take part; "auto" takes what evaluation found best, or the published 0.85.
            style: "corrected", "reference" (the published code with its defects) or "huggingface"; see
                `postprocess.panoptic`.

        Raises:
            DatasetError: a photo cannot be read.
            ConfigError: the model has no mask head, or the threshold is out of range.
        """
        least = self.resolve_segment_threshold(threshold)
        is_one = isinstance(photos, Path | str | Image.Image | ndarray | Tensor)
        chosen: list[ImageInput] = [photos] if is_one else list(photos)  # type: ignore[arg-type,list-item]
        opened = [read_image_input(photo, self.engine.config.in_channels) for photo in chosen]
        if not opened:
            return []
        batch = collate([self.preprocess(pixels) for pixels in opened])
        found = [
            replace(one, image=tensor_to_image(pixels), path=str(photo) if isinstance(photo, Path | str) else None)
            for one, pixels, photo in zip(self._predict_segments(batch, least, style), opened, chosen, strict=True)
        ]
        return found[0] if is_one else found

    def _draw_masks(
        self, predictions: Predictions, batch: Batch, queries: Int64[Tensor, "P"], counts: Sequence[int]
    ) -> Float[Tensor, "P _ _"]:
        assert isinstance(self.engine, MaskEngine)
        return self.engine.compute_masks(predictions, batch, queries, counts)

    def _predict_segments(
        self, batch: Batch, threshold: float = MIN_SCORE, style: Style = "corrected"
    ) -> list[PanopticSegments]:
        """Predict and merge one batch of prepared photos; see `predict_segments`."""
        return self._apart(batch, lambda one: self._merged(self.engine.predict(one), one, threshold, style))

    def _merged(self, predictions: Predictions, batch: Batch, threshold: float, style: Style) -> list[PanopticSegments]:
        categories = self.categories
        draw = partial(self._draw_masks, predictions, batch)
        is_exact = self.preprocessing.padding_invariant and style == "corrected"
        return [
            to_segments(
                merge_segments(candidates, categories.things, style),
                categories.ids,
                categories.names,
                categories.things,
            )
            for candidates in candidates_of(predictions, draw, batch, threshold, is_exact)
        ]
