"""A training run in one process: builds model, criterion, data loaders and trainer, and writes the run folder."""

import json
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from detrkit._internal.files import file_lock, make_folder, write_text
from detrkit._internal.text import plural
from detrkit.checkpoints.files import read_training_state, write_training_state
from detrkit.checkpoints.load import load_checkpoint
from detrkit.checkpoints.native import Checkpoint, save_checkpoint
from detrkit.checkpoints.sources import WEIGHTS_FILE
from detrkit.config.run import RunConfig, load_run_config, write_config
from detrkit.data.categories import Categories
from detrkit.data.loaders import evaluation_loader, train_loader
from detrkit.data.samplers import mix_seeds
from detrkit.distributed.collectives import process_group
from detrkit.distributed.devices import choose_rank_device
from detrkit.distributed.rank import Rank, rank_from_environment
from detrkit.errors import CheckpointError, ConfigError, arg
from detrkit.evaluation.analysis import Analysis
from detrkit.evaluation.arrays import DetectionArrays
from detrkit.evaluation.evaluator import Evaluator
from detrkit.evaluation.inference_loop import run_inference
from detrkit.evaluation.metrics import EvalMetrics
from detrkit.evaluation.report.images import PREDICTION_THRESHOLD, draw_predictions
from detrkit.inference.detector import Detector
from detrkit.inference.engines.torch import TorchEngine
from detrkit.models.detr import DETR
from detrkit.training.budget import TimeBudget, budget_of
from detrkit.training.build import build_criterion, build_model_for
from detrkit.training.callbacks import Callback, TrainingState
from detrkit.training.data import TrainingData, preprocessing_of
from detrkit.training.duration import Throughput, measure_evaluation, measure_throughput, strong_epochs
from detrkit.training.loggers import Logger, LoggerCallback, build_loggers
from detrkit.training.overfit_check import check_overfit
from detrkit.training.planner import TrainingPlan
from detrkit.training.result import TrainResult
from detrkit.training.resume_check import check_same_run, describe_run
from detrkit.training.run_folder import CATEGORIES_FILE, CONFIG_FILE, STATE_FILE
from detrkit.training.run_report import write_run_report
from detrkit.training.train_step import TrainStep
from detrkit.training.trainer import CheckpointName, Trainer

# what a time limit reserves before anything was measured: parameters that are written per second in the checkpoints of an
# evaluation, the duration of the report relative to drawing the examples, and of the end of Python relative to the start
_SAVED_PER_SECOND, _REPORT_PER_EXAMPLES, _EXIT_PER_START, _MAX_EXIT = 10e6, 6.0, 0.15, 5.0
_NUM_EXAMPLES = 4  # validation images that are logged after every evaluation
_NUM_TIMED = 2  # times they are drawn before the first step, with a time limit


def run_training(
    config: RunConfig,
    data: TrainingData,
    output: Path,
    *,
    resume: bool = False,
    plan: TrainingPlan | None = None,
    model: DETR | None = None,
    callbacks: Sequence[Callback] = (),
    loggers: Sequence[str | Logger] = ("tensorboard",),
    started: float | None = None,
) -> TrainResult:
    """Train in this process, which is the only one or one of several; write a run folder.

    Args:
        config: all settings.
        data: of the run.
        output: run folder, new or to be resumed.
        resume: continue from the saved state.
        plan: reasons for the settings, which callbacks can show.
        model: initial weights, instead of those of the configuration.
        callbacks: called in the first process.
        loggers: names or loggers, used in the first process.
        started: value of `time.monotonic` from which on a time limit counts; default: now.

    Raises:
        DetrkitError: data, settings, weights or saved state do not fit; nothing is written then.
    """
    process = rank_from_environment()
    device = choose_rank_device(config.training.hardware.device, process)
    with process_group(process, device):
        run = TrainingRun(config, data, output, process, device, resume=resume, model=model, started=started)
        run.state.plan = plan
        if process.is_first:
            run.callbacks = [LoggerCallback(build_loggers(loggers)), *callbacks, InterimReport(run)]
        with file_lock(make_folder(output)) if process.is_first else nullcontext():
            return run.resume() if resume else run.start()


class TrainingRun:
    """Everything that a run needs, in one process of one or several.

    Attributes:
        callbacks: of this process.
        state: what the callbacks see.
        train_step: model, optimizer and schedule.
        budget: length of the run.
    """

    def __init__(
        self,
        config: RunConfig,
        data: TrainingData,
        output: Path,
        process: Rank,
        device: torch.device,
        *,
        resume: bool = False,
        model: DETR | None = None,
        started: float | None = None,
    ) -> None:
        """Build model, criterion, loaders and evaluator; nothing is written yet.

        Raises:
            DetrkitError: something does not fit.
        """
        self.config = config
        self.data = data
        self.output = output
        self.process = process
        self.device = device
        self.callbacks: list[Callback] = []
        settings = config.training
        torch.manual_seed(settings.seed)
        self.model, adaptation = build_model_for(config, data.categories, with_weights=not resume, initial=model)
        self.loader = train_loader(data.train, data.grouping, settings, device, process)
        self.val_batches = evaluation_loader(
            data.val, settings.batch_size, settings.loading.workers, settings.loading.max_unreadable, process
        )
        self.preprocessing = preprocessing_of(settings)
        self.budget = budget_of(len(self.loader), settings, started)
        data.train.strong_epochs, data.train.mosaic_epochs = strong_epochs(len(self.loader), settings)
        self.train_step = TrainStep(
            self.model, build_criterion(self.model.config, settings), settings, device, self.budget
        )
        self.evaluator = Evaluator(
            data.val_split,
            self.model.config.detections_per_image,
            self.val_batches,
            device,
            settings.padding_invariant,
            masks=self.model.config.mask_head,
        )
        self.state = TrainingState(output, adaptation=adaptation, draw_examples=self._draw_examples)
        self.best_detections: DetectionArrays | None = None  # of the best checkpoint, in the first process
        if process.world_size > 1:  # ranks share weights, but not dropout
            torch.manual_seed(mix_seeds(settings.seed, process.rank))

    def start(self) -> TrainResult:
        """Train from the start."""
        if self.process.is_first:
            make_folder(self.output)
            self._write_config()
            write_categories(self.output / CATEGORIES_FILE, self.data.categories)
        return self._train(None)

    def resume(self) -> TrainResult:
        """Train from the saved state.

        Raises:
            ConfigError: the run has ended, or its classes, images, settings or number of steps have changed.
            CheckpointError: the state cannot be read.
        """
        state = read_training_state(self.output / STATE_FILE)
        with self._checks_state():
            num_batches, num_steps = int(state["num_batches"]), state["num_steps"]
            num_steps = None if num_steps is None else int(num_steps)
            check_same_run(state["run"], self._description, self.output, self.data)
        if num_batches != len(self.loader):
            raise ConfigError(
                f"{self.output}: the data gives {len(self.loader)} batches per epoch, but the run had {num_batches}; "
                "its dataset, batch_size or number of processes has changed"
            )
        if num_steps != self.budget.num_steps:
            lengths = (self.budget.num_steps, num_steps)
            found, expected = (f"{count} steps" if count else "a time limit" for count in lengths)
            raise ConfigError(
                f"{self.output}: config.yaml gives {found}, but the run was started with {expected}; restore its minutes, "
                f"steps, epochs and gradient_accumulation, or fine-tune with {arg('weights')} and another {arg('output')}"
            )
        if self.process.is_first and load_run_config(self.output / CONFIG_FILE).data != self.config.data:
            self._write_config()  # the dataset has moved
        return self._train(state)

    def _write_config(self) -> None:
        write_config(self.output / CONFIG_FILE, self.config, self.model.config.model_dump(mode="json"))

    @cached_property
    def _description(self) -> dict[str, Any]:
        return describe_run(self.config, self.data, self.model)

    @contextmanager
    def _checks_state(self) -> Iterator[None]:
        """Turn errors of reading a state into one about the file.

        Raises:
            CheckpointError: it is not the state of this run.
        """
        try:
            yield
        except (LookupError, TypeError, ValueError, RuntimeError, AttributeError, OverflowError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[-1].strip()[:160]
            raise CheckpointError(
                f"{self.output / STATE_FILE}: does not belong to the run that config.yaml describes ({reason}); restore "
                "that config.yaml, or start again"
            ) from None

    def measure_throughput(self) -> Throughput:
        """Time optimizer steps and inference on this machine; the weights change."""
        self.train_step.train()
        settings = self.config.training
        batches = chain.from_iterable(repeat(self.loader))
        num_batches = min(settings.gradient_accumulation, len(self.loader))  # a step ends with the epoch

        def step() -> None:
            self.train_step.step([batch.to(self.device) for batch in islice(batches, num_batches)])
            self.train_step.finish()

        return measure_throughput(step, self._infer, len(self.val_batches))

    def _infer(self, num_batches: int) -> None:
        """Run inference on some validation batches."""
        run_inference(
            self.model,
            islice(self.val_batches, num_batches),
            self.data.categories,
            self.device,
            self.config.training.padding_invariant,
        )

    def _expect_evaluation(self) -> None:
        """Estimate what a time limit has to reserve for the evaluation at the end and for the report."""
        if not isinstance(self.budget, TimeBudget):
            return
        inference = measure_evaluation(self._infer, len(self.val_batches), at_most=0.01 * self.budget.seconds)
        saving = sum(parameter.numel() for parameter in self.model.parameters()) / _SAVED_PER_SECOND
        drawing = math.inf
        for _ in range(_NUM_TIMED):  # the first images take longer than later ones
            start = time.perf_counter()
            self._draw_examples()
            drawing = min(drawing, time.perf_counter() - start)
        self.budget.expect(
            evaluation=inference + saving + drawing,
            report=_REPORT_PER_EXAMPLES * drawing,
            exit=min(_EXIT_PER_START * self.budget.elapsed, _MAX_EXIT),
        )

    def _train(self, state: dict[str, Any] | None) -> TrainResult:
        trainer = Trainer(
            self.train_step,
            self.loader,
            self.config.training,
            self._evaluate,
            self,
            self.callbacks,
            self.state,
            self.budget,
        )
        if state is not None:
            with self._checks_state():
                trainer.load_state_dict(state)
            if trainer.has_ended:
                raise ConfigError(
                    f"{self.output}: the run has ended, after {plural(trainer.progress.epoch - 1, 'epoch')}; to train "
                    f"further, start a run with {arg('weights', str(self.output))} and another {arg('output')}"
                )
        try:
            self.state.stop.on_signal = lambda: trainer.callbacks.call("on_stop_signal", self.state)
            with self.state.stop:
                trainer.callbacks.call("on_train_start", self.state)
                self._expect_evaluation()
                trainer.fit()
            result = self._result(trainer)
            trainer.callbacks.call("on_train_end", self.state)
        except BaseException as error:
            trainer.callbacks.on_exception(self.state, error)
            raise
        return result

    def _result(self, trainer: Trainer) -> TrainResult:
        """Collect the result, and write the report."""
        stop, metrics, settings = self.state.stop, trainer.progress.best, self.config.training
        skipped = sorted({*self.loader.skipped, *self.val_batches.skipped})
        overfit = None
        if settings.overfit and metrics is not None and self.process.is_first:
            overfit = check_overfit(metrics, self.data, self.model.config, settings.image_size)
        result = TrainResult(
            output=self.output,
            config=self.config,
            evaluation=metrics,
            epochs=trainer.progress.epoch - 1,
            steps=self.train_step.step_number,
            stopped_by=stop.received,
            stopped_early=stop.requested and not trainer.has_ended,
            warnings=(*(f"left out: {reason}" for reason in skipped), *self.train_step.skipped_steps),
            overfit=overfit,
        )
        if metrics is not None and self.process.is_first:
            self.write_report(metrics, result.epochs)
        return result

    def _evaluate(self, model: DETR) -> EvalMetrics:
        """Evaluate a model on the validation split, which the processes share."""
        return self.evaluator.evaluate(model, self.process.is_first)

    def _analyse_best(self) -> Analysis:
        """Analyse the detections of the best checkpoint, which are computed again if they precede this process."""
        if self.best_detections is None:
            model = load_checkpoint(self.output).build().to(self.device)
            batches = evaluation_loader(self.data.val, self.config.training.batch_size, workers=0, max_unreadable=1)
            padding_invariant = self.config.training.padding_invariant
            self.best_detections = DetectionArrays.concat(
                run_inference(model, batches, self.data.categories, self.device, padding_invariant)
            )
        return self.evaluator.analyse(self.best_detections)

    def _draw_examples(self) -> list[Image.Image]:
        """Draw some validation images, after every evaluation: at its threshold, as the report, if there is one."""
        thresholds = self.evaluator.thresholds
        threshold = PREDICTION_THRESHOLD if thresholds is None else thresholds.overall
        engine = TorchEngine(self.train_step.best_model, self.device, self.preprocessing.padding_invariant)
        detector = Detector(engine, self.data.categories, self.preprocessing)
        return [
            drawn.image for drawn in draw_predictions(detector, self.data.pictures, _NUM_EXAMPLES, threshold=threshold)
        ]

    def write_report(self, metrics: EvalMetrics, num_epochs: int) -> None:
        """Write the report of the best checkpoint, which has these metrics."""
        write_run_report(self.output, self.config, metrics, num_epochs, self.data, self._analyse_best())

    def save_weights(self, name: CheckpointName, model: DETR) -> None:
        """Write weights to predict with; the best ones with their score thresholds."""
        if not self.process.is_first:
            return
        thresholds = None
        if name == "best" and self.evaluator.detections is not None:
            self.best_detections = self.evaluator.detections
            thresholds = self.evaluator.thresholds
        checkpoint = Checkpoint(model.state_dict(), model.config, self.data.categories, self.preprocessing, thresholds)
        save_checkpoint(self.output / name / WEIGHTS_FILE, checkpoint)

    def save_state(self, state: dict[str, Any]) -> None:
        """Write the state that a resumed run continues from."""
        if self.process.is_first:
            write_training_state(self.output / STATE_FILE, {**state, "run": self._description})


class InterimReport(Callback):
    """Writes the report while a run with a time limit trains, to know how long the last one will take."""

    def __init__(self, run: TrainingRun) -> None:
        self.run = run

    def on_evaluate_end(self, state: TrainingState) -> None:
        """Write the report of a new best checkpoint, if it is due."""
        budget = self.run.budget
        if isinstance(budget, TimeBudget) and state.is_best and state.evaluation is not None and budget.is_report_due:
            with budget.reporting():
                self.run.write_report(state.evaluation, state.epoch)


def write_categories(path: Path, categories: Categories) -> None:
    """Write ids and names of the categories, in the order of the labels."""
    write_text(path, json.dumps(categories.to_json(), indent=1, ensure_ascii=False))
