"""Evaluation of saved predictions of any model: COCO results (boxes, masks) and COCO panoptic results."""

import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from detrkit.data.dataset import DetectionDataset, Split
from detrkit.data.formats.panoptic import is_panoptic_file
from detrkit.errors import ConfigError, DatasetError, arg
from detrkit.evaluation.analysis import Metric, analyse
from detrkit.evaluation.coco import PUBLISHED_MAX_DETECTIONS, evaluate_masks
from detrkit.evaluation.ground_truth import ground_truth_of_split
from detrkit.evaluation.metrics import EvalMetrics
from detrkit.evaluation.output import write_images_list, write_result
from detrkit.evaluation.panoptic import evaluate_panoptic
from detrkit.evaluation.result import EvalResult
from detrkit.evaluation.results_io import PanopticResults, read_panoptic_results, read_results
from detrkit.structures import PanopticSegments

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]


def evaluate_results(
    path: Path,
    split: Split,
    notes: tuple[str, ...],
    title: str,
    metrics: Mapping[str, Metric],
    output: Path | None,
    progress: Progress | None,
) -> EvalResult:
    """Evaluate a results file; see `detrkit.evaluation.evaluate.evaluate`.

    Raises:
        DetrkitError: the results cannot be read, or do not fit the data.
    """
    if output is not None and output.suffix == ".json":
        raise ConfigError(
            f"{arg('output', output)}: the detections are already in a file; pass a folder for the report"
        )
    if is_panoptic_file(path):
        result = _evaluate_panoptic(path, split, notes, title, progress)
    else:
        result = _evaluate_detections(path, split, notes, title, metrics)
        if output is not None:
            write_images_list(output, split.records)
    if output is not None:
        write_result(output, result)
    return result


def _evaluate_detections(
    path: Path, split: Split, notes: tuple[str, ...], title: str, metrics: Mapping[str, Metric]
) -> EvalResult:
    ground_truth = ground_truth_of_split(split)
    detections = read_results(path, ground_truth, split.categories)
    analysis = analyse(ground_truth, detections, PUBLISHED_MAX_DETECTIONS, metrics)
    mask_metrics = None
    if detections.masks is not None and not (split.source.suffix == ".json" or split.has_masks):
        logger.warning("masks are not evaluated: the annotations in %s are boxes only", split.source)
    elif detections.masks is not None:
        mask_metrics = evaluate_masks(ground_truth_of_split(split, masks=True), detections)
    return EvalResult(
        title=title,
        metrics=EvalMetrics(analysis.metrics, mask_metrics),
        detections=detections,
        analysis=analysis,
        thresholds=analysis.best.thresholds,
        split=split,
        images=DetectionDataset(split),
        notes=notes,
    )


def _evaluate_panoptic(
    path: Path, split: Split, notes: tuple[str, ...], title: str, progress: Progress | None
) -> EvalResult:
    if not split.has_segments:
        raise DatasetError(
            f"{split.source} is not panoptic, but {path} contains panoptic results; pass a panoptic dataset, with "
            f"{arg('format', 'panoptic')} if the folder also contains instances"
        )
    results = read_panoptic_results(path, split)
    metrics = EvalMetrics(panoptic=evaluate_panoptic(split, _with_progress(results, progress)))
    return EvalResult(title, metrics, None, None, None, split, DetectionDataset(split), notes=notes)


def _with_progress(results: PanopticResults, progress: Progress | None) -> Iterator[tuple[int, PanopticSegments]]:
    for done, item in enumerate(results, start=1):
        yield item
        if progress is not None:
            progress(done, len(results))
