"""Scoring saved results of any model: boxes, masks, or panoptic."""

import json
from pathlib import Path

from rich.console import Console
from rich.progress import track

from detrkit._internal.files import make_folder, write_text
from detrkit._internal.text import plain_console
from detrkit.data.dataset import DetectionDataset, Split
from detrkit.data.formats.folder import Format
from detrkit.data.formats.panoptic import is_panoptic_file
from detrkit.data.records import SplitName
from detrkit.errors import ConfigError, DatasetError
from detrkit.evaluation.analysis import FORMAT, analyse, without_nan
from detrkit.evaluation.arrays import GroundTruth
from detrkit.evaluation.coco import PUBLISHED_MAX_DETECTIONS, annotations_of_split, evaluate_masks
from detrkit.evaluation.metrics import EvalMetrics, format_metric
from detrkit.evaluation.output import check_output, chosen_split, print_analysis, write_evaluation
from detrkit.evaluation.panoptic import PanopticScores, evaluate_panoptic
from detrkit.evaluation.report.masks import write_panoptic_report
from detrkit.evaluation.report.table import print_panoptic
from detrkit.evaluation.results_io import read_results
from detrkit.evaluation.results_io_panoptic import read_panoptic_results
from detrkit.training.run_report import print_scores_of_all


def evaluate_saved(
    predictions: Path,
    data: str,
    split: SplitName = "val",
    *,
    format: Format | None = None,
    output: Path | None = None,
) -> EvalMetrics | PanopticScores:
    """Score saved COCO results of any model; print the scores, and write the report if asked.

    Results with masks are scored by boxes and by masks; panoptic results (a JSON and its PNGs) by panoptic quality.

    Raises:
        DetrkitError: results or data cannot be read, or do not belong together.
    """
    console = plain_console()
    check_output(output)
    if output is not None and output.suffix == ".json":
        raise ConfigError(f"--output {output}: the detections are in a file already; name a folder for the report")
    records = chosen_split(data, split, format, None, console)
    title = f"{predictions} on {data} ({split})"
    if is_panoptic_file(predictions):
        return _evaluate_panoptic(predictions, records, output, title, console)
    truth = GroundTruth.read(annotations_of_split(records), records.records.image_ids)
    found = read_results(predictions, truth, records.categories)
    analysis = analyse(truth, found, PUBLISHED_MAX_DETECTIONS)
    masks = None
    has_outlines = records.source.suffix == ".json" or records.records.arrays.mask_files is not None
    if found.masks is not None and not has_outlines:
        console.print(f"masks are not scored: {records.source} holds boxes alone", soft_wrap=True)
    elif found.masks is not None:
        truth = GroundTruth.read(annotations_of_split(records, masks=True), records.records.image_ids, masks=True)
        masks = evaluate_masks(truth, found)
    scores = EvalMetrics(analysis.scores, masks)
    print_scores_of_all(scores, console)
    print_analysis(analysis, console)
    write_evaluation(output, analysis, scores, [], DetectionDataset(records), records, title, console)
    return scores


def _evaluate_panoptic(
    predictions: Path, records: Split, output: Path | None, title: str, console: Console
) -> PanopticScores:
    """Score panoptic results; print the scores, and write them and a page if asked.

    Raises:
        DetrkitError: results or data cannot be read, or do not belong together.
    """
    if records.records.arrays.mask_files is None:
        raise DatasetError(
            f"{records.source}: has no PNGs of segments, by which panoptic results are judged; name a panoptic dataset, "
            "with --format panoptic where the folder holds instances as well"
        )
    found = read_panoptic_results(predictions, records)
    steps = track(found, "comparing", total=len(found), console=Console(stderr=True), transient=True)
    scores = evaluate_panoptic(records, steps)
    print_panoptic(scores, console)
    if output is not None:
        make_folder(output)
        content = {"format": FORMAT, "title": title, "panoptic": scores.to_json()}
        write_text(output / "scores.json", json.dumps(without_nan(content), indent=1, ensure_ascii=False))
        page = output / "report.html"
        write_panoptic_report(page, title=f"PQ {format_metric(scores.pq)}", subtitle=title, scores=scores)
        console.print(f"report: {page}", soft_wrap=True)
    return scores
