"""What computes a detector's predictions: PyTorch here, other engines in rooms of their own (`export`).

Input: a `Batch` of prepared photos. Output: `Predictions` of the last decoder layer.
"""

from typing import Protocol, runtime_checkable

import torch

from detrkit.models.config import ModelConfig
from detrkit.models.detr import DETR
from detrkit.structures import Batch, Predictions


@runtime_checkable
class Runtime(Protocol):
    """An engine with a model in it.

    Attributes:
        config: of the model.
    """

    config: ModelConfig

    def predict(self, batch: Batch) -> Predictions:
        """Predict a batch that lies on the host; the answer may lie on the engine's device."""


class TorchRuntime:
    """PyTorch, on any device."""

    def __init__(self, model: DETR, device: torch.device, exact_padding: bool) -> None:
        self.model = model.eval().to(device)
        self.config = model.config
        self.device = device
        self.exact_padding = exact_padding

    @torch.inference_mode()
    def predict(self, batch: Batch) -> Predictions:
        """Predict a batch."""
        on_device = batch.to(self.device)
        padding_mask = on_device.padding_mask if batch.is_padded else None
        return self.model(on_device.images, padding_mask, exact_padding=self.exact_padding)
