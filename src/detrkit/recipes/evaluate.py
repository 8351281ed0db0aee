"""Scoring a model, or saved detections, on a dataset folder; and predicting photos that others will score."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import track
from torch.utils.data import Dataset

from detrkit.data.categories import Categories
from detrkit.data.dataset import PhotoDataset
from detrkit.data.formats.folder import Form, read_dataset
from detrkit.data.formats.panoptic import is_panoptic_file
from detrkit.data.formats.unannotated import find_unannotated
from detrkit.data.photos import RGB
from detrkit.data.records import Split, SplitName
from detrkit.data.transforms import TestTransform
from detrkit.errors import ConfigError, DataError
from detrkit.evaluation.analysis import Analysis, analyse, without_nan
from detrkit.evaluation.coco import (
    PUBLISHED_MAX_DETECTIONS,
    BoxScores,
    annotations_of_split,
    counted_detections,
    evaluate_masks,
)
from detrkit.evaluation.collect import LAST, collect
from detrkit.evaluation.columns import Found, Truth
from detrkit.evaluation.panoptic import PanopticScores
from detrkit.evaluation.report import counted, write_report
from detrkit.evaluation.saved import read_results
from detrkit.evaluation.table import print_scores
from detrkit.files import make_folder, replacing, write_text
from detrkit.inference.detector import Detector
from detrkit.inference.runtime import TorchRuntime
from detrkit.recipes.analyses import PaperAnalysis, analyse_counts, analyse_layers, analyse_queries, layers_as_text
from detrkit.recipes.counting import count_equal_objects
from detrkit.recipes.evaluate_panoptic import evaluate_panoptic_results
from detrkit.recipes.keeping import check_categories, keep_thresholds, place_for_thresholds, run_of
from detrkit.recipes.loaders import device_for, evaluation_loader
from detrkit.recipes.pictures import draw_worst
from detrkit.structures import Sample
from detrkit.terminal import plain_console


@dataclass(frozen=True)
class Extras:
    """What `evaluate` does beyond scores.

    Attributes:
        by_layer: AP after every decoder layer.
        query_map: where each query predicts.
        counting: objects found as their number grows.
        store_thresholds: keep the best thresholds in the checkpoint; None: on a run's own validation photos.
    """

    by_layer: bool = False
    query_map: bool = False
    counting: bool = False
    store_thresholds: bool | None = None


def evaluate_source(
    source: str,
    data: str,
    split: SplitName = "val",
    *,
    form: Form | None = None,
    batch_size: int = 1,
    device: str = "auto",
    workers: int = 2,
    output: Path | None = None,
    extras: Extras | None = None,
) -> BoxScores | None:
    """Score a model, print the scores, and write what was asked for.

    Args:
        source: run folder, weights, Hugging Face folder or id, or preset.
        data: dataset; or photos without annotations, which are predicted and not scored.
        split: which part of it.
        form: how it is written down.
        batch_size: photos at a time.
        device: where to compute.
        workers: processes that read photos.
        output: `*.json` for the detections alone, or a folder for detections.json, scores.json, report.html and pictures.
        extras: further analyses.

    Returns:
        The scores; None for photos without annotations.

    Raises:
        DetrkitError: the model or the data cannot be read, or do not belong together.
    """
    console, extras = plain_console(), extras or Extras()
    _check_output(output)
    chosen_device = device_for(source, device)
    kept_in = place_for_thresholds(source, data, split, extras.store_thresholds)
    detector = Detector.load(source, chosen_device)
    config = detector.runtime.config
    records = _open(data, split, form, detector.categories, source, console)
    is_scored = any(len(record.labels) for record in records.records)
    _check_extras(extras, data, is_scored, output, config.in_channels)
    is_torch = isinstance(detector.runtime, TorchRuntime) or extras.by_layer  # which exported files cannot tell
    model = detector.model if is_torch else detector.runtime  # unfolded: the very digits that training saw
    dataset = PhotoDataset(records, TestTransform(detector.preprocessing.image_size), config.in_channels)
    batches = evaluation_loader(dataset, batch_size, workers)
    steps = track(batches, "evaluating", console=Console(stderr=True), transient=True)
    layers = range(config.decoder_layers) if extras.by_layer else (LAST,)
    exact_padding = detector.preprocessing.exact_padding
    answers = collect(model, steps, detector.categories, chosen_device, exact_padding, tuple(layers))
    for fault in batches.skipped:
        console.print(f"left out: {fault}", soft_wrap=True)
    _write_detections(output, answers[-1])  # before anything else can go wrong
    if not is_scored:
        _say_unscored(records, output, console)
        return None

    truth = Truth.read(annotations_of_split(records), records.records.image_ids)
    analysis = analyse(truth, answers[-1], counted_detections(config.num_queries))
    pictures = PhotoDataset(records, channels=config.in_channels)
    print_scores(analysis.scores, console)
    _say_more(analysis, console)
    if kept_in is not None:
        keep_thresholds(kept_in, analysis.best.to_store, console)
    papers = _paper_analyses(detector, answers, analysis, pictures, records.records.image_ids, extras, console)
    _write_folder(output, analysis, papers, pictures, records, f"{source} on {data} ({split})", console)
    return analysis.scores


def evaluate_saved(
    predictions: Path,
    data: str,
    split: SplitName = "val",
    *,
    form: Form | None = None,
    output: Path | None = None,
) -> BoxScores | PanopticScores:
    """Score saved COCO results of any model; print the scores, and write the report if asked.

    Results with masks are scored by boxes and by masks; panoptic results (a JSON and its PNGs) by panoptic quality.

    Raises:
        DetrkitError: results or data cannot be read, or do not belong together.
    """
    console = plain_console()
    _check_output(output)
    if output is not None and output.suffix == ".json":
        raise ConfigError(f"--output {output}: the detections are in a file already; name a folder for the report")
    records = _chosen(data, split, form, 42, console)
    title = f"{predictions} on {data} ({split})"
    if is_panoptic_file(predictions):
        return evaluate_panoptic_results(predictions, records, output, title, console)
    truth = Truth.read(annotations_of_split(records), records.records.image_ids)
    found = read_results(predictions, truth, records.categories)
    analysis = analyse(truth, found, PUBLISHED_MAX_DETECTIONS)
    print_scores(analysis.scores, console)
    masks = None
    if found.masks is not None:
        truth = Truth.read(annotations_of_split(records, masks=True), records.records.image_ids, masks=True)
        masks = evaluate_masks(truth, found)
        print_scores(masks, console, "masks")
    _say_more(analysis, console)
    _write_folder(output, analysis, [], PhotoDataset(records), records, title, console, masks)
    return analysis.scores


def _open(
    data: str, split: SplitName, form: Form | None, categories: Categories, source: str, console: Console
) -> Split:
    """Read the photos that are asked for, annotated or not."""
    if form is None:
        unannotated = find_unannotated(Path(data), split, categories)
        if unannotated is not None:
            return unannotated
    run = run_of(source, data)
    records = _chosen(data, split, form or (run.format if run else None), run.training.seed if run else 42, console)
    check_categories(categories, records.categories, records.source)
    return records


def _chosen(data: str, split: SplitName, form: Form | None, seed: int, console: Console) -> Split:
    folder = read_dataset(data, form, seed)
    records = folder.splits.get(split)
    if records is None:
        raise DataError(f"{data}: found no test split, expected one; use --split val")
    for note in folder.notes:
        console.print(note)
    return records


def _check_extras(extras: Extras, data: str, is_scored: bool, output: Path | None, channels: int) -> None:
    """See that what was asked for can be had."""
    if not is_scored and output is None:
        raise ConfigError(
            f"{data}: found no annotations, so there is nothing to score; give --output results.json to keep the detections"
        )
    if not is_scored and (extras.by_layer or extras.query_map or extras.counting or extras.store_thresholds):
        raise ConfigError(
            f"{data}: found no annotations, so there is nothing to analyse; leave out --by-layer, --query-map, --counting "
            "and --store-thresholds"
        )
    if extras.counting and channels != RGB:
        raise ConfigError(f"--counting: shows RGB photos, and the model reads {channels} channels; leave it out")


def _check_output(output: Path | None) -> None:
    """See that what is to be written can have its name."""
    if output is None:
        return
    if output.suffix == ".json" and output.is_dir():
        raise ConfigError(f"{output}: is a folder, expected the name of a JSON file for the detections")
    if output.suffix != ".json" and output.exists() and not output.is_dir():
        raise ConfigError(f"{output}: is a file, expected a folder for the report, or a name that ends in .json")


def _write_detections(output: Path | None, found: Found) -> None:
    if output is not None:
        path = output if output.suffix == ".json" else make_folder(output) / "detections.json"
        write_text(path, json.dumps(found.to_coco()))


def _say_unscored(records: Split, output: Path | None, console: Console) -> None:
    console.print(
        f"{records.source}: no annotations, so nothing was scored; the detections of {len(records.records)} photos are in "
        f"{output}",
        soft_wrap=True,
    )
    if output is not None and output.suffix != ".json":
        images = [{"id": one.image_id, "file_name": one.path.name} for one in records.records]
        write_text(output / "images.json", json.dumps(images, indent=1, ensure_ascii=False))


def _paper_analyses(
    detector: Detector,
    answers: Sequence[Found],
    analysis: Analysis,
    pictures: Dataset[Sample],
    image_ids: Sequence[int],
    extras: Extras,
    console: Console,
) -> list[PaperAnalysis]:
    truth, queries = analysis.case.truth, detector.runtime.config.num_queries
    papers = []
    if extras.by_layer:
        papers.append(analyse_layers(truth, answers, analysis.scores.max_detections))
        console.print(layers_as_text(papers[-1]))
    if extras.query_map:
        papers.append(analyse_queries(truth, answers[-1], queries))
    if extras.counting:
        counts = count_equal_objects(detector, analysis, pictures, image_ids)
        if counts:
            papers.append(analyse_counts(counts, queries))
        else:
            console.print("--counting: the model found no object of these photos that could be repeated; left out")
    return papers


def _say_more(analysis: Analysis, console: Console) -> None:
    if analysis.scores.max_detections != PUBLISHED_MAX_DETECTIONS:
        console.print(counted(analysis.scores))
    if analysis.best.overall is not None:
        best = analysis.best.overall
        console.print(
            f"best threshold {best.threshold:.3f}: precision {best.precision:.3f}, recall {best.recall:.3f}, F1 "
            f"{best.f1:.3f}"
        )
    mistakes = ", ".join(f"{count} {kind}" for kind, count in analysis.errors.counts.items())
    console.print(f"right {analysis.errors.num_right}; mistakes: {mistakes}")


def _write_folder(
    output: Path | None,
    analysis: Analysis,
    papers: Sequence[PaperAnalysis],
    pictures: Dataset[Sample],
    records: Split,
    title: str,
    console: Console,
    masks: BoxScores | None = None,
) -> None:
    """Write scores, report and pictures into a folder, if one was named."""
    if output is None or output.suffix == ".json":
        return
    make_folder(output)
    content = {"title": title, **analysis.to_json(), **{paper.name: paper.content for paper in papers}}
    if masks is not None:
        content["masks"] = without_nan(masks.to_json())
    write_text(output / "scores.json", json.dumps(content, indent=1, ensure_ascii=False))
    for paper in papers:
        with replacing(output / f"{paper.name}.png") as temporary:
            temporary.write_bytes(paper.chart.png)
    numbers = analysis.scores.numbers
    write_report(
        output / "report.html",
        title=f"AP {numbers['AP']:.3f}, AP50 {numbers['AP50']:.3f}",
        subtitle=title,
        analysis=analysis,
        judged_by=f"from {records.source.name}",
        worst=draw_worst(analysis, pictures, records.records.image_ids),
        charts=[paper.chart for paper in papers],
        masks=masks,
    )
    console.print(f"report: {output / 'report.html'}", soft_wrap=True)
