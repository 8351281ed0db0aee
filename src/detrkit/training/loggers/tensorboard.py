"""Logger that writes TensorBoard events to ``tensorboard/``."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL.Image import Image

from detrkit.training.loggers.base import Kind, LogContext, Value

_LAYER_LOSSES = ("loss_ce", "loss_bbox", "loss_giou")  # shown for all decoder layers in one chart


class TensorBoardLogger:
    """Writes scalars as ``train/...`` and ``evaluation/...``, and images."""

    def __init__(self) -> None:
        self._writer: Any = None

    def open(self, context: LogContext) -> None:
        """Create the writer; later steps of a run that is resumed are purged."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # from TensorBoard's imports
            from torch.utils.tensorboard.writer import SummaryWriter

        purge_step = context.step + 1 if context.step else None
        self._writer = SummaryWriter(str(context.output / "tensorboard"), purge_step=purge_step)
        if context.num_decoder_layers > 1:
            auxiliary = range(context.num_decoder_layers - 1)
            charts = {
                name: ["Multiline", [f"train/{name}_{layer}$" for layer in auxiliary] + [f"train/{name}$"]]
                for name in _LAYER_LOSSES
            }
            self._writer.add_custom_scalars({"losses by decoder layer": charts})

    def scalars(self, kind: Kind, step: int, epoch: int, values: Mapping[str, Value]) -> None:
        """Write the values that are defined."""
        for name, value in values.items():
            if isinstance(value, float):
                self._writer.add_scalar(f"{kind}/{name}", value, step)

    def images(self, step: int, images: Sequence[Image]) -> None:
        """Write the images."""
        for number, image in enumerate(images):
            self._writer.add_image(f"images/{number}", np.asarray(image), step, dataformats="HWC")

    def close(self) -> None:
        """Write what is buffered."""
        if self._writer is not None:
            self._writer.close()
