"""`detrkit.evaluate`: evaluate a model, or saved predictions, on a dataset split."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from detrkit.checkpoints.named_model import NamedModel
from detrkit.checkpoints.native import Thresholds
from detrkit.checkpoints.path_kinds import DATASET, MODEL_OR_RESULTS, check_kinds
from detrkit.data.dataset import DatasetSplits, DetectionDataset, Split
from detrkit.data.decoding import RGB
from detrkit.data.loaders import Loader, evaluation_loader
from detrkit.data.records import SplitName
from detrkit.errors import ConfigError, DetrkitError, arg
from detrkit.evaluation.analysis import Analysis, Metric, analyse
from detrkit.evaluation.arrays import DetectionArrays
from detrkit.evaluation.class_matching import ClassMatch, match_split
from detrkit.evaluation.coco import evaluate_masks, max_detections_to_evaluate
from detrkit.evaluation.data import Data, load_annotated, load_for_model
from detrkit.evaluation.evaluate_results import evaluate_results
from detrkit.evaluation.evaluator import (
    SEGMENT_THRESHOLDS,
    PanopticEvaluator,
    full_size_masks,
    with_segment_threshold,
)
from detrkit.evaluation.ground_truth import ground_truth_of_split, ground_truth_segments
from detrkit.evaluation.inference_loop import LAST_LAYER, MaskFunction, run_inference
from detrkit.evaluation.metrics import EvalMetrics
from detrkit.evaluation.output import check_output, write_detections, write_images_list, write_result
from detrkit.evaluation.paper.analysis import PaperAnalysis
from detrkit.evaluation.paper.instance_capacity import analyse_instance_capacity
from detrkit.evaluation.paper.layers import analyse_layers
from detrkit.evaluation.paper.queries import analyse_queries
from detrkit.evaluation.registry import METRICS
from detrkit.evaluation.result import EvalResult
from detrkit.evaluation.thresholds import CheckpointFile, find_run_config
from detrkit.inference.detector import Detector
from detrkit.inference.engines.load import choose_inference_device
from detrkit.inference.engines.torch import Engine, TorchEngine
from detrkit.models.detr import DETR
from detrkit.structures import Batch

logger = logging.getLogger(__name__)


def evaluate(
    source: str | Path | Detector,
    data: Data,
    *,
    split: SplitName = "val",
    format: str | None = None,
    classes: Sequence[str] | None = None,
    batch_size: int = 1,
    device: str = "auto",
    workers: int = 2,
    by_layer: bool = False,
    query_map: bool = False,
    instance_capacity: bool = False,
    store_thresholds: bool | Literal["auto"] = False,
    metrics: Mapping[str, Metric] | None = None,
    output: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
    model: NamedModel | None = None,
    state_dict_key: str | None = None,
) -> EvalResult:
    """Evaluate a model, or saved predictions, on a dataset split.

    Args:
        source: run folder, weights file, exported file, Hugging Face folder or id, preset, or a `Detector`; or a .json file
            with COCO results (boxes, masks) or COCO panoptic results of any model.
        data: dataset folder, the result of `load_dataset`, one of its splits, or a `torch.utils.data.Dataset` of
            `(image, target)`, see `load_dataset`. Images without annotations, a folder or a COCO image_info JSON, are
            predicted only.
        split: of a dataset folder or the result of `load_dataset`.
        format: annotation format of a dataset folder; detected if omitted.
        classes: class names of a torch dataset, in the order of its labels; by default the model's.
        batch_size: images per batch; does not change the metrics.
        device: such as "cpu" or "cuda:1"; "auto" uses a GPU if there is one.
        workers: processes that read images.
        by_layer: also compute AP after every decoder layer (paper, figure 4).
        query_map: also plot the boxes of each query (figure 7).
        instance_capacity: also count detected objects as their number grows (figure 12).
        store_thresholds: store the best score thresholds in the checkpoint, for `predict(threshold="auto")`; "auto" stores
            them if `data` is the validation split that the run was trained with.
        metrics: metrics of the report in addition to the default ones, by name; see `detrkit.evaluation.registry`.
        output: folder for detections.json, images.json, scores.json, report.html and figures; or a .json file for the
            detections only. By default nothing is written.
        progress: called with the number of evaluated batches and their total.
        model: see `Detector.load`.
        state_dict_key: see `Detector.load`.

    Returns:
        Metrics, best thresholds, error types and curves; `EvalResult.to_html` writes the report.

    Raises:
        DetrkitError: the model or the data cannot be read, or do not fit together.
    """
    output = None if output is None else Path(output)
    check_output(output)
    if isinstance(source, str | Path) and isinstance(data, str | Path):
        check_kinds({"source": (source, MODEL_OR_RESULTS), "data": (data, DATASET)})
    options = {"by_layer": by_layer, "query_map": query_map, "instance_capacity": instance_capacity}
    all_metrics = {**METRICS, **(metrics or {})}
    if not isinstance(source, Detector) and is_results_file(source):
        requested = [name for name, value in {**options, "store_thresholds": store_thresholds is True}.items() if value]
        if requested:
            raise ConfigError(f"{arg(requested[0], True)} needs a model, but {source} contains saved predictions")
        records, notes = load_annotated(data, split, format, classes)
        return evaluate_results(
            Path(source), records, notes, _title(source, data, split), all_metrics, output, progress
        )
    run = _Run.load(source, data, split, format, classes, device, store_thresholds, model, state_dict_key)
    run.check_options(options, output)
    return run.evaluate(batch_size, workers, options, all_metrics, output, progress)


def is_results_file(source: str | Path) -> bool:
    """Return True if a source is a file of saved predictions, not a model."""
    return Path(source).suffix == ".json"


@dataclass(frozen=True)
class _Run:
    """An evaluation of a model."""

    source: str
    title: str
    detector: Detector
    match: ClassMatch
    device: torch.device
    split: Split
    notes: tuple[str, ...]
    checkpoint: CheckpointFile | None  # to store thresholds in
    must_store: bool  # or raise

    @classmethod
    def load(
        cls,
        source: str | Path | Detector,
        data: Data,
        split: SplitName,
        format: str | None,
        classes: Sequence[str] | None,
        device: str,
        store_thresholds: bool | Literal["auto"],
        model: NamedModel | None,
        state_dict_key: str | None,
    ) -> "_Run":
        """Load model and data."""
        name = "model" if isinstance(source, Detector) else str(source)
        is_path = not isinstance(source, Detector) and isinstance(data, str | Path)
        config = find_run_config(name, data) if is_path and isinstance(data, str | Path) else None
        checkpoint = None
        if store_thresholds is True or (store_thresholds == "auto" and split == "val" and config is not None):
            checkpoint = CheckpointFile.of_source(name)
        if isinstance(source, Detector):
            detector = source
            engine = source.engine
            chosen_device = engine.device if isinstance(engine, TorchEngine) else torch.device("cpu")
        else:
            chosen_device = choose_inference_device(name, device)
            detector = Detector.load(name, chosen_device, model=model, state_dict_key=state_dict_key)
        records, notes = load_for_model(
            data,
            split,
            format or (config.format if config else None),
            classes,
            seed=config.training.seed if config else None,
            detector=detector,
        )
        match = match_split(detector.categories, records)
        if match.categories.ids != detector.categories.ids:
            notes = (
                *notes,
                "class ids differ from the model's: classes are matched by name, results have the data's ids",
            )
        title = _title(name, data, split)
        return cls(name, title, detector, match, chosen_device, records, notes, checkpoint, store_thresholds is True)

    @property
    def is_annotated(self) -> bool:
        """True if there is an object to evaluate against."""
        return any(len(record.labels) for record in self.split.records)

    def check_options(self, options: Mapping[str, bool], output: Path | None) -> None:
        """Check that the options can be satisfied."""
        requested = [name for name, value in {**options, "store_thresholds": self.must_store}.items() if value]
        if not self.is_annotated and requested:
            raise ConfigError(f"{arg(requested[0], True)} needs annotations, but {self.split.source} has none")
        if not self.is_annotated and output is None:
            raise ConfigError(
                f"{self.split.source} has no annotations, so there is nothing to evaluate; pass {arg('output')} to write "
                "the detections"
            )
        channels = self.detector.engine.config.in_channels
        if options["instance_capacity"] and channels != RGB:
            raise ConfigError(
                f"{arg('instance_capacity', True)} needs an RGB model, but this one has {channels} channels"
            )

    def evaluate(
        self,
        batch_size: int,
        workers: int,
        options: Mapping[str, bool],
        metrics: Mapping[str, Metric],
        output: Path | None,
        progress: Callable[[int, int], None] | None,
    ) -> EvalResult:
        """Predict, write the detections, and evaluate them."""
        config = self.detector.engine.config
        is_torch = isinstance(self.detector.engine, TorchEngine) or options["by_layer"]
        # the model itself, without fused convolutions, gives the very metrics of training
        model: DETR | Engine = self.detector.exact_model() if is_torch else self.detector.engine
        masks, panoptic_evaluator = self._mask_evaluators(model)
        transform = self.detector.preprocessing.transform(config.in_channels)
        dataset = DetectionDataset(self.split, transform, config.in_channels)
        batches = evaluation_loader(dataset, batch_size, workers)
        detections = run_inference(
            model,
            _with_progress(batches, progress),
            self.match.categories,
            self.device,
            self.detector.preprocessing.padding_invariant,
            tuple(range(config.decoder_layers)) if options["by_layer"] else (LAST_LAYER,),
            masks=masks,
            on_batch=panoptic_evaluator,
        )
        for fault in batches.skipped:
            logger.warning("skipped: %s", fault)
        if output is not None:  # first of all, for it took the longest
            write_detections(output, detections[-1])
            if output.suffix != ".json":
                write_images_list(output, self.split.records)
        images = DetectionDataset(self.split, channels=config.in_channels)
        if not self.is_annotated:
            return EvalResult(
                self.title, EvalMetrics(), detections[-1], None, None, self.split, images, notes=self.notes
            )
        max_detections = max_detections_to_evaluate(config.detections_per_image)
        analysis = analyse(ground_truth_of_split(self.split), detections[-1], max_detections, metrics)
        mask_metrics, panoptic, segment_threshold = None, None, None
        if masks is not None:
            ground_truth = ground_truth_of_split(self.split, masks=True)
            mask_metrics = evaluate_masks(ground_truth, detections[-1], max_detections)
        if panoptic_evaluator is not None:
            segment_threshold, panoptic = panoptic_evaluator.best()
        thresholds = with_segment_threshold(analysis.best.thresholds, segment_threshold)
        result = EvalResult(
            title=self.title,
            metrics=EvalMetrics(analysis.metrics, mask_metrics, panoptic),
            detections=detections[-1],
            analysis=analysis,
            thresholds=thresholds,
            split=self.split,
            images=images,
            paper_analyses=tuple(self._paper_analyses(detections, analysis, images, options)),
            notes=self.notes,
            stored_in=self._store(thresholds),
        )
        if output is not None and output.suffix != ".json":
            write_result(output, result)
        return result

    def _mask_evaluators(self, model: DETR | Engine) -> tuple[MaskFunction | None, PanopticEvaluator | None]:
        """Return what computes masks for mask AP, and what evaluates panoptic segments, as far as model and data allow."""
        if not self.is_annotated or not self.detector.engine.config.mask_head or not self.split.has_masks:
            return None, None
        padding_invariant = self.detector.preprocessing.padding_invariant
        panoptic_evaluator = None
        if self.split.has_segments:
            stored = (self.detector.resolve_segment_threshold("auto"),)
            panoptic_evaluator = PanopticEvaluator(
                self.match.categories,
                ground_truth_segments(self.split, self.match.labels),
                padding_invariant,
                stored if self.checkpoint is None else SEGMENT_THRESHOLDS,
            )
        return full_size_masks(padding_invariant), panoptic_evaluator

    def _paper_analyses(
        self,
        layers: Sequence[DetectionArrays],
        analysis: Analysis,
        images: DetectionDataset,
        options: Mapping[str, bool],
    ) -> Iterator[PaperAnalysis]:
        config, ground_truth = self.detector.engine.config, analysis.inputs.ground_truth
        if options["by_layer"]:
            yield analyse_layers(ground_truth, layers, analysis.metrics.max_detections)
        if options["query_map"]:
            are_proposals = config.has_encoder_queries
            yield analyse_queries(ground_truth, layers[-1], config.num_queries, are_proposals=are_proposals)
        if options["instance_capacity"]:
            capacity = analyse_instance_capacity(
                self.detector, analysis, images, self.split.records.image_ids, self.match.categories
            )
            if capacity is None:
                logger.warning("instance_capacity is left out: no object was detected that could be repeated")
            else:
                yield capacity

    def _store(self, thresholds: Thresholds | None) -> Path | None:
        """Store thresholds in the checkpoint, by the model's ids; without an explicit request, a failure is only logged."""
        if self.checkpoint is None:
            return None
        if thresholds is None:
            logger.warning("thresholds were not stored: there is no true positive")
            return None
        model_ids = self.match.model_ids(self.detector.categories)
        per_class = {model_ids[number]: threshold for number, threshold in thresholds.per_class.items()}
        try:
            self.checkpoint.store(thresholds.model_copy(update={"per_class": per_class}))
        except DetrkitError as error:
            if self.must_store:
                raise
            logger.warning("thresholds were not stored: %s", error)
            return None
        return self.checkpoint.path


def _with_progress(batches: Loader, progress: Callable[[int, int], None] | None) -> Iterator[Batch]:
    for done, batch in enumerate(batches, start=1):
        yield batch
        if progress is not None:
            progress(done, len(batches))


def _title(source: object, data: Data, split: str) -> str:
    name = "model" if isinstance(source, Detector) else str(source)
    if isinstance(data, str | Path):
        return f"{name} on {data} ({split})"
    return f"{name} on {type(data).__name__}" + (f" ({split})" if isinstance(data, DatasetSplits) else "")
