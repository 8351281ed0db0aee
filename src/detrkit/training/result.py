"""Result of a training run."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from detrkit.config.run import RunConfig
from detrkit.evaluation.metrics import EvalMetrics, headline
from detrkit.inference.detector import Detector
from detrkit.training.next_run import NextRun, learned_almost_nothing, suggest_next_run
from detrkit.training.overfit_check import OverfitReport
from detrkit.training.run_folder import REPORT_FILE


@dataclass(frozen=True, repr=False)
class TrainResult:
    """Result of `detrkit.train` and `detrkit.resume`.

    Attributes:
        output: run folder.
        config: all settings of the run.
        evaluation: metrics of the best checkpoint on the validation split; None if the run was stopped before its first
            evaluation.
        epochs: completed.
        steps: optimizer steps taken.
        stopped_by: number of the signal that stopped the run (SIGINT, SIGTERM), or None.
        stopped_early: whether a callback stopped the run.
        warnings: images and steps that were left out, a sentence each.
        overfit: what a run with `overfit` has shown; None for others.
    """

    output: Path
    config: RunConfig
    evaluation: EvalMetrics | None
    epochs: int
    steps: int
    stopped_by: int | None = None
    stopped_early: bool = False
    warnings: tuple[str, ...] = ()
    overfit: OverfitReport | None = None

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics of the best checkpoint by name: ``ap``, ``ap50``, ...; empty if there was no evaluation."""
        return {} if self.evaluation is None else dict(self.evaluation.values)

    @property
    def is_complete(self) -> bool:
        """Return whether the run was not stopped; otherwise `detrkit.resume` continues it."""
        return self.stopped_by is None and not self.stopped_early

    @property
    def best(self) -> Path:
        """Folder of the best checkpoint; of the last one if there was no evaluation."""
        best = self.output / "best"
        return best if best.is_dir() else self.output / "last"

    @property
    def next_run(self) -> NextRun | None:
        """Settings to try next if the run learned almost nothing; None if it learned something, or was stopped."""
        if self.overfit is not None or not self.is_complete or not learned_almost_nothing(self.evaluation):
            return None
        return suggest_next_run(self.config, self.steps, self.output)

    @property
    def report(self) -> Path | None:
        """The report, if there was an evaluation."""
        return None if self.evaluation is None else self.output / REPORT_FILE

    @cached_property
    def detector(self) -> Detector:
        """Detector with the weights of `best`."""
        return Detector.load(str(self.best))

    def __repr__(self) -> str:
        scores = "not evaluated" if self.evaluation is None else headline(self.evaluation)
        state = "" if self.is_complete else ", stopped"
        return f"TrainResult({str(self.output)!r}: {scores}; {self.epochs} epochs, {self.steps} steps{state})"
