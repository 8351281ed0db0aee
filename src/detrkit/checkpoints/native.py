"""Our own file: one `.safetensors` with the weights and, in its header, a JSON document with all else.

The document holds the model's configuration, its categories and its preprocessing, so that the file alone predicts.
Reading it executes nothing.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from detrkit._internal.files import write_tensors
from detrkit.checkpoints.loading import check_state, load_state
from detrkit.config.model import ModelConfig
from detrkit.data.categories import Categories
from detrkit.errors import CheckpointError
from detrkit.models.detr import DETR
from detrkit.models.presets import model_from_config

FORMAT = "detrkit-1"


class Preprocessing(BaseModel):
    """How a photo is prepared for the model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    image_size: int = Field(
        default=800, ge=1, le=10_000, description="shorter side in pixels; the longer is at most 5/3 of it"
    )
    padding_invariant: bool = Field(
        default=True, description="padding is kept out of the backbone; false: as published"
    )


class Thresholds(BaseModel):
    """From which score on a detection is worth showing: best F1 on the photos that the model was evaluated on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    overall: float = Field(ge=0, le=1, description="of classes without one of their own")
    per_class: dict[int, Annotated[float, Field(ge=0, le=1)]] = Field(
        default_factory=dict, description="by category id"
    )
    segments: float | None = Field(
        default=None, ge=0, le=1, description="of a query to take part in a map of segments, by panoptic quality"
    )

    def of(self, category_ids: Sequence[int]) -> tuple[float, ...]:
        """The threshold of each category."""
        return tuple(self.per_class.get(number, self.overall) for number in category_ids)


@dataclass(frozen=True)
class Checkpoint:
    """Everything needed to predict: weights under our names, and what they mean."""

    state: Mapping[str, Tensor]
    config: ModelConfig
    categories: Categories
    preprocessing: Preprocessing
    thresholds: Thresholds | None = None  # None until the model has been evaluated

    def __post_init__(self) -> None:
        """See that every class has a name.

        Raises:
            CheckpointError: there are more or fewer categories than classes.
        """
        if len(self.categories) != self.config.num_classes:
            raise CheckpointError(
                f"checkpoint: found {len(self.categories)} categories for {self.config.num_classes} classes, expected "
                "one per class; the file is damaged"
            )

    def build(self) -> DETR:
        """Build the model and copy the weights into it; it is in train mode.

        Raises:
            CheckpointError: the weights are not of the model that the config describes.
        """
        try:
            with torch.device("meta"):  # a file may promise more than it holds: compare before memory is taken
                check_state(model_from_config(self.config), self.state)
        except (RuntimeError, OverflowError) as error:
            raise CheckpointError(f"checkpoint: no model can have its shape ({str(error).splitlines()[0]})") from None
        model = model_from_config(self.config)
        load_state(model, self.state)
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
    write_tensors(path, tensors, {"detrkit": json.dumps(header)})


def is_own_file(path: Path) -> bool:
    """Whether a file is one of ours; nothing but its header is read."""
    try:
        with safe_open(path, framework="pt") as opened:
            return "detrkit" in (opened.metadata() or {})
    except (SafetensorError, OSError):
        return False


def store_thresholds(path: Path, thresholds: Thresholds) -> None:
    """Write thresholds into one of our files, atomically; all else stays.

    Raises:
        CheckpointError: it is missing, malformed, or none of ours.
    """
    state, header = read_tensors(path)
    if header is None:
        raise CheckpointError(f"{path}: is no file of detrkit, and has no place for thresholds; convert it first")
    save_checkpoint(path, replace(checkpoint_from_header(state, header, path), thresholds=thresholds))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], str | None]:
    """Read a safetensors file: its tensors, and our JSON document if it has one.

    Raises:
        CheckpointError: the file is missing or malformed.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: found nothing, expected a .safetensors file; check the path")
    try:
        with safe_open(path, framework="pt") as opened:
            metadata = opened.metadata() or {}
            return {name: opened.get_tensor(name) for name in opened.keys()}, metadata.get("detrkit")  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not readable as safetensors ({error}); is the file complete?") from None


def checkpoint_from_header(state: Mapping[str, Tensor], header: str, path: Path) -> Checkpoint:
    """Understand the JSON document of one of our files.

    Raises:
        CheckpointError: it is malformed, or of another version.
    """
    try:
        content = json.loads(header)
        if content["format"] != FORMAT:
            raise CheckpointError(f"{path}: found format {content['format']!r}, expected {FORMAT!r}; update detrkit")
        categories = Categories.from_json(content["categories"])
        config = ModelConfig.model_validate(content["model"])
        preprocessing = Preprocessing.model_validate(content["preprocessing"])
        given = content.get("thresholds")
        thresholds = None if given is None else Thresholds.model_validate(given)
        return Checkpoint(state, config, categories, preprocessing, thresholds)
    except (KeyError, TypeError, ValueError, ValidationError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{path}: its description is malformed ({reason}); write it again") from None
