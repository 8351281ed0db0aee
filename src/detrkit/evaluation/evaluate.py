"""Scoring a model, or saved detections, on a dataset folder; and predicting photos that others will score."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from torch.utils.data import Dataset

from detrkit._internal.files import make_folder, write_json_rows
from detrkit._internal.text import plain_console, plural
from detrkit.data.categories import Categories
from detrkit.data.dataset import DetectionDataset, Split
from detrkit.data.formats.folder import Format
from detrkit.data.formats.image_folder import find_image_folder
from detrkit.data.images import RGB
from detrkit.data.loaders import Loader, evaluation_loader
from detrkit.data.records import SplitName
from detrkit.data.transforms.geometry import EvalTransform
from detrkit.errors import ConfigError, DatasetError
from detrkit.evaluation.analysis import Analysis, analyse
from detrkit.evaluation.arrays import DetectionArrays, GroundTruth
from detrkit.evaluation.coco import (
    annotations_of_split,
    max_detections_to_evaluate,
)
from detrkit.evaluation.evaluator import MaskEvaluators, with_segments
from detrkit.evaluation.inference_loop import LAST, collect
from detrkit.evaluation.metrics import EvalMetrics
from detrkit.evaluation.output import check_output, chosen_split, print_analysis, write_evaluation, write_images
from detrkit.evaluation.paper.analyses import (
    PaperAnalysis,
    analyse_counts,
    analyse_layers,
    analyse_queries,
    layers_as_text,
)
from detrkit.evaluation.paper.instance_capacity_run import measure_instance_capacity
from detrkit.evaluation.threshold_store import (
    check_categories,
    run_of,
    state_of_file,
    store_thresholds_of,
    threshold_store_for,
)
from detrkit.inference.detector import Detector
from detrkit.inference.engines.load import choose_inference_device
from detrkit.inference.engines.torch import Engine, TorchEngine
from detrkit.models.detr import DETR
from detrkit.structures import Sample
from detrkit.training.run_report import print_scores_of_all


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
    format: Format | None = None,
    batch_size: int = 1,
    device: str = "auto",
    workers: int = 2,
    output: Path | None = None,
    extras: Extras | None = None,
) -> EvalMetrics | None:
    """Score a model, print the scores, and write what was asked for.

    Args:
        source: run folder, weights, Hugging Face folder or id, or preset.
        data: dataset; or photos without annotations, which are predicted and not scored.
        split: which part of it.
        format: how it is written down.
        batch_size: photos at a time.
        device: where to compute.
        workers: processes that read photos.
        output: `*.json` for the detections alone, or a folder for detections.json, images.json, scores.json, report.html
            and pictures.
        extras: further analyses.

    Returns:
        The scores; None for photos without annotations.

    Raises:
        DetrkitError: the model or the data cannot be read, or do not belong together.
    """
    console, extras = plain_console(), extras or Extras()
    check_output(output)
    chosen_device = choose_inference_device(source, device)
    kept_in = threshold_store_for(source, data, split, extras.store_thresholds)
    evaluated = () if kept_in is None else state_of_file(kept_in)
    detector = Detector.load(source, chosen_device)
    config = detector.engine.config
    records = _open(data, split, format, detector.categories, source, console, masks=config.mask_head)
    is_scored = any(len(record.labels) for record in records.records)
    _check_extras(extras, data, is_scored, output, config.in_channels)
    is_torch = isinstance(detector.engine, TorchEngine) or extras.by_layer  # which exported files cannot tell
    model = detector.model if is_torch else detector.engine  # unfolded: the very digits that training saw
    judges = (
        MaskEvaluators.of(detector, model, records, learns_threshold=kept_in is not None)
        if is_scored
        else MaskEvaluators()
    )
    dataset = DetectionDataset(records, EvalTransform(detector.preprocessing.image_size), config.in_channels)
    batches = evaluation_loader(dataset, batch_size, workers)
    answers = _answers(model, batches, detector, chosen_device, judges, by_layer=extras.by_layer)
    for fault in batches.skipped:
        console.print(f"left out: {fault}", soft_wrap=True)
    _write_detections(output, answers[-1])  # before anything else can go wrong
    if not is_scored:
        _say_unscored(records, output, console)
        return None

    truth = GroundTruth.read(annotations_of_split(records), records.records.image_ids)
    analysis = analyse(truth, answers[-1], max_detections_to_evaluate(config.detections_per_image))
    scores, segment_threshold = judges.scores(analysis, records, answers[-1])
    pictures = DetectionDataset(records, channels=config.in_channels)
    print_scores_of_all(scores, console)
    print_analysis(analysis, console)
    if segment_threshold is not None:
        console.print(f"segments: queries above a score of {segment_threshold:.2f} take part")
    papers = _paper_analyses(detector, answers, analysis, pictures, records.records.image_ids, extras, console)
    write_evaluation(output, analysis, scores, papers, pictures, records, f"{source} on {data} ({split})", console)
    if kept_in is not None:
        best, wanted = with_segments(analysis.best.to_store, segment_threshold), bool(extras.store_thresholds)
        store_thresholds_of(kept_in, best, console, evaluated=evaluated, wanted=wanted)
    return scores


def _answers(
    model: DETR | Engine,
    batches: Loader,
    detector: Detector,
    device: torch.device,
    judges: MaskEvaluators,
    *,
    by_layer: bool,
) -> list[DetectionArrays]:
    """What the model finds after its last layer, or after each."""
    return collect(
        model,
        track(batches, "evaluating", console=Console(stderr=True), transient=True),
        detector.categories,
        device,
        detector.preprocessing.padding_invariant,
        tuple(range(detector.engine.config.decoder_layers)) if by_layer else (LAST,),
        masks=judges.masks,
        watch=judges.segments,
    )


def _open(
    data: str,
    split: SplitName,
    format: Format | None,
    categories: Categories,
    source: str,
    console: Console,
    *,
    masks: bool,
) -> Split:
    """Read the photos that are asked for, annotated or not; with what masks are made of, where the data has it."""
    if format is None:
        unannotated = find_image_folder(Path(data), split, categories)
        if unannotated is not None:
            return unannotated
    run = run_of(source, data)
    format, seed = format or (run.format if run else None), run.training.seed if run else None
    try:
        records = chosen_split(data, split, format, seed, console, masks=masks)
    except DatasetError as error:
        if not masks:
            raise
        records = chosen_split(data, split, format, seed, console)
        console.print(f"masks are not scored: {error}", soft_wrap=True)
    check_categories(categories, records.categories, records.source)
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


def _write_detections(output: Path | None, found: DetectionArrays) -> None:
    if output is not None:
        path = output if output.suffix == ".json" else make_folder(output) / "detections.json"
        write_json_rows(path, found.to_coco())


def _say_unscored(records: Split, output: Path | None, console: Console) -> None:
    console.print(
        f"{records.source}: no annotations, so nothing was scored; the detections of "
        f"{plural(len(records.records), 'photo')} are in {output}",
        soft_wrap=True,
    )
    if output is not None and output.suffix != ".json":
        write_images(output, records.records)


def _paper_analyses(
    detector: Detector,
    answers: Sequence[DetectionArrays],
    analysis: Analysis,
    pictures: Dataset[Sample],
    image_ids: Sequence[int],
    extras: Extras,
    console: Console,
) -> list[PaperAnalysis]:
    truth, queries = analysis.case.truth, detector.engine.config.num_queries
    papers = []
    if extras.by_layer:
        papers.append(analyse_layers(truth, answers, analysis.scores.max_detections))
        console.print(layers_as_text(papers[-1]))
    if extras.query_map:
        are_proposals = detector.engine.config.queries == "two_stage"
        papers.append(analyse_queries(truth, answers[-1], queries, are_proposals=are_proposals))
    if extras.counting:
        counts = measure_instance_capacity(detector, analysis, pictures, image_ids)
        if counts:
            papers.append(analyse_counts(counts, queries))
        else:
            console.print("--counting: the model found no object of these photos that could be repeated; left out")
    return papers
