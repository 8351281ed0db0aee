"""The training loop (published code, engine.py): epochs of steps, evaluations, checkpoints, and where to stop.

A run is saved with everything that its next step depends on; gone on with, it takes the very steps that it would have
taken, in the middle of an epoch as well.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Protocol, runtime_checkable

import torch

from detrkit._internal.signals import StopSignal
from detrkit.config.training import TrainingConfig
from detrkit.distributed.collectives import (
    average_over_processes,
    gather,
    is_sync_step,
    max_over_processes,
    rank,
    stop_on_any_rank,
)
from detrkit.evaluation.metrics import EvalMetrics
from detrkit.losses.criterion import LossOutput
from detrkit.models.detr import DETR
from detrkit.structures import Batch
from detrkit.training.loggers.run_log import Log
from detrkit.training.train_step import TrainStep

LEARNED_BY_HEART = 0.99  # AP, or PQ, at which a run with `overfit` has shown what it should
_SECONDS_BETWEEN_SAVES = 300  # between evaluations, which save as well


@runtime_checkable
class Batches(Protocol):
    """One epoch of batches, any number of times."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Batch]: ...

    def start_at(self, epoch: int, first: int) -> None:
        """Choose the epoch, from 1, and pass over the first of its batches."""


@dataclass(frozen=True)
class RunHooks:
    """What the loop asks of those who set it up. With several processes, all call all of them.

    Attributes:
        evaluate: score the model.
        save_weights: write what is to be shipped under a name, "last" or "best".
        save_state: write what `Trainer.load_state_dict` takes.
    """

    evaluate: Callable[[DETR], EvalMetrics]
    save_weights: Callable[[str, DETR], None]
    save_state: Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        epoch: the one that is under way, from 1; one more than there are when the run has ended.
        batch: of the epoch, passed already.
        best: scores of the best checkpoint.
        waited: evaluations since then.
    """

    epoch: int = 1
    batch: int = 0
    best: EvalMetrics | None = None
    waited: int = 0


@dataclass(frozen=True)
class TrainingResult:
    """How a run ended.

    Attributes:
        scores: of the best checkpoint.
        epochs: finished.
        stopped_by: the signal that interrupted it, or None.
        notes: what happened on the way, a sentence each.
    """

    scores: EvalMetrics | None
    epochs: int
    stopped_by: int | None = None
    notes: tuple[str, ...] = ()

    @property
    def interrupted(self) -> bool:
        """Whether a signal ended it."""
        return self.stopped_by is not None


@dataclass(frozen=True)
class Throughput:
    """Seconds that an update takes on some machine, reading included, and those of an evaluation."""

    step: float
    evaluation: float

    def seconds(self, num_batches: int, settings: TrainingConfig) -> float:
        """Of a whole run, whose photos are so many batches."""
        evaluations = -(-planned_epochs(num_batches, settings) // settings.evaluation.evaluate_every)
        return planned_steps(num_batches, settings) * self.step + evaluations * self.evaluation


def steps_per_epoch(num_batches: int, settings: TrainingConfig) -> int:
    """Updates of one epoch; the last may see fewer batches."""
    return -(-num_batches // settings.gradient_accumulation)


def planned_steps(num_batches: int, settings: TrainingConfig) -> int:
    """Updates of a whole run."""
    return settings.steps or settings.epochs * steps_per_epoch(num_batches, settings)


def planned_epochs(num_batches: int, settings: TrainingConfig) -> int:
    """Rounds through the photos of a whole run; the last may be cut short."""
    return -(-planned_steps(num_batches, settings) // steps_per_epoch(num_batches, settings))


def strong_epochs(num_batches: int, settings: TrainingConfig) -> int:
    """Epochs, from the first on, that see strong augmentation; the last of several does only where all are to."""
    epochs = planned_epochs(num_batches, settings)
    rounded = round(settings.augmentation.strong_aug_until * epochs)
    return min(rounded, epochs - 1) if settings.augmentation.strong_aug_until < 1 and epochs > 1 else rounded


class Trainer:
    """Trains one model once.

    Attributes:
        position: how far it is.
    """

    def __init__(
        self, stepper: TrainStep, loader: Batches, settings: TrainingConfig, hooks: RunHooks, log: Log
    ) -> None:
        self.stepper = stepper
        self.loader = loader
        self.settings = settings
        self.hooks = hooks
        self.log = log
        self.num_steps = planned_steps(len(loader), settings)
        self.num_epochs = planned_epochs(len(loader), settings)
        self.position = Progress()
        self.meter = Meter()
        self._saved_at = time.monotonic()

    @property
    def has_ended(self) -> bool:
        """Whether nothing is left to do."""
        best = self.position.best
        waits_for_nothing = 0 < self.settings.evaluation.patience <= self.position.waited
        knows_all = self.settings.overfit > 0 and best is not None and best.primary_value >= LEARNED_BY_HEART
        return self.position.epoch > self.num_epochs or waits_for_nothing or knows_all

    def fit(self, stop: StopSignal | None = None) -> TrainingResult:
        """Train to the end, or until a signal; either way the last state is saved.

        Raises:
            DetrkitError: too many steps were not finite, or photos unreadable.
        """
        stop = stop or StopSignal()
        while not self.has_ended:
            if not self.train_epoch(stop):
                self.save()
                break
            self.end_epoch()
        self.stepper.finish()
        return TrainingResult(self.position.best, self.position.epoch - 1, stop.received, tuple(self.stepper.left_out))

    def train_epoch(self, stop: StopSignal) -> bool:
        """See every photo once, or what is left of the epoch; tell whether it was finished."""
        if self.stepper.step_number >= self.num_steps:
            return True  # saved after its last step, and killed before it was evaluated
        self.stepper.train()
        self.loader.start_at(self.position.epoch, self.position.batch)
        for batches in _in_groups(self.loader, self.settings.gradient_accumulation):
            report = self.stepper.step([batch.to(self.stepper.device) for batch in batches])
            self.position = replace(self.position, batch=self.position.batch + len(batches))
            self.meter.add(report, sum(len(batch.image_ids) for batch in batches))
            self.log.advance()
            step = self.stepper.step_number
            if step % self.settings.log_every == 0:
                self.read_meter()
            if step >= self.num_steps:
                break
            if stop_on_any_rank(stop, step):
                return False
            if is_sync_step(step):
                self.save_now_and_then()
        return True

    def end_epoch(self) -> None:
        """Evaluate if it is time to, and save."""
        epoch = self.position.epoch
        is_due = epoch == self.num_epochs or epoch % self.settings.evaluation.evaluate_every == 0
        if is_due and self.meter.sums:
            self.read_meter()
        if is_due:
            self.save()  # as not evaluated yet: that may fail, and a run that is gone on with does it again
        self.position = replace(self.position, epoch=epoch + 1, batch=0)
        if is_due:
            self.evaluate(epoch)
            self.save()
        else:
            self.save_now_and_then()

    def evaluate(self, epoch: int) -> None:
        """Score the model, and save it if it is the best so far.

        Photos that were learned from cannot tell which checkpoint is: then the last is taken for it.
        """
        scores = self.hooks.evaluate(self.stepper.best_model)
        best = self.position.best
        is_better = best is None or scores.primary_value > best.primary_value or self.settings.train_on_val
        self.position = replace(self.position, waited=0 if is_better else self.position.waited + 1)
        # nothing found yet, or nothing there to be found: the last has learned most
        if is_better or (best is not None and scores.primary_value == best.primary_value == 0):
            self.position = replace(self.position, best=scores)
            self.hooks.save_weights("best", self.stepper.best_model)
        self.log.scores(self.stepper.step_number, epoch, scores, best=self.position.waited == 0)
        self.meter = Meter()  # the time that this took is not the training's

    def save(self) -> None:
        """Write the weights and the state; all processes have to."""
        self.hooks.save_weights("last", self.stepper.best_model)
        self.hooks.save_state(self.state_dict())
        self._saved_at = time.monotonic()

    def save_now_and_then(self) -> None:
        """Save if that was long ago by the clock of any process; all save together."""
        if max_over_processes(time.monotonic() - self._saved_at > _SECONDS_BETWEEN_SAVES):
            self.save()

    def read_meter(self) -> None:
        """Copy the averages from the device and record them."""
        values, images_per_second = self.meter.read()
        self.meter = Meter()
        rates = {"images_per_second": images_per_second, "lr": self.stepper.optimizer.param_groups[0]["lr"]}
        self.log.losses(self.stepper.step_number, self.position.epoch, values, rates)

    def state_dict(self) -> dict[str, Any]:
        """Everything that the rest of the run depends on: plain values and tensors only."""
        best = self.position.best
        return {
            "stepper": self.stepper.state_dict(),
            "position": {**vars(self.position), "best": None if best is None else best.to_json()},
            # of every process: dropout differs between them
            "random": gather([torch.get_rng_state()]),
            "random_cuda": gather([torch.cuda.get_rng_state()]) if torch.cuda.is_available() else [],
            "num_steps": self.num_steps,
            "num_batches": len(self.loader),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to where `state_dict` was taken."""
        self.stepper.load_state_dict(state["stepper"])
        position = dict(state["position"])
        best = position.pop("best")
        self.position = Progress(**position, best=None if best is None else EvalMetrics.from_json(best))
        torch.set_rng_state(state["random"][rank()])
        if state["random_cuda"] and torch.cuda.is_available():
            torch.cuda.set_rng_state(state["random_cuda"][rank()])


def _in_groups(batches: Iterator[Batch] | Batches, size: int) -> Iterator[Sequence[Batch]]:
    iterator = iter(batches)
    while group := list(islice(iterator, size)):
        yield group


class Meter:
    """Averages losses on the device until they are read."""

    def __init__(self) -> None:
        self.names: tuple[str, ...] = ()
        self.sums: list[torch.Tensor] = []
        self.num_images = 0
        self.since = time.perf_counter()

    def add(self, report: LossOutput, num_images: int) -> None:
        """Count in one step, without waiting for the device."""
        self.names = ("loss", *report.losses)
        self.sums.append(torch.stack([report.total.detach(), *report.losses.values()]))
        self.num_images += num_images

    def read(self) -> tuple[dict[str, float], float]:
        """Averages over steps and processes, and photos per second of all; waits for the device.

        Steps whose loss was not finite do not count, and class_error is averaged over the batches that hold objects.
        """
        steps = torch.stack(self.sums)
        means, num_images = average_over_processes(steps.where(steps.isfinite(), torch.nan).nanmean(0), self.num_images)
        rate = num_images / (time.perf_counter() - self.since)
        return dict(zip(self.names, means.tolist(), strict=True)), rate
