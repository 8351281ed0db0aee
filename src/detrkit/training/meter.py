"""Running averages of losses, kept on the device until they are logged."""

import time

import torch

from detrkit.distributed.collectives import average_over_processes
from detrkit.losses.criterion import LossOutput


class Meter:
    """Averages losses over steps and processes."""

    def __init__(self) -> None:
        self.names: tuple[str, ...] = ()
        self.values: list[torch.Tensor] = []
        self.num_images = 0
        self.start = time.perf_counter()

    def add(self, output: LossOutput, num_images: int) -> None:
        """Add the losses of a step, without waiting for the device."""
        self.names = ("loss", *output.losses)
        self.values.append(torch.stack([output.total.detach(), *output.losses.values()]))
        self.num_images += num_images

    def read(self) -> tuple[dict[str, float], float]:
        """Return the averages over steps and processes, and images per second of all processes; waits for the device.

        Steps with a non-finite loss do not count; class_error is averaged over the batches that contain objects.
        """
        steps = torch.stack(self.values)
        means, num_images = average_over_processes(steps.where(steps.isfinite(), torch.nan).nanmean(0), self.num_images)
        images_per_second = num_images / (time.perf_counter() - self.start)
        return dict(zip(self.names, means.tolist(), strict=True)), images_per_second
