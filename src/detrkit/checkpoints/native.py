"""detrkit's checkpoint format: one safetensors file with the weights and, in its header, a JSON document.

The document holds the model's configuration, its categories and its preprocessing, so that the file is enough to predict.
Reading it executes nothing.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from detrkit._internal.files import write_tensors
from detrkit.checkpoints.files import HEADER_KEY, read_safetensors
from detrkit.checkpoints.state_dict import check_state_dict, load_state_dict
from detrkit.config.model import ModelConfig
from detrkit.data.categories import Categories
from detrkit.errors import CheckpointError, ConfigError
from detrkit.models.build import model_from_config
from detrkit.models.detr import DETR

FORMAT = "detrkit-1"


class Preprocessing(BaseModel):
    """How an image is prepared for the model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    image_size: int = Field(
        default=800, ge=1, le=10_000, description="shorter side in pixels; the longer is at most 5/3 of it"
    )
    padding_invariant: bool = Field(
        default=True, description="keep padding out of the backbone's features; false: as published"
    )


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
    """

    state: Mapping[str, Tensor]
    config: ModelConfig
    categories: Categories
    preprocessing: Preprocessing
    thresholds: Thresholds | None = None

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
        try:
            with torch.device("meta"):  # compare shapes before memory is allocated: the file may be malformed
                check_state_dict(model_from_config(self.config), self.state)
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
        content = json.loads(header)
        if content["format"] != FORMAT:
            raise CheckpointError(f"{path}: has format {content['format']!r}, expected {FORMAT!r}; update detrkit")
        categories = Categories.from_json(content["categories"])
        config = ModelConfig.model_validate(content["model"])
        preprocessing = Preprocessing.model_validate(content["preprocessing"])
        given = content.get("thresholds")
        thresholds = None if given is None else Thresholds.model_validate(given)
        return Checkpoint(state, config, categories, preprocessing, thresholds)
    except (KeyError, TypeError, ValueError, ValidationError, ConfigError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{path}: its description is malformed ({reason}); write it again") from None
