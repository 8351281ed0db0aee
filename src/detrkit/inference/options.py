"""Settings of `predict_files`. Free of torch, so that they are checked before anything heavy is imported."""

import numbers
from contextlib import suppress
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from detrkit.errors import ConfigError, arg, did_you_mean
from detrkit.ops.tiles import Tiling

Threshold = float | Literal["auto"]
Precision = Literal["auto", "float32", "bfloat16"]
PRECISIONS: tuple[Precision, ...] = ("auto", "float32", "bfloat16")
Output = Literal["images", "json", "jsonl", "parquet", "segments"]
OUTPUTS: tuple[Output, ...] = ("images", "json", "jsonl", "parquet", "segments")
_IMAGE_OUTPUTS: frozenset[Output] = frozenset({"images", "json"})
_VIDEO_OUTPUTS: frozenset[Output] = frozenset({"images", "jsonl"})
ModelT = TypeVar("ModelT", bound=BaseModel)


class PredictOptions(BaseModel):
    """Settings of `predict_files`; also the options of the `predict` command."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    threshold: Threshold = Field(
        0.5, description="Minimum score of a detection, 0 to 1; `auto`: the thresholds per class stored by evaluation"
    )
    classes: str | tuple[str, ...] | None = Field(
        None, description="Names of the classes to keep, separated by commas; default: all"
    )
    tile: int | None = Field(None, description="Also predict large images tile by tile; side of a tile in pixels")
    overlap: float = Field(
        0.2, description="Minimum overlap of neighbouring tiles, as a share of a tile's side, 0 to 0.5"
    )
    batch_size: int = Field(1, ge=1, description="Images or tiles per batch")
    workers: int = Field(2, ge=0, description="Threads that read images")
    precision: Precision = Field(
        "auto", description="Of the model; `auto`: bfloat16 if the processor is fast at it and detections stay the same"
    )
    device: str = Field("auto", description="`cpu`, `cuda`, `cuda:1`; `auto`: a GPU if there is one")
    model: str | None = Field(
        None,
        description="Preset, or config.yaml of a run, of weights that do not describe their model, as a saved state_dict()",
    )
    state_dict_key: str | None = Field(
        None,
        description="Entry of a .pth file that holds the weights, as ema_model; default: the moving average if any",
    )
    recursive: bool = Field(False, description="Include the images in subfolders")
    max_frames: int | None = Field(None, ge=1, description="Maximum number of frames per video or camera")
    partition: str | None = Field(
        None, description="INDEX/COUNT, as 0/8: predict one of COUNT parts of the inputs; torchrun and srun set it"
    )
    write: str | tuple[str, ...] | None = Field(
        None,
        description="Outputs, separated by commas: `images` (annotated), `json`, `jsonl`, `parquet`, `segments` (COCO "
        "panoptic PNG NAME.segments.png, panoptic models only); default: images,json; for videos images,jsonl",
    )

    @field_validator("threshold", mode="before")
    @classmethod
    def _check_threshold(cls, value: object) -> Threshold:
        return parse_threshold(value)

    def model_post_init(self, _context: object, /) -> None:
        """Check what depends on more than one field.

        Raises:
            ConfigError: a value is wrong, or the package that writes an output is not installed.
        """
        from detrkit.inference.writers.parquet import check_parquet

        _ = self.tiling
        if self.write is not None and "parquet" in self.image_outputs:
            check_parquet()

    @property
    def tiling(self) -> Tiling | None:
        """How large images are cut into tiles, if they are."""
        return None if self.tile is None else Tiling(self.tile, self.overlap)

    @property
    def image_outputs(self) -> frozenset[Output]:
        """Outputs for images.

        Raises:
            ConfigError: there is no such output.
        """
        return _IMAGE_OUTPUTS if self.write is None else _parse_outputs(self.write)

    @property
    def video_outputs(self) -> frozenset[Output]:
        """Outputs for videos and cameras.

        Raises:
            ConfigError: there is no such output.
        """
        return _VIDEO_OUTPUTS if self.write is None else _parse_outputs(self.write)

    def class_names(self, known: tuple[str, ...]) -> tuple[str, ...] | None:
        """Split the list of classes; a name that itself contains a comma is recognised by the names of the model."""
        if self.classes is None or isinstance(self.classes, tuple):
            return self.classes
        return (self.classes,) if self.classes in known else _split(self.classes)


def parse_threshold(value: object) -> Threshold:
    """Read a score threshold, which the command line and URLs hold as text.

    Raises:
        ConfigError: it is neither a number between 0 and 1 nor "auto".
    """
    if value == "auto":
        return "auto"
    if isinstance(value, str):
        with suppress(ValueError):
            value = float(value)
    return check_threshold(value)


def check_threshold(value: object, name: str = "threshold") -> float:
    """Check a score threshold.

    Raises:
        ConfigError: it is not a number between 0 and 1.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0 <= float(value) <= 1:
        raise ConfigError(f"{arg(name, value)} is not a score; use a number between 0 and 1, or 'auto'")
    return float(value)


def parse_settings(model: type[ModelT], settings: dict[str, Any]) -> ModelT:
    """Validate keyword arguments.

    Raises:
        ConfigError: a setting does not exist, or its value is wrong.
    """
    try:
        return model(**settings)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        if first["type"] == "extra_forbidden":
            raise ConfigError(f"{arg(name)} is not a setting; {did_you_mean(name, model.model_fields)}") from None
        raise ConfigError(f"{arg(name, settings.get(name))}: {first['msg'].lower()}") from error


def _parse_outputs(write: str | tuple[str, ...]) -> frozenset[Output]:
    names = _split(write) if isinstance(write, str) else write
    if not names:
        raise ConfigError(f"{arg('write', write)} names no output; choose some of {', '.join(OUTPUTS)}")
    chosen: set[Output] = set()
    for name in names:
        known = next((output for output in OUTPUTS if output == name), None)
        if known is None:
            raise ConfigError(f"{arg('write', name)} is not an output; {did_you_mean(name, OUTPUTS)}")
        chosen.add(known)
    return frozenset(chosen)


def _split(names: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in names.split(",") if name.strip())
