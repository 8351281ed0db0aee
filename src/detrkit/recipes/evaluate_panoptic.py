"""Scoring saved panoptic results of any model."""

import json
from pathlib import Path

from rich.console import Console
from rich.progress import track

from detrkit.data.records import Split
from detrkit.errors import DataError
from detrkit.evaluation.analysis import without_nan
from detrkit.evaluation.panoptic import PanopticScores, evaluate_panoptic
from detrkit.evaluation.report_masks import write_panoptic_report
from detrkit.evaluation.saved_panoptic import read_panoptic_results
from detrkit.evaluation.table import print_panoptic, shown
from detrkit.files import make_folder, write_text


def evaluate_panoptic_results(
    predictions: Path, records: Split, output: Path | None, title: str, console: Console
) -> PanopticScores:
    """Score panoptic results; print the scores, and write them and a page if asked.

    Raises:
        DetrkitError: results or data cannot be read, or do not belong together.
    """
    if records.records.columns.mask_files is None:
        raise DataError(
            f"{records.source}: has no PNGs of segments, by which panoptic results are judged; name a panoptic dataset, "
            "with --format panoptic where the folder holds instances as well"
        )
    found = read_panoptic_results(predictions, records)
    steps = track(found, "comparing", total=len(found), console=Console(stderr=True), transient=True)
    scores = evaluate_panoptic(records, steps)
    print_panoptic(scores, console)
    if output is not None:
        make_folder(output)
        content = {"title": title, "panoptic": scores.to_json()}
        write_text(output / "scores.json", json.dumps(without_nan(content), indent=1, ensure_ascii=False))
        page = output / "report.html"
        write_panoptic_report(page, title=f"PQ {shown(scores.pq)}", subtitle=title, scores=scores)
        console.print(f"report: {page}", soft_wrap=True)
    return scores
