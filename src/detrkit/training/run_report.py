"""The end of a run: what the best checkpoint finds in test photos, and the report."""

import json
from pathlib import Path
from typing import Any

from rich.console import Console

from detrkit._internal.files import write_text
from detrkit._internal.text import plural
from detrkit.config.run import RunConfig
from detrkit.evaluation.analysis import Analysis, without_nan
from detrkit.evaluation.metrics import EvalMetrics, headline
from detrkit.evaluation.report.page import write_report
from detrkit.evaluation.report.pictures import NUM_PICTURES, THRESHOLD, draw_predictions, draw_worst
from detrkit.evaluation.report.table import print_panoptic, print_scores
from detrkit.inference.detector import Detector
from detrkit.training.data import TrainingData
from detrkit.training.loggers.run_log import read_metrics
from detrkit.training.trainer import TrainingResult
from detrkit.visualization.charts import draw_training_curves


def write_run_report(
    output: Path,
    config: RunConfig,
    data: TrainingData,
    result: TrainingResult,
    analysis: Analysis | None,
    console: Console,
) -> None:
    """Predict some test photos with the best checkpoint, write them and the report, and print the scores."""
    if result.interrupted:
        console.print(
            f"stopped after {plural(result.epochs, 'finished epoch')}; {output} holds what was learned", highlight=False
        )
    if result.scores is None or analysis is None:
        return
    gallery = draw_predictions(Detector.load(output), data.pictures, NUM_PICTURES, output / "predictions")
    drawn = (
        f"what it finds is drawn from a score of {THRESHOLD} on, thin white boxes are the annotations"
        if result.scores.panoptic is None
        else "what it finds is drawn as segments, with a name where there is room"
    )
    learned_from_all = config.training.overfit > 0 or config.training.train_on_val
    write_report(
        output / "report.html",
        title=f"{config.model}: {headline(result.scores)}",
        subtitle=f"{output.name}, {plural(result.epochs, 'epoch')}; {drawn}",
        analysis=analysis,
        judged_by="the ones it was trained on" if learned_from_all else "not seen in training",
        curves=draw_training_curves(read_metrics(output)),
        gallery=gallery,
        worst=draw_worst(analysis, data.pictures, data.val_ids),
        masks=result.scores.masks,
        panoptic=result.scores.panoptic,
    )
    write_scores(output / "scores.json", analysis, result.scores)
    print_scores_of_all(result.scores, console)
    console.print(f"report: {output / 'report.html'}", highlight=False, soft_wrap=True)


def write_scores(path: Path, analysis: Analysis, scores: EvalMetrics, **others: Any) -> None:
    """Write everything that was measured as JSON."""
    content = {**analysis.to_json(), **others}
    if scores.masks is not None:
        content["masks"] = without_nan(scores.masks.to_json())
    if scores.panoptic is not None:
        content["panoptic"] = without_nan(scores.panoptic.to_json())
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False))


def print_scores_of_all(scores: EvalMetrics, console: Console) -> None:
    """Print the scores of boxes, masks and segments, whichever there are."""
    print_scores(scores.boxes, console, "boxes" if scores.primary != "ap" else "")
    if scores.masks is not None:
        print_scores(scores.masks, console, "masks")
    if scores.panoptic is not None:
        print_panoptic(scores.panoptic, console)
