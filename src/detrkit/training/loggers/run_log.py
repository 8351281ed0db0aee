"""What a run says while it goes on: a progress bar, `metrics.jsonl`, TensorBoard."""

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol, runtime_checkable

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from detrkit._internal.files import make_folder, write_text
from detrkit.evaluation.coco import metrics_to_json
from detrkit.evaluation.metrics import EvalMetrics, format_metric, headline, metric_label

METRICS_FILE = "metrics.jsonl"


@runtime_checkable
class Log(Protocol):
    """What the loop tells; see `RunLog`."""

    def advance(self) -> None:
        """Count one step."""

    def losses(self, step: int, epoch: int, values: Mapping[str, float], rates: Mapping[str, float]) -> None:
        """Record losses."""

    def scores(self, step: int, epoch: int, scores: EvalMetrics, best: bool) -> None:
        """Record an evaluation."""


class NoLog:
    """Says nothing: one process speaks for all."""

    def __enter__(self) -> "NoLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def advance(self) -> None:
        """Count nothing."""

    def losses(self, step: int, epoch: int, values: Mapping[str, float], rates: Mapping[str, float]) -> None:
        """Record nothing."""

    def scores(self, step: int, epoch: int, scores: EvalMetrics, best: bool) -> None:
        """Record nothing."""

    def pictures(self, step: int, pictures: Sequence[Image.Image]) -> None:
        """Show nothing."""


class RunLog:
    """Writes every reading to the run folder, and shows the last one."""

    def __init__(
        self,
        folder: Path,
        num_steps: int,
        console: Console | None = None,
        *,
        done: int = 0,
        epoch: int = 1,
        num_layers: int = 0,
    ) -> None:
        """Make the log, which is opened, and the folder with it, by `with`.

        Args:
            folder: of the run.
            num_steps: of the whole run.
            console: where to show progress.
            done: steps taken already; what was written of later ones is dropped.
            epoch: under way; an evaluation of it, which was not saved, is dropped and comes again.
            num_layers: decoder layers, whose losses TensorBoard shows in one graph.
        """
        self.folder, self.done, self.epoch, self.num_layers = folder, done, epoch, num_layers
        self.console = console or Console(stderr=True)
        self._progress = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(bar_width=16),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]} {task.fields[ap]} {task.fields[rate]} photo/s"),
            TimeRemainingColumn(compact=True),
            console=self.console,
        )
        self._task: TaskID = self._progress.add_task(
            "", total=num_steps, completed=done, epoch=1, loss="-", ap="AP -", rate="-"
        )

    def __enter__(self) -> "RunLog":
        make_folder(self.folder)
        known = read_metrics(self.folder) if self.done else []
        kept = [entry for entry in known if int(str(entry["step"])) <= self.done and self._is_saved(entry)]
        write_text(self.folder / METRICS_FILE, "".join(json.dumps(entry) + "\n" for entry in kept))
        self._file = (self.folder / METRICS_FILE).open("a", encoding="utf-8")
        self._open_tensorboard()
        self._progress.start()
        return self

    def _is_saved(self, entry: Mapping[str, object]) -> bool:
        return entry.get("kind") != "evaluation" or int(str(entry["epoch"])) < self.epoch

    def _open_tensorboard(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TensorBoard's own, about its imports
            from torch.utils.tensorboard.writer import SummaryWriter

        later = self.done + 1 if self.done else None
        self._tensorboard = SummaryWriter(str(self.folder / "tensorboard"), purge_step=later)
        if self.num_layers > 1:
            names = ("loss_ce", "loss_bbox", "loss_giou")
            before = range(self.num_layers - 1)
            layers = {
                name: ["Multiline", [f"train/{name}_{layer}$" for layer in before] + [f"train/{name}$"]]
                for name in names
            }
            self._tensorboard.add_custom_scalars({"losses by decoder layer": layers})

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
        self._file.close()
        self._tensorboard.close()

    def advance(self) -> None:
        """Count one step."""
        self._progress.advance(self._task)

    def losses(self, step: int, epoch: int, values: Mapping[str, float], rates: Mapping[str, float]) -> None:
        """Record losses averaged since the last reading.

        Args:
            step: steps done.
            epoch: counted from 1.
            values: "loss" and its parts, under the published names.
            rates: "images_per_second" and learning rates.
        """
        self._write({"kind": "train", "step": step, "epoch": epoch, **values, **rates}, step)
        images_per_second = rates["images_per_second"]
        self._progress.update(self._task, epoch=epoch, loss=f"{values['loss']:.3f}", rate=f"{images_per_second:.1f}")

    def scores(self, step: int, epoch: int, scores: EvalMetrics, best: bool) -> None:
        """Record an evaluation."""
        numbers = scores.values
        entry = {"kind": "evaluation", "step": step, "epoch": epoch, "best": best, **metrics_to_json(numbers)}
        self._write(entry, step)
        self._progress.update(self._task, ap=f"{metric_label(scores.primary)} {format_metric(numbers[scores.primary])}")
        if not self.console.is_terminal:  # a bar is lost in a log file
            mark = " (best)" if best and numbers[scores.primary] >= 0 else ""
            self.console.print(f"epoch {epoch}: {headline(scores)}{mark}", highlight=False)

    def pictures(self, step: int, pictures: Sequence[Image.Image]) -> None:
        """Show in TensorBoard what is found now."""
        for number, picture in enumerate(pictures):
            self._tensorboard.add_image(f"photos/{number}", np.asarray(picture), step, dataformats="HWC")

    def _write(self, entry: Mapping[str, object], step: int) -> None:
        entry = {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in entry.items()}
        self._file.write(json.dumps(entry) + "\n")
        self._file.flush()
        for key, value in entry.items():
            if isinstance(value, float):
                self._tensorboard.add_scalar(f"{entry['kind']}/{key}", value, step)


def read_metrics(folder: Path) -> list[dict[str, object]]:
    """Read what a run wrote; a last line that was cut off is left out."""
    entries: list[dict[str, object]] = []
    path = folder / METRICS_FILE
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            entries.append(json.loads(line))
        except ValueError:
            continue
    return entries
