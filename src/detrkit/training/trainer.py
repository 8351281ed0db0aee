"""The training loop (published code, engine.py): epochs of steps, evaluations and checkpoints.

The saved state contains everything that the next step depends on: a resumed run takes the same steps, bit for bit, as one
that was not interrupted, also from the middle of an epoch.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Literal, Protocol, runtime_checkable

import torch

from detrkit.config.training import TrainingConfig
from detrkit.distributed.collectives import gather, is_sync_step, max_over_processes, rank, stop_on_any_rank
from detrkit.evaluation.metrics import EvalMetrics
from detrkit.models.detr import DETR
from detrkit.structures import Batch
from detrkit.training.budget import Budget, budget_of
from detrkit.training.callbacks import Callback, CallbackList, TrainingState
from detrkit.training.meter import Meter
from detrkit.training.train_step import TrainStep

OVERFIT_GOAL = 0.99  # primary metric at which a run with `overfit` ends
_SECONDS_BETWEEN_SAVES = 300  # evaluations save as well
CheckpointName = Literal["last", "best"]


@runtime_checkable
class Batches(Protocol):
    """Batches of an epoch, any number of times.

    Attributes:
        closing_from: epoch and batch from which on there is no strong augmentation; None if that is not known yet.
    """

    closing_from: tuple[int, int] | None

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Batch]: ...

    def start_at(self, epoch: int, first: int) -> None:
        """Choose the epoch, from 1, and skip its first batches."""

    def end_strong_augmentation(self) -> None:
        """Turn strong augmentation off for all batches that are not drawn yet, and set `closing_from`."""


@runtime_checkable
class Checkpoints(Protocol):
    """Writes checkpoints; with several processes, all of them call it."""

    def save_weights(self, name: CheckpointName, model: DETR) -> None:
        """Write weights to predict with."""

    def save_state(self, state: dict[str, Any]) -> None:
        """Write what `Trainer.load_state_dict` reads."""


@dataclass(frozen=True)
class Progress:
    """Position of a run.

    Attributes:
        epoch: current epoch, from 1; after the last one, one more than their number.
        batch: batches of the epoch that are done.
        best: metrics of the best checkpoint.
        evaluations_since_best: evaluations without a better value of the primary metric.
    """

    epoch: int = 1
    batch: int = 0
    best: EvalMetrics | None = None
    evaluations_since_best: int = 0


class Trainer:
    """Trains one model once.

    Attributes:
        progress: position of the run.
        state: what callbacks see of it.
    """

    def __init__(
        self,
        train_step: TrainStep,
        loader: Batches,
        settings: TrainingConfig,
        evaluate: Callable[[DETR], EvalMetrics],
        checkpoints: Checkpoints,
        callbacks: Sequence[Callback] = (),
        state: TrainingState | None = None,
        budget: Budget | None = None,
    ) -> None:
        """Prepare a run.

        Args:
            train_step: model, optimizer and schedule.
            loader: training batches.
            settings: of the run.
            evaluate: evaluates a model; with several processes, all of them call it.
            checkpoints: writes weights and state.
            callbacks: none in processes other than the first.
            state: passed to the callbacks.
            budget: length of the run, which `train_step` follows, too; default: the settings' number of steps.
        """
        self.train_step = train_step
        self.loader = loader
        self.settings = settings
        self.evaluate = evaluate
        self.checkpoints = checkpoints
        self.callbacks = CallbackList(callbacks)
        self.budget = budget or budget_of(len(loader), settings)
        self.progress = Progress()
        self.state = state or TrainingState()
        self.state.model = train_step.model
        self.state.num_steps, self.state.num_epochs = self.budget.num_steps, self.budget.num_epochs
        self.meter = Meter()
        self._saved_at = time.monotonic()

    @property
    def has_ended(self) -> bool:
        """Return whether the run is complete, or ended by `patience` or `overfit`."""
        best = self.progress.best
        is_out_of_patience = 0 < self.settings.evaluation.patience <= self.progress.evaluations_since_best
        is_overfitted = self.settings.overfit > 0 and best is not None and best.primary_value >= OVERFIT_GOAL
        return self._is_complete or is_out_of_patience or is_overfitted

    @property
    def _is_complete(self) -> bool:
        """Return whether the last epoch is over, its evaluation included."""
        if self.budget.num_epochs is not None:
            return self.progress.epoch > self.budget.num_epochs
        return self.progress.batch == 0 and self.budget.is_over_after(self.train_step.step_number)

    def fit(self) -> None:
        """Train until the end or a request to stop; either way the last state is saved.

        Raises:
            DetrkitError: too many consecutive steps were not finite, or too many images unreadable.
        """
        self.budget.start(self.train_step.step_number)
        while not self.has_ended:
            if not self.train_epoch():
                self.save()
                break
            self.end_epoch()
            if not self.has_ended and stop_on_any_rank(self.state.stop):
                self.save()
                break
        self.train_step.finish()

    def train_epoch(self) -> bool:
        """Train one epoch, or the rest of it; return whether it was completed."""
        if self.budget.is_over_after(self.train_step.step_number):
            return True  # saved after its last step, and killed before it was evaluated
        self.state.epoch = self.progress.epoch
        self.callbacks.call("on_epoch_start", self.state)
        self.train_step.train()
        self.loader.start_at(self.progress.epoch, self.progress.batch)
        for batches in _chunks(self.loader, self.settings.gradient_accumulation):
            self.take_step(batches)
            step = self.train_step.step_number
            if self.budget.is_over_after(step):
                break
            if is_sync_step(step):
                if stop_on_any_rank(self.state.stop):
                    return False
                self.save_if_due()
        return True

    def take_step(self, batches: Sequence[Batch]) -> None:
        """Take one optimizer step."""
        output = self.train_step.step([batch.to(self.train_step.device) for batch in batches])
        self.progress = replace(self.progress, batch=self.progress.batch + len(batches))
        self.meter.add(output, sum(len(batch.image_ids) for batch in batches))
        self.state.step = self.train_step.step_number
        self.budget.advance(self.state.step)
        self.state.fraction = self.budget.fraction_after(self.state.step)
        self._end_strong_augmentation_if_due()
        self.callbacks.call("on_step_end", self.state)
        if self.state.step % self.settings.log_every == 0:
            self.log()

    def end_epoch(self) -> None:
        """Evaluate if an evaluation is due, and save."""
        epoch = self.progress.epoch
        self.state.epoch = epoch
        is_last = self.budget.is_over_after(self.train_step.step_number) or epoch == self.budget.num_epochs
        if is_last or self.budget.evaluates_after(epoch):
            with self.budget.evaluating():
                if self.meter.values:
                    self.log()
                self.save()  # before the evaluation, which may fail; a resumed run then evaluates
                self.progress = replace(self.progress, epoch=epoch + 1, batch=0)
                self.run_evaluation()
                self.save()
        else:
            self.progress = replace(self.progress, epoch=epoch + 1, batch=0)
            self.save_if_due()
        self.callbacks.call("on_epoch_end", self.state)

    def _end_strong_augmentation_if_due(self) -> None:
        """Begin the last part of a run with a time limit; in others, the number of its epochs is known from the start."""
        if self.budget.num_epochs is None and self.loader.closing_from is None:
            until = self.settings.augmentation.strong_aug_until
            if until < 1 and self.state.fraction >= until:
                self.loader.end_strong_augmentation()

    def run_evaluation(self) -> None:
        """Evaluate the model, and save it if it is the best so far.

        With `train_on_val`, metrics cannot tell which checkpoint is the best; the last one is taken.
        """
        metrics = self.evaluate(self.train_step.best_model)
        best = self.progress.best
        is_better = best is None or metrics.primary_value > best.primary_value or self.settings.train_on_val
        waited = 0 if is_better else self.progress.evaluations_since_best + 1
        self.progress = replace(self.progress, evaluations_since_best=waited)
        # without any correct detection so far, the latest checkpoint is the one trained longest
        if is_better or (best is not None and metrics.primary_value == best.primary_value == 0):
            self.progress = replace(self.progress, best=metrics)
            self._save_weights("best")
        self.state.evaluation, self.state.is_best = metrics, waited == 0
        self.callbacks.call("on_evaluate_end", self.state)
        self.meter = Meter()  # the time of the evaluation does not count as training

    def save(self) -> None:
        """Write weights and state; called by all processes."""
        self._save_weights("last")
        self.checkpoints.save_state(self.state_dict())
        self._saved_at = time.monotonic()

    def save_if_due(self) -> None:
        """Save if the save interval has elapsed on any rank."""
        if max_over_processes(time.monotonic() - self._saved_at > _SECONDS_BETWEEN_SAVES):
            self.save()

    def _save_weights(self, name: CheckpointName) -> None:
        self.checkpoints.save_weights(name, self.train_step.best_model)
        self.callbacks.on_checkpoint(self.state, self.state.output / name)

    def log(self) -> None:
        """Copy the averaged losses from the device, and pass them to the callbacks."""
        losses, images_per_second = self.meter.read()
        self.meter = Meter()
        lr = self.train_step.optimizer.param_groups[0]["lr"]
        self.state.losses = {**losses, "images_per_second": images_per_second, "lr": lr}
        self.callbacks.call("on_log", self.state)

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the rest of the run depends on: plain values and tensors only."""
        best = self.progress.best
        return {
            "train_step": self.train_step.state_dict(),
            "progress": {**vars(self.progress), "best": None if best is None else best.to_json()},
            # of every process: dropout differs between them
            "random": gather([torch.get_rng_state()]),
            "random_cuda": gather([torch.cuda.get_rng_state()]) if torch.cuda.is_available() else [],
            "num_steps": self.budget.num_steps,
            "budget": self.budget.state_dict(),
            "closing_from": self.loader.closing_from,
            "num_batches": len(self.loader),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.train_step.load_state_dict(state["train_step"])
        progress = dict(state["progress"])
        best = progress.pop("best")
        counts = {name: int(value) for name, value in progress.items()}
        self.progress = Progress(**counts, best=None if best is None else EvalMetrics.from_json(best))
        self.budget.load_state_dict(state["budget"])
        closing_from = state["closing_from"]
        if closing_from is not None:
            epoch, batch = closing_from
            closing_from = int(epoch), int(batch)
        self.loader.closing_from = closing_from
        self.state.step, self.state.epoch = self.train_step.step_number, self.progress.epoch
        self.state.fraction = self.budget.fraction_after(self.state.step)
        torch.set_rng_state(state["random"][rank()])
        if state["random_cuda"] and torch.cuda.is_available():
            torch.cuda.set_rng_state(state["random_cuda"][rank()])


def _chunks(batches: Iterable[Batch], size: int) -> Iterator[Sequence[Batch]]:
    iterator = iter(batches)
    while chunk := list(islice(iterator, size)):
        yield chunk
