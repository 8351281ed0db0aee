"""The training loop (published code, engine.py): batches -> predictions -> set loss -> AdamW.

One process here; what belongs to several is `losses.set_loss`, which averages over them, and the loader's sampler.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch

from detrkit.errors import DetrkitError
from detrkit.evaluation.coco import BoxScores
from detrkit.losses.set_loss import LossReport, SetLoss
from detrkit.models.detr import DETR
from detrkit.structures import Batch
from detrkit.training.optimizer import build_optimizer
from detrkit.training.run_log import RunLog
from detrkit.training.schedule import build_schedule
from detrkit.training.settings import TrainingSettings

_SECONDS_BETWEEN_SAVES = 60  # between evaluations, which save as well


@runtime_checkable
class Batches(Protocol):
    """One epoch of batches, any number of times."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Batch]: ...


@dataclass(frozen=True)
class RunHooks:
    """What the loop asks of those who set it up.

    Attributes:
        evaluate: score the model.
        save: write a checkpoint under a name, "last" or "best".
    """

    evaluate: Callable[[DETR], BoxScores]
    save: Callable[[str], None]


@dataclass(frozen=True)
class TrainingResult:
    """How a run ended."""

    scores: BoxScores | None  # of the best checkpoint
    epochs: int  # finished
    interrupted: bool


class Trainer:
    """Trains one model once."""

    def __init__(
        self,
        model: DETR,
        loss: SetLoss,
        loader: Batches,
        settings: TrainingSettings,
        device: torch.device,
        hooks: RunHooks,
        log: RunLog,
    ) -> None:
        # convolutions are quicker this way, on CPU by a twentieth; the numbers stay the same up to rounding
        self.model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.loss = loss
        self.loader = loader
        self.settings = settings
        self.device = device
        self.hooks = hooks
        self.log = log
        self.optimizer = build_optimizer(model, settings)
        self.schedule = build_schedule(self.optimizer, settings.epochs * len(loader), settings)
        self.step = 0
        self.meter = Meter()

    def fit(self) -> TrainingResult:
        """Train to the end, or until interrupted; either way the last state is saved."""
        best: BoxScores | None = None
        finished, saved_at = 0, time.monotonic()
        try:
            for epoch in range(1, self.settings.epochs + 1):
                self.train_epoch(epoch)
                finished = epoch
                is_due = epoch % self.settings.evaluate_every == 0 or epoch == self.settings.epochs
                if is_due and self.meter.sums:
                    self.read_meter(epoch)
                if is_due or time.monotonic() - saved_at > _SECONDS_BETWEEN_SAVES:
                    self.hooks.save("last")
                    saved_at = time.monotonic()
                if is_due:
                    best = self.evaluate(epoch, best)
        except KeyboardInterrupt:
            self.hooks.save("last")
            return TrainingResult(best, finished, interrupted=True)
        return TrainingResult(best, finished, interrupted=False)

    def evaluate(self, epoch: int, best: BoxScores | None) -> BoxScores:
        """Score the model, save it if it is the best so far, and return the best scores."""
        scores = self.hooks.evaluate(self.model)
        is_best = best is None or scores.ap > best.ap
        if is_best:
            self.hooks.save("best")
        self.log.scores(self.step, epoch, scores.numbers, is_best)
        self.meter = Meter()  # the time that this took is not the training's
        return scores if best is None or is_best else best

    def train_epoch(self, epoch: int) -> None:
        """See every photo once."""
        self.model.train()
        for batch in self.loader:
            report = self.train_step(batch.to(self.device))
            self.step += 1
            self.meter.add(report, len(batch.image_ids))
            self.log.advance()
            if self.step % self.settings.log_every == 0:
                self.read_meter(epoch)

    def train_step(self, batch: Batch) -> LossReport:
        """Learn from one batch; nothing but the matching's costs is copied from the device."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.precision == "bfloat16"):
            predictions = self.model(
                batch.images.contiguous(memory_format=torch.channels_last),
                batch.padding_mask if batch.is_padded else None,
                exact_padding=self.settings.exact_padding,
            )
        report = self.loss(predictions, batch.targets)
        self.optimizer.zero_grad()
        report.total.backward()
        if self.settings.clip_norm > 0:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip_norm)
        self.optimizer.step()
        self.schedule.step()
        return report

    def read_meter(self, epoch: int) -> None:
        """Copy the averages from the device and record them.

        Raises:
            DetrkitError: the loss is not finite.
        """
        values, photos_per_second = self.meter.read()
        self.meter = Meter()
        if not abs(values["loss"]) < float("inf"):
            raise DetrkitError(f"training: the loss at step {self.step} is not finite; lower --learning-rate")
        rates = {"photos_per_second": photos_per_second, "learning_rate": self.optimizer.param_groups[0]["lr"]}
        self.log.losses(self.step, epoch, values, rates)


class Meter:
    """Averages losses on the device until they are read."""

    def __init__(self) -> None:
        self.names: tuple[str, ...] = ()
        self.sums: list[torch.Tensor] = []
        self.num_photos = 0
        self.since = time.perf_counter()

    def add(self, report: LossReport, num_photos: int) -> None:
        """Count in one step, without waiting for the device."""
        self.names = ("loss", *report.parts)
        self.sums.append(torch.stack([report.total.detach(), *report.parts.values()]))
        self.num_photos += num_photos

    def read(self) -> tuple[dict[str, float], float]:
        """Averages and photos per second; waits for the device.

        class_error is averaged over the batches that hold objects; a loss that was not finite once stays so.
        """
        steps = torch.stack(self.sums)
        means = steps.nanmean(0)
        means[0] = steps[:, 0].mean()
        rate = self.num_photos / (time.perf_counter() - self.since)
        return dict(zip(self.names, means.tolist(), strict=True)), rate
