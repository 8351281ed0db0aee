"""A torch dataset of synthetic shapes and a callback, as a notebook defines them; in a module, so that they unpickle."""

from typing import Any

from PIL import Image
from torch.utils.data import Dataset

import detrkit
from detrkit.data.images import tensor_to_image
from detrkit.data.synthetic import SyntheticShapes, SyntheticStyle

CLASSES = ["circle", "square", "triangle"]


class ShapesInTorchvisionForm(Dataset[tuple[Image.Image, dict[str, Any]]]):
    """Synthetic shapes as (PIL image, {"boxes": xyxy pixels, "labels": 0..K-1}), as torchvision's datasets return them."""

    def __init__(self, count: int, seed: int) -> None:
        self.samples = SyntheticShapes(count, seed, SyntheticStyle(size=96, max_objects=3))

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Image.Image, dict[str, Any]]:
        sample = self.samples[index]
        return tensor_to_image(sample.image), {"boxes": sample.annotations.boxes, "labels": sample.annotations.labels}


class StopAfter(detrkit.Callback):
    """Requests the end of training after some steps, and counts the events."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.events: list[str] = []

    def on_train_start(self, state: Any) -> None:
        self.events.append("train_start")

    def on_step_end(self, state: Any) -> None:
        self.events.append("step_end")
        if state.step >= self.steps:
            state.request_stop()

    def on_evaluate_end(self, state: Any) -> None:
        self.events.append("evaluate_end")

    def on_train_end(self, state: Any) -> None:
        self.events.append("train_end")


SMALL_RUN: dict[str, Any] = {
    "loggers": ["jsonl"],
    "batch_size": 4,
    "image_size": 64,
    "workers": 0,
    "num_queries": 10,
    "hidden_dim": 64,
    "decoder_layers": 1,
}
