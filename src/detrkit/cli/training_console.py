"""Console output of training: progress bar, evaluations, what was chosen, and the result."""

import signal
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

from detrkit.cli.console import build_table, get_console
from detrkit.cli.flags import flag
from detrkit.cli.next_commands import resume_command, train_command, unused_name
from detrkit.training.callbacks import Callback, TrainingState
from detrkit.training.next_run import NextRun
from detrkit.training.planner import TrainingPlan
from detrkit.training.result import TrainResult
from detrkit.training.run_folder import STATE_FILE

_ORIGINS = {"detector": "weights of a detector", "imagenet": "an ImageNet backbone", "scratch": "scratch"}


class ConsoleProgress(Callback):
    """Shows settings, a progress bar and evaluations."""

    def __init__(self) -> None:
        self._console: Any = None  # created in the process that trains
        self._bar: Any = None
        self._task: Any = None

    def on_train_start(self, state: TrainingState) -> None:
        """Print the plan and what was loaded, and show the progress bar."""
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self._console = get_console()
        if state.plan is not None:
            parameters = 0 if state.model is None else sum(one.numel() for one in state.model.parameters())
            print_plan(state.plan, parameters, f"all settings: {state.output / 'config.yaml'}")
        if state.adaptation is not None:
            _print_adaptation(state)
        self._bar = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(bar_width=16),
            TextColumn("{task.fields[steps]}"),
            TextColumn("loss {task.fields[loss]} {task.fields[score]} {task.fields[rate]} images/s"),
            TimeRemainingColumn(compact=True),
            console=self._console,
        )
        self._task = self._bar.add_task(
            "",
            total=1.0,
            completed=state.fraction,
            steps=_steps(state),
            epoch=state.epoch,
            loss="-",
            score="AP -",
            rate="-",
        )
        self._bar.start()

    def on_step_end(self, state: TrainingState) -> None:
        """Advance the bar."""
        self._bar.update(self._task, completed=state.fraction, steps=_steps(state))

    def on_log(self, state: TrainingState) -> None:
        """Show the loss."""
        rate = f"{state.losses['images_per_second']:.1f}"
        self._bar.update(self._task, epoch=state.epoch, loss=f"{state.losses['loss']:.3f}", rate=rate)

    def on_evaluate_end(self, state: TrainingState) -> None:
        """Show the metrics; in a log file, where the bar is not visible, as a line."""
        from detrkit.evaluation.metrics import format_metric, headline, metric_label

        metrics = state.evaluation
        if metrics is None:
            return
        value = metrics.values[metrics.primary]
        self._bar.update(self._task, score=f"{metric_label(metrics.primary)} {format_metric(value)}")
        if not self._console.is_terminal:
            mark = " (best)" if state.is_best and value >= 0 else ""
            self._console.print(f"epoch {state.epoch}: {headline(metrics)}{mark}")

    def on_stop_signal(self, state: TrainingState) -> None:
        """Say at once that the run will stop; it takes up to a step, or an evaluation, until it does."""
        again = "; press Ctrl-C again to stop at once" if state.stop.received == signal.SIGINT else ""
        line = f"stopping after the current step or evaluation, then saving the run{again}"
        with suppress(
            RuntimeError, OSError
        ):  # the signal interrupted a write to the same stream, or its reader is gone
            (self._console or get_console()).print(line, soft_wrap=True)

    def on_train_end(self, state: TrainingState) -> None:
        """Remove the bar."""
        self._bar.stop()

    def on_exception(self, state: TrainingState, error: BaseException) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.stop()


def print_plan(plan: TrainingPlan, num_parameters: int = 0, last_line: str = "") -> None:
    """Print data, model and the settings that depend on them, each with its reason."""
    from detrkit._internal.text import duration, plural
    from detrkit.checkpoints.conversion.huggingface import fits_transformers
    from detrkit.models.presets import preset_config

    console, config = get_console(), plan.config
    size = f" ({num_parameters / 1e6:.1f} M parameters)" if num_parameters else ""
    console.print(
        f"Training {config.model}{size} from {_ORIGINS[config.origin]} on {plural(plan.num_train, 'image')}, "
        f"{plural(plan.num_classes, 'class', 'classes')}; validation: {plural(plan.num_val, 'image')}",
        soft_wrap=True,
    )
    for note in plan.notes:
        console.print(note, soft_wrap=True)
    if config.origin == "scratch" and not config.training.overfit:
        console.print(
            "all weights start at random; --model detrkit-m --weights imagenet needs fewer images", soft_wrap=True
        )
    if config.training.minutes is not None:
        console.print(
            f"time limit {duration(60 * config.training.minutes)}, from the start of the command to the written report: "
            "learning rates and augmentation follow the clock",
            soft_wrap=True,
        )
    reasons: dict[str, list[str]] = {}
    for choice in sorted(plan.choices, key=lambda choice: choice.source == "preset"):
        reasons.setdefault(choice.reason, []).append(f"{choice.name} {_value(choice.value)}")
    for reason, settings in reasons.items():
        console.print(f"  {', '.join(settings)}: {reason}", soft_wrap=True)
    if not fits_transformers(preset_config(config.model, **config.model_overrides)):
        console.print(
            "  (saved in detrkit's own format, which the hub takes, too; transformers cannot load this architecture)",
            soft_wrap=True,
        )
    if last_line:
        console.print(f"  ({last_line})", soft_wrap=True)


def print_result(result: TrainResult) -> None:
    """Print warnings, metrics, and the place of the report."""
    from detrkit._internal.text import plural
    from detrkit.cli.metrics_table import print_metrics

    console = get_console()
    for warning in result.warnings:
        console.print(warning, soft_wrap=True)
    if not result.is_complete:
        console.print(
            f"stopped after {plural(result.epochs, 'complete epoch')} and {plural(result.steps, 'step')}",
            soft_wrap=True,
        )
        print_resume_command(result.output)
    if result.evaluation is None:
        return
    print_metrics(result.evaluation, console)
    if result.next_run is not None:
        console.print(
            f"Almost nothing was learned in {plural(result.steps, 'step')}. Next, try {result.next_run.reason}:\n"
            f"  {_command(result, result.next_run)}",
            soft_wrap=True,
        )
    console.print(f"report: {result.report}", soft_wrap=True)
    if result.overfit is not None:
        from detrkit.evaluation.metrics import metric_label

        report = result.overfit
        verdict = "the images were fitted" if report.passed else "the images were not fitted"
        console.print(f"{verdict}: {metric_label(report.metric)} {report.value:.3f}, expected {report.goal} or more")
        for cause in report.causes:
            console.print(f"  {cause}", soft_wrap=True)


def print_resume_command(output: Path) -> None:
    """Print the command that continues a run, if a state of it was saved."""
    if (output / STATE_FILE).is_file():
        get_console().print(resume_command(output), soft_wrap=True)


def _command(result: TrainResult, run: NextRun) -> str:
    """Return the command of a run on the same data."""
    options = [part for name, value in run.settings.items() for part in (flag(name), str(value))]
    if result.config.format is not None:
        options += ["--format", result.config.format]
    return train_command(result.config.data, *options, "--output", unused_name(result.output))


def _steps(state: TrainingState) -> str:
    return f"step {state.step}" if state.num_steps is None else f"{state.step}/{state.num_steps}"


def _print_adaptation(state: TrainingState) -> None:
    """Print what was loaded from a checkpoint, part by part."""
    console, adaptation = get_console(), state.adaptation
    assert adaptation is not None
    lists = {name: getattr(adaptation, name) for name in ("loaded", "adapted", "new", "unused")}
    counts = {kind: Counter(name.partition(".")[0] for name in names) for kind, names in lists.items()}
    parts = dict.fromkeys(name.partition(".")[0] for names in lists.values() for name in names)
    rows = [[part, *(str(count[part] or "-") for count in counts.values())] for part in parts]
    source = "" if state.plan is None else f" from {state.plan.config.weights}"
    console.print(build_table(f"weights{source}", ["part", *lists], rows))
    for kind in ("adapted", "new", "unused"):
        if names := lists[kind]:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            console.print(f"{kind}: {', '.join(names[:3])}{more}")
    if any(name.startswith("heads.class_head") for name in adaptation.adapted):
        known = ", ".join(adaptation.known_classes[:8]) or "none"
        console.print(f"classes known by name ({len(adaptation.known_classes)}): {known}")


def _value(value: object) -> str:
    if value is None:
        return "by the clock"
    if isinstance(value, tuple | list):
        return ", ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
