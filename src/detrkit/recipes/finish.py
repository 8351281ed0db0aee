"""The end of a run: what the best checkpoint finds in test photos, and the report."""

import json
from pathlib import Path

from rich.console import Console

from detrkit.evaluation.analysis import Analysis
from detrkit.evaluation.report import write_report
from detrkit.evaluation.table import print_scores
from detrkit.files import write_text
from detrkit.inference.detector import Detector
from detrkit.recipes.config import RunConfig
from detrkit.recipes.data import RunData
from detrkit.recipes.pictures import NUM_PICTURES, THRESHOLD, draw_predictions, draw_worst
from detrkit.training.run_log import read_metrics
from detrkit.training.trainer import TrainingResult
from detrkit.visualization.curves import draw_curves


def finish_run(
    output: Path, config: RunConfig, data: RunData, result: TrainingResult, analysis: Analysis | None, console: Console
) -> None:
    """Predict some test photos with the best checkpoint, write them and the report, and print the scores."""
    if result.interrupted:
        console.print(
            f"stopped after {result.epochs} finished epochs; {output} holds what was learned", highlight=False
        )
    if result.scores is None or analysis is None:
        return
    gallery = draw_predictions(Detector.load(output), data.pictures, NUM_PICTURES, output / "predictions")
    write_report(
        output / "report.html",
        title=f"{config.model}: AP {result.scores.numbers['AP']:.3f}, AP50 {result.scores.numbers['AP50']:.3f}",
        subtitle=f"{output.name}, {result.epochs} epochs; what it finds is drawn from a score of {THRESHOLD} on, "
        "thin white boxes are the annotations",
        analysis=analysis,
        judged_by="the ones it was trained on" if config.training.overfit else "not seen in training",
        curves=draw_curves(read_metrics(output)),
        gallery=gallery,
        worst=draw_worst(analysis, data.pictures, data.test_ids),
    )
    write_text(output / "scores.json", json.dumps(analysis.to_json(), indent=1, ensure_ascii=False))
    print_scores(result.scores, console)
    console.print(f"report: {output / 'report.html'}", highlight=False, soft_wrap=True)
