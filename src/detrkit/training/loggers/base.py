"""Protocol of loggers, and the callback that feeds them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

from PIL.Image import Image

from detrkit.training.callbacks import Callback, TrainingState

Kind = Literal["train", "evaluation"]
Value = float | int | bool | None


@dataclass(frozen=True)
class LogContext:
    """A run as loggers see it when they are opened.

    Attributes:
        output: run folder, which exists.
        step: optimizer steps already taken, greater than 0 if the run is resumed; later entries are to be dropped.
        epoch: current epoch, from 1; an evaluation of it was not saved, and is to be dropped.
        num_decoder_layers: whose losses are logged separately.
    """

    output: Path
    step: int = 0
    epoch: int = 1
    num_decoder_layers: int = 0


@runtime_checkable
class Logger(Protocol):
    """Receives scalars and images of a run."""

    def open(self, context: LogContext) -> None:
        """Start to log; called in the process that trains, before all other methods."""

    def scalars(self, kind: Kind, step: int, epoch: int, values: Mapping[str, Value]) -> None:
        """Log training losses (kind "train") or validation metrics (kind "evaluation"); undefined values are None."""

    def images(self, step: int, images: Sequence[Image]) -> None:
        """Log validation images with the current detections."""

    def close(self) -> None:
        """Write what is still buffered."""


class LoggerCallback(Callback):
    """Passes losses, metrics and example images to loggers."""

    def __init__(self, loggers: Sequence[Logger]) -> None:
        self.loggers = tuple(loggers)

    def on_train_start(self, state: TrainingState) -> None:
        """Open the loggers."""
        layers = 0 if state.model is None else state.model.config.decoder_layers
        context = LogContext(state.output, state.step, state.epoch, layers)
        for logger in self.loggers:
            logger.open(context)

    def on_log(self, state: TrainingState) -> None:
        """Log the losses."""
        self._scalars("train", state, state.losses)

    def on_evaluate_end(self, state: TrainingState) -> None:
        """Log the metrics and some images."""
        self._scalars("evaluation", state, {"best": state.is_best, **state.metrics})
        images = state.draw_examples()
        for logger in self.loggers:
            logger.images(state.step, images)

    def on_train_end(self, state: TrainingState) -> None:
        """Close the loggers."""
        self._close()

    def on_exception(self, state: TrainingState, error: BaseException) -> None:
        """Close the loggers."""
        self._close()

    def _scalars(self, kind: Kind, state: TrainingState, values: Mapping[str, Value]) -> None:
        defined = {name: None if _is_undefined(kind, value) else value for name, value in values.items()}
        for logger in self.loggers:
            logger.scalars(kind, state.step, state.epoch, defined)

    def _close(self) -> None:
        for logger in self.loggers:
            logger.close()


def _is_undefined(kind: Kind, value: Value) -> bool:
    """NaN; or -1, which COCO metrics are without ground truth."""
    return isinstance(value, float) and (math.isnan(value) or (kind == "evaluation" and value < 0))
