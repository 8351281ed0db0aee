"""detrkit's checkpoint format: one safetensors file with the weights and, in its header, a JSON document.

The document holds the model's configuration, its categories and its preprocessing, so that the file is enough to predict.
Reading it executes nothing.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from detrkit._internal.documents import parse_json
from detrkit._internal.files import write_tensors
from detrkit.checkpoints.files import HEADER_KEY, read_safetensors
from detrkit.checkpoints.state_dict import check_state_dict, load_state_dict
from detrkit.config.model import ModelConfig
from detrkit.config.model_validation import check_image_size
from detrkit.config.training import MAX_IMAGE_SIZE
from detrkit.data.batching import extend_to_channels, normalization_stats
from detrkit.data.categories import Categories
from detrkit.data.decoding import RGB
from detrkit.data.transforms.geometry import EvalTransform, Interpolation, max_long_side
from detrkit.data.transforms.preprocessing import ModelTransform, ResizeMode, ResizeRule, Rounding
from detrkit.errors import CheckpointError, ConfigError
from detrkit.models.build import model_from_config, model_without_memory
from detrkit.models.detr import DETR
from detrkit.structures.normalization import Normalization

FORMAT = "detrkit-1"
MAX_SIDE = 10_000  # pixels of the longer side
MAX_RESIZED_PIXELS = 28_000_000  # of a resized image: `MAX_IMAGE_SIZE` and the longer side that belongs to it
REALTIME_SIZE = (640, 640)  # (height, width) to which RT-DETR and its descendants stretch images
_Side = Annotated[int, Field(ge=1, le=MAX_SIDE)]
_PerChannel = Annotated[tuple[Annotated[float, Field(allow_inf_nan=False)], ...], Field(min_length=1, max_length=1000)]


class Preprocessing(BaseModel):
    """How an image is prepared for the model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    image_size: int = Field(
        default=800, ge=1, le=MAX_IMAGE_SIZE, description="shorter side in pixels; the longer is at most 5/3 of it"
    )
    max_size: int | None = Field(
        default=None, ge=1, le=MAX_SIDE, description="maximum of the longer side in pixels; default: 5/3 of image_size"
    )
    resize: ResizeMode = Field(
        default="shorter_side",
        description="resize the shorter side to image_size, keep the aspect ratio and 'fit' into `size`, 'stretch' to "
        "`size`, or 'none'",
    )
    size: tuple[_Side, _Side] | None = Field(default=None, description="(height, width) for 'fit' and 'stretch'")
    rounding: Rounding = Field(default="published", description="how the longer side is rounded")
    interpolation: Interpolation = Field(default="bilinear", description="filter, with antialiasing unless 'nearest'")
    scale: Annotated[float, Field(allow_inf_nan=False)] = Field(default=1 / 255, description="factor of the pixels")
    normalize: bool = Field(default=True, description="whether mean and std are applied after the factor")
    mean: _PerChannel | None = Field(default=None, description="per channel, or one for all; default: ImageNet's")
    std: _PerChannel | None = Field(default=None, description="per channel, or one for all; default: ImageNet's")
    padding_invariant: bool = Field(
        default=True, description="keep padding out of the backbone's features; false: as published"
    )

    @model_validator(mode="after")
    def _check(self) -> "Preprocessing":
        if (self.size is None) != (self.resize in ("shorter_side", "none")):
            raise ValueError(f"resize {self.resize!r} and size {self.size} contradict each other")
        if not self.scale or (self.std is not None and not all(self.std)):
            raise ValueError("scale and std must not be 0")
        height, width = self.size or (self.image_size, self.longest_side)
        if self.resize != "none" and height * width > MAX_RESIZED_PIXELS:
            raise ValueError(
                f"images are resized to {height} x {width} pixels, expected at most {MAX_RESIZED_PIXELS:,} in all"
            )
        return self

    @property
    def longest_side(self) -> int:
        """Maximum of the longer side in pixels, if the shorter one is resized to `image_size`."""
        return max_long_side(self.image_size) if self.max_size is None else self.max_size

    @property
    def is_default(self) -> bool:
        """True if images are resized as in training, and normalised with ImageNet's statistics."""
        return self.model_copy(update={"padding_invariant": True}) == Preprocessing(image_size=self.image_size)

    def normalization(self, channels: int) -> Normalization:
        """Return the function of the pixels that is applied after resizing."""
        mean, std = normalization_stats(channels)
        if not self.normalize:
            return Normalization(self.scale)
        return Normalization(
            self.scale, _of_channels(self.mean, channels) or mean, _of_channels(self.std, channels) or std
        )

    def transform(self, channels: int = RGB) -> EvalTransform | ModelTransform:
        """Return the transform that prepares a sample.

        Args:
            channels: of the images.
        """
        if self.is_default:
            return EvalTransform(self.image_size)
        changes_pixels = self.scale != 1 / 255 or not self.normalize or self.mean is not None or self.std is not None
        return ModelTransform(
            self.resize_rule, self.interpolation, self.normalization(channels) if changes_pixels else None
        )

    @property
    def resize_rule(self) -> ResizeRule:
        """The rule for the size of resized images."""
        return ResizeRule(self.resize, self.size or (self.image_size, self.longest_side), self.rounding)

    def describe(self) -> str:
        """Return the rule of resizing as text."""
        texts = {
            "shorter_side": f"shorter side to {self.image_size} pixels, longer side at most {self.longest_side}",
            "fit": "to fit into {0} x {1} pixels (height x width)",
            "stretch": "to {0} x {1} pixels (height x width), whatever the aspect ratio",
            "none": "not resized",
        }
        text = texts[self.resize].format(*self.size or ())
        filters = {"nearest": "nearest neighbor"}.get(self.interpolation, f"{self.interpolation} with antialiasing")
        return text if self.resize == "none" else f"{text}, {filters}"


def default_preprocessing(config: ModelConfig, image_size: int | None = None) -> Preprocessing:
    """Return how images are prepared for the published weights of a model.

    They are stretched for RT-DETR, D-FINE, LW-DETR and RF-DETR, and not normalised for the first two.

    Args:
        config: of the model.
        image_size: shorter side in pixels, or side of the square; default: as published.

    Raises:
        ConfigError: a ViT cannot cut images of this size into patches and windows.
    """
    if config.published_side is not None:
        side = image_size or config.published_side
        check_image_size((side, side), config.size_divisor)
        return Preprocessing(image_size=side, resize="stretch", size=(side, side), normalize=not config.is_hybrid)
    return Preprocessing() if image_size is None else Preprocessing(image_size=image_size)


def _of_channels(values: tuple[float, ...] | None, channels: int) -> tuple[float, ...] | None:
    if values is None or len(values) in (1, channels):
        return values
    return extend_to_channels(values, channels)


class Thresholds(BaseModel):
    """Score thresholds that maximise F1 on the images that the model was evaluated on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    overall: float = Field(ge=0, le=1, description="for classes without a threshold of their own")
    per_class: dict[int, Annotated[float, Field(ge=0, le=1)]] = Field(
        default_factory=dict, description="by category id"
    )
    segments: float | None = Field(
        default=None, ge=0, le=1, description="for queries in panoptic segmentation; maximises panoptic quality"
    )

    def of(self, category_ids: Sequence[int]) -> tuple[float, ...]:
        """Return the threshold of each category."""
        return tuple(self.per_class.get(number, self.overall) for number in category_ids)


@dataclass(frozen=True)
class Checkpoint:
    """Everything needed to predict.

    Attributes:
        state: weights in detrkit's names.
        config: architecture of the model.
        categories: one for each class.
        preprocessing: how images are prepared.
        thresholds: score thresholds; None until the model has been evaluated.
        notes: decisions taken while the source was read, for the user.
    """

    state: Mapping[str, Tensor]
    config: ModelConfig
    categories: Categories
    preprocessing: Preprocessing
    thresholds: Thresholds | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check that there is one category for each class.

        Raises:
            CheckpointError: there are more or fewer categories than classes.
        """
        if len(self.categories) != self.config.num_classes:
            raise CheckpointError(
                f"checkpoint: has {len(self.categories)} categories for {self.config.num_classes} classes, expected one "
                "per class; the file is damaged"
            )

    def build(self) -> DETR:
        """Build the model, in train mode, and load the weights.

        Raises:
            CheckpointError: the weights do not fit the model that the config describes.
        """
        num_layers = self.config.encoder_layers + self.config.decoder_layers
        if num_layers > len(self.state):  # building the modules of a hundred layers takes seconds, even without memory
            raise CheckpointError(
                f"checkpoint: has {len(self.state)} entries for {num_layers} layers of encoder and decoder; the file is "
                "damaged"
            )
        try:
            # compare shapes before memory is allocated: the file may be malformed
            check_state_dict(model_without_memory(self.config), self.state)
        except (RuntimeError, OverflowError) as error:
            raise CheckpointError(
                f"checkpoint: no model of this shape can be built ({str(error).splitlines()[0]})"
            ) from None
        model = model_from_config(self.config)
        load_state_dict(model, self.state)
        return model


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint atomically.

    Raises:
        ConfigError: it cannot be written.
    """
    header: dict[str, Any] = {
        "format": FORMAT,
        "model": checkpoint.config.model_dump(mode="json"),
        "categories": checkpoint.categories.to_json(),
        "preprocessing": checkpoint.preprocessing.model_dump(mode="json"),
    }
    if checkpoint.thresholds is not None:
        header["thresholds"] = checkpoint.thresholds.model_dump(mode="json")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.state.items()}
    write_tensors(path, tensors, {HEADER_KEY: json.dumps(header)})


def store_thresholds(path: Path, thresholds: Thresholds) -> None:
    """Replace the thresholds in a checkpoint of detrkit, atomically; everything else is kept.

    Raises:
        CheckpointError: the file is missing, malformed, or in another format.
    """
    state, header = read_safetensors(path)
    if header is None:
        raise CheckpointError(f"{path}: not written by detrkit, and cannot store thresholds; convert it first")
    save_checkpoint(path, replace(checkpoint_from_header(state, header, path), thresholds=thresholds))


def checkpoint_from_header(state: Mapping[str, Tensor], header: str, path: Path) -> Checkpoint:
    """Parse the JSON document of a checkpoint of detrkit.

    Raises:
        CheckpointError: it is malformed, or of another version.
    """
    try:
        content = parse_json(header)
        if content["format"] != FORMAT:
            raise CheckpointError(f"{path}: has format {content['format']!r}, expected {FORMAT!r}; update detrkit")
        categories = Categories.from_json(content["categories"])
        config = ModelConfig.model_validate(content["model"])
        preprocessing = Preprocessing.model_validate(content["preprocessing"])
        given = content.get("thresholds")
        thresholds = None if given is None else Thresholds.model_validate(given)
        return Checkpoint(state, config, categories, preprocessing, thresholds)
    except (KeyError, TypeError, ValueError, ConfigError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{path}: its description is malformed ({reason}); write it again") from None
