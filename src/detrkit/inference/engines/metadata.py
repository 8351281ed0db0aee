"""Metadata of exported models: JSON in the file, or a JSON file in the folder.

The metadata is untrusted input: every value is checked.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_serializer

from detrkit._internal.documents import parse_json
from detrkit.checkpoints.native import Preprocessing, Thresholds
from detrkit.config.model import ModelConfig
from detrkit.data.categories import Categories
from detrkit.errors import CheckpointError, ConfigError

FORMAT = "detrkit-export-1"
METADATA_KEY = "detrkit"  # of our JSON document among the metadata of an ONNX file
_MIN_SIDE = 64  # pixels
_MAX_CHARACTERS = 10_000_000  # of the metadata; enough for 100,000 classes

ExportPrecision = Literal["float32", "bfloat16", "int8"]


class CategoryEntry(BaseModel):
    """One class."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: int
    name: str
    isthing: bool | None = Field(None, description="whether it is countable; None if unknown")

    @model_serializer(mode="wrap")
    def _omit_unknown(self, write: Callable[[Any], Any]) -> dict[str, Any]:
        """Omit `isthing` if it is unknown, so that older versions read the files of box models."""
        return {name: value for name, value in write(self).items() if value is not None}


class ExportMetadata(BaseModel):
    """Metadata of an exported network: everything that a `Detector` needs besides the network."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["detrkit-export-1"]
    model: ModelConfig
    categories: tuple[CategoryEntry, ...] = Field(description="id and name, in the order of the labels")
    preprocessing: Preprocessing
    thresholds: Thresholds | None = Field(None, description="score thresholds stored by evaluation")
    precision: ExportPrecision = Field("float32", description="intended precision of the computation")
    postprocess: bool = Field(False, description="whether the outputs are scores, labels and boxes in pixels")

    @field_validator("categories")
    @classmethod
    def _ids_differ(cls, categories: tuple[CategoryEntry, ...]) -> tuple[CategoryEntry, ...]:
        _categories_of(categories)
        return categories

    @property
    def named_categories(self) -> Categories:
        """The classes."""
        return _categories_of(self.categories)

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the inputs, in order."""
        return ("images", "padding_mask", "sizes") if self.postprocess else ("images", "padding_mask")

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the outputs, in order."""
        named = ("scores", "labels", "boxes") if self.postprocess else ("class_logits", "boxes")
        return (*named, "masks") if self.model.mask_head else named

    @property
    def min_side(self) -> int:
        """Minimum side of an input in pixels; feature maps or windows of a single cell would need another graph."""
        return min_side(self.model)

    def to_text(self) -> str:
        """Return the metadata as JSON."""
        return self.model_dump_json()

    @classmethod
    def from_text(cls, text: str | None, source: object) -> "ExportMetadata":
        """Parse the JSON of `to_text`.

        Raises:
            CheckpointError: the metadata is missing, malformed, or of another version.
        """
        if text is None:
            raise CheckpointError(f"{source}: contains no metadata by detrkit; export it with detrkit")
        if len(text) > _MAX_CHARACTERS:
            raise CheckpointError(
                f"{source}: its metadata is longer than {_MAX_CHARACTERS} characters; export it again"
            )
        try:
            content = parse_json(text)
            if isinstance(content, dict) and content.get("format", FORMAT) != FORMAT:
                raise CheckpointError(
                    f"{source}: found format {content['format']!r}, expected {FORMAT!r}; update detrkit"
                )
            metadata = cls.model_validate(content)
        except (ValueError, ConfigError) as error:
            raise CheckpointError(f"{source}: its metadata is malformed ({_reason(error)}); export it again") from None
        if len(metadata.categories) != metadata.model.num_classes:
            raise CheckpointError(
                f"{source}: found {len(metadata.categories)} categories for {metadata.model.num_classes} classes; "
                "export it again"
            )
        return metadata


def make_metadata(
    config: ModelConfig,
    categories: Categories,
    preprocessing: Preprocessing,
    precision: ExportPrecision,
    postprocess: bool,
    thresholds: Thresholds | None = None,
) -> ExportMetadata:
    """Make the metadata of a network to be exported."""
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


def min_side(config: ModelConfig) -> int:
    """Return the minimum side of a graph's input in pixels: two cells of the coarsest map, and of each window of a ViT."""
    return max(_MIN_SIDE, 2 * config.strides[-1], 2 * config.size_divisor)


def _categories_of(entries: Sequence[CategoryEntry]) -> Categories:
    return Categories.from_json([entry.model_dump() for entry in entries])


def _reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"[:150]
    return (str(error).splitlines() or [type(error).__name__])[0][:150]
