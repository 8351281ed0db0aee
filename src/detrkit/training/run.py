"""A run put together: config and data -> model, loss, loaders, loop -> run folder. One process of one or of several."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.console import Console

from detrkit._internal.files import file_lock, make_folder, write_text
from detrkit._internal.signals import StopSignal
from detrkit._internal.text import plain_console, plural
from detrkit.checkpoints.files import read_training_state, write_training_state
from detrkit.checkpoints.load import read_checkpoint
from detrkit.checkpoints.native import Checkpoint, Preprocessing, save_checkpoint
from detrkit.checkpoints.sources import WEIGHTS_FILE
from detrkit.config.run import RunConfig, write_config
from detrkit.data.categories import Categories
from detrkit.data.loaders import evaluation_loader, train_loader
from detrkit.data.samplers import Rank, mix_seeds
from detrkit.distributed.collectives import process_group
from detrkit.distributed.devices import choose_rank_device
from detrkit.distributed.rank import Process, process_from_environment
from detrkit.errors import CheckpointError, ConfigError
from detrkit.evaluation.analysis import Analysis
from detrkit.evaluation.arrays import DetectionArrays
from detrkit.evaluation.evaluator import Evaluator
from detrkit.evaluation.inference_loop import run_inference
from detrkit.evaluation.metrics import EvalMetrics
from detrkit.evaluation.report.images import draw_predictions
from detrkit.inference.detector import Detector
from detrkit.inference.engines.torch import TorchEngine
from detrkit.models.detr import DETR
from detrkit.training.build import build_for, loss_for, print_adaptation
from detrkit.training.data import TrainingData
from detrkit.training.loggers.run_log import NoLog, RunLog
from detrkit.training.overfit_check import overfit_report
from detrkit.training.run_report import write_run_report
from detrkit.training.train_step import TrainStep
from detrkit.training.trainer import RunHooks, Throughput, Trainer, TrainingResult, planned_steps, strong_epochs

STATE_FILE = "last/state.pt"
_TIMED_STEPS, _TIMED_SECONDS = 4, 15.0  # at least so many, for about so long
_TIMED_BATCHES = 4
NUM_EXAMPLES = 4  # photos shown in TensorBoard after every evaluation


def run_training(
    config: RunConfig, data: TrainingData, output: Path, console: Console | None = None, *, resume: bool = False
) -> TrainingResult:
    """Train on data that is already open, and leave a run folder.

    Raises:
        DetrkitError: of one kind or another, before anything is written.
    """
    process = process_from_environment()
    device = choose_rank_device(config.training.hardware.device, process)
    with process_group(process, device):
        run = Run(config, data, output, console or plain_console(), process, device, resume=resume)
        with file_lock(make_folder(output)) if process.is_first else nullcontext():
            return run.go_on() if resume else run.begin()


class Run:
    """A training run put together, in one process of one or several."""

    def __init__(
        self,
        config: RunConfig,
        data: TrainingData,
        output: Path,
        console: Console,
        process: Process,
        device: torch.device,
        *,
        resume: bool = False,
    ) -> None:
        """Build everything that is needed, first weights only unless the run is gone on with; nothing is written yet.

        Raises:
            DetrkitError: something does not fit.
        """
        self.config = config
        self.data = data
        self.output = output
        self.console = console
        self.process = process
        self.device = device
        settings = config.training
        torch.manual_seed(settings.seed)
        self.model, self.adaptation = build_for(config, data.categories, with_weights=not resume)
        share = Rank(process.rank, process.world)
        self.loader = train_loader(data.train, data.grouping, settings, device, share)
        self.val_batches = evaluation_loader(
            data.val, settings.batch_size, settings.loading.workers, settings.loading.max_unreadable, share
        )
        self.preprocessing = Preprocessing(image_size=settings.image_size, padding_invariant=settings.padding_invariant)
        self.num_steps = planned_steps(len(self.loader), settings)
        data.train.strong_epochs = strong_epochs(len(self.loader), settings)
        masks_only = settings.optimizer.trains_masks_only(self.model.config)
        loss = loss_for(self.model.config, settings, masks_only=masks_only)
        self.stepper = TrainStep(self.model, loss, settings, device, self.num_steps)
        most = self.model.config.detections_per_image
        self.evaluator = Evaluator(
            data.val_split,
            most,
            self.val_batches,
            device,
            settings.padding_invariant,
            masks=self.model.config.mask_head,
        )
        self.best: DetectionArrays | None = None  # what the best checkpoint found
        if process.world > 1:  # weights are alike, dropout is not
            torch.manual_seed(mix_seeds(settings.seed, process.rank))

    def begin(self) -> TrainingResult:
        """Train from the start."""
        if self.process.is_first:
            make_folder(self.output)
            write_config(self.output / "config.yaml", self.config, self.model.config.model_dump(mode="json"))
            write_categories(self.output / "categories.json", self.data.categories)
            if self.adaptation is not None:
                print_adaptation(self.adaptation, self.config.weights or "", self.console)
        return self._train(None)

    def go_on(self) -> TrainingResult:
        """Train from where the run was saved last.

        Raises:
            ConfigError: it has ended already, or its dataset is not what it was.
            CheckpointError: the state cannot be read.
        """
        state = read_training_state(self.output / STATE_FILE)
        with self._of_this_run():
            batches, steps = state["num_batches"], state["num_steps"]
        if batches != len(self.loader):
            raise ConfigError(
                f"--resume {self.output}: found {len(self.loader)} batches an epoch, the run had {batches}; its dataset, "
                "batch_size or number of processes is not what it was"
            )
        if steps != self.num_steps:
            raise ConfigError(
                f"--resume {self.output}: config.yaml comes to {self.num_steps} updates, the run was begun with {steps}; "
                "put back its steps, epochs and accumulate, or train on with --weights and another --output"
            )
        return self._train(state)

    @contextmanager
    def _of_this_run(self) -> Iterator[None]:
        """While a state is looked into, which somebody may have put beside another config.

        Raises:
            CheckpointError: it is not the state of such a run.
        """
        try:
            yield
        except (LookupError, TypeError, ValueError, RuntimeError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[-1].strip()[:160]
            raise CheckpointError(
                f"{self.output / STATE_FILE}: is not of the run that config.yaml describes ({reason}); put back the config "
                "that it was begun with, or begin again"
            ) from None

    def measure_pace(self) -> Throughput:
        """Take some steps, the first of which does not count, and some batches of an evaluation."""
        self.stepper.train()
        settings = self.config.training
        batches = chain.from_iterable(repeat(self.loader))
        gradient_accumulation = min(settings.gradient_accumulation, len(self.loader))  # an update ends with the round
        taken, start = -1, 0.0
        while taken < _TIMED_STEPS or time.perf_counter() - start < _TIMED_SECONDS:
            self.stepper.step([batch.to(self.device) for batch in islice(batches, gradient_accumulation)])
            self.stepper.finish()
            taken += 1
            start = start if taken else time.perf_counter()
        step = (time.perf_counter() - start) / taken
        self._seconds_of_evaluation(1)  # what is done once for all
        first = self._seconds_of_evaluation(1)  # readers that start count once in an evaluation
        more = max(0.0, self._seconds_of_evaluation(_TIMED_BATCHES) - first) / (_TIMED_BATCHES - 1)
        return Throughput(step, first + more * (len(self.val_batches) - 1))

    def _seconds_of_evaluation(self, num_batches: int) -> float:
        start, exact = time.perf_counter(), self.config.training.padding_invariant
        run_inference(self.model, islice(self.val_batches, num_batches), self.data.categories, self.device, exact)
        return time.perf_counter() - start

    def _train(self, state: dict[str, Any] | None) -> TrainingResult:
        settings = self.config.training
        with self._of_this_run():
            done = 0 if state is None else int(state["stepper"]["step_number"])
            epoch = 1 if state is None else int(state["position"]["epoch"])
        log = self._log(done, epoch)
        hooks = RunHooks(lambda model: self.evaluate(model, log), self.save_weights, self.save_state)
        trainer = Trainer(self.stepper, self.loader, settings, hooks, log)
        if state is not None:
            self._set_back(trainer, state)
        with log, StopSignal() as stop:
            result = trainer.fit(stop)
        if self.process.is_first:
            for fault in sorted({*self.loader.skipped, *self.val_batches.skipped}):
                self.console.print(f"left out: {fault}", soft_wrap=True)
            for note in result.notes:
                self.console.print(note, soft_wrap=True)
            analysis = None if result.scores is None else self.analyse_best()
            write_run_report(self.output, self.config, self.data, result, analysis, self.console)
            if settings.overfit and result.scores is not None:
                for line in overfit_report(result.scores, self.data, self.model.config, settings.image_size):
                    self.console.print(line)
        return result

    def _set_back(self, trainer: Trainer, state: dict[str, Any]) -> None:
        with self._of_this_run():
            trainer.load_state_dict(state)
        if trainer.has_ended:
            raise ConfigError(
                f"--resume {self.output}: the run has ended, after {plural(trainer.position.epoch - 1, 'epoch')}; predict "
                f"with it, or train on: detrkit train {self.config.data} --weights {self.output} --output ANOTHER"
            )

    def _log(self, done: int, epoch: int) -> RunLog | NoLog:
        if not self.process.is_first:
            return NoLog()
        layers = self.model.config.decoder_layers
        return RunLog(self.output, self.num_steps, self.console, done=done, epoch=epoch, num_layers=layers)

    def evaluate(self, model: DETR, log: RunLog | NoLog) -> EvalMetrics:
        """Score a model on the test photos, which the processes share out."""
        scores = self.evaluator.evaluate(model, self.process.is_first)
        if self.process.is_first:
            log.pictures(self.stepper.step_number, self._pictures(model))
        return scores

    def analyse_best(self) -> Analysis:
        """Look closer at what the best checkpoint found; one of before the run was gone on with is asked once more."""
        if self.best is None:
            model = read_checkpoint(self.output).build().to(self.device)
            everything = evaluation_loader(self.data.val, self.config.training.batch_size, workers=0, max_unreadable=1)
            padding_invariant = self.config.training.padding_invariant
            self.best = DetectionArrays.concat(
                run_inference(model, everything, self.data.categories, self.device, padding_invariant)
            )
        return self.evaluator.analyse(self.best)

    def _pictures(self, model: DETR) -> list[Image.Image]:
        engine = TorchEngine(model, self.device, self.preprocessing.padding_invariant)
        detector = Detector(engine, self.data.categories, self.preprocessing)
        return [drawn.image for drawn in draw_predictions(detector, self.data.pictures, NUM_EXAMPLES)]

    def save_weights(self, name: str, model: DETR) -> None:
        """Write a checkpoint to predict with; the best knows its thresholds."""
        if self.process.is_first:
            thresholds = None
            if name == "best" and self.evaluator.detections is not None:
                self.best = self.evaluator.detections
                thresholds = self.evaluator.thresholds
            checkpoint = Checkpoint(
                model.state_dict(), model.config, self.data.categories, self.preprocessing, thresholds
            )
            save_checkpoint(self.output / name / WEIGHTS_FILE, checkpoint)

    def save_state(self, state: dict[str, Any]) -> None:
        """Write what the rest of the run depends on."""
        if self.process.is_first:
            write_training_state(self.output / STATE_FILE, state)


def write_categories(path: Path, categories: Categories) -> None:
    """Write ids and names, in the order of the labels."""
    write_text(path, json.dumps(categories.to_json(), indent=1, ensure_ascii=False))
