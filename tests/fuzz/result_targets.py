"""Targets: results of models, and the files of a run folder."""

import json
import zlib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from detrkit.checkpoints.named_model import config_of_named_model
from detrkit.config.run import RunConfig, load_run_config, write_config
from detrkit.data.formats.category_file import category_file_text, read_category_file
from detrkit.data.formats.context import ReadContext
from detrkit.data.splits import load_dataset
from detrkit.errors import DetrkitError
from detrkit.evaluation.arrays import EvalInput
from detrkit.evaluation.coco import evaluate_coco
from detrkit.evaluation.ground_truth import ground_truth_of_split
from detrkit.evaluation.results_io import read_panoptic_results, read_results
from detrkit.inference.writers.jsonl import JsonlWriter, read_jsonl
from detrkit.models.presets import preset_config
from detrkit.training.loggers.jsonl import read_metrics
from detrkit.training.planner import plan_model, plan_training
from detrkit.visualization.charts import draw_training_curves
from tests.fuzz.checkpoint_targets import CATEGORIES
from tests.fuzz.dataset_targets import TARGETS as DATASET_TARGETS
from tests.fuzz.dataset_targets import coco_document, run_lengths, write_files, write_images
from tests.fuzz.target import Target
from tests.fuzz.values import YAML_BOMB

# COCO results


def _results_seeds(_folder: Path, _nasty: Path | None) -> Iterable[Sequence[bytes]]:
    boxes = [
        {"image_id": 1, "category_id": 3, "score": 0.75, "bbox": [1, 2, 10, 12.5]},
        {"image_id": 2.0, "category_id": 7, "score": 0.5, "bbox": [5.0, 5.0, 20.0, 20.0]},
    ]
    segmentations = run_lengths((20, 30), (1, 2, 11, 14)), run_lengths((48, 64), (5, 5, 25, 25))
    masks = [{**box, "segmentation": one} for box, one in zip(boxes, segmentations, strict=True)]
    yield [json.dumps(boxes).encode()]
    yield [json.dumps(masks).encode()]
    yield [json.dumps([{name: value for name, value in one.items() if name != "bbox"} for one in masks]).encode()]
    yield [b"[]"]


def _results_prepare(folder: Path) -> None:
    write_images(folder / "data" / "images")
    document = coco_document()
    document["annotations"] = [entry for entry in document["annotations"] if entry["id"] != 3]
    write_files(folder, {"data/annotations/instances_val.json": json.dumps(document).encode()})


def _results_run(files: Sequence[bytes], folder: Path) -> None:
    split = load_dataset(folder / "data", masks=True).val
    truth = ground_truth_of_split(split, masks=True)
    write_files(folder, {"results.json": files[0]})
    detections = read_results(folder / "results.json", truth)
    inputs = EvalInput.align(truth, detections)
    evaluate_coco(inputs, 100)
    if detections.masks is not None:
        evaluate_coco(inputs, 100, ap50_gains=False, iou_type="segm")


# COCO panoptic results


def _panoptic_results_seeds(folder: Path, _nasty: Path | None) -> Iterable[Sequence[bytes]]:
    panoptic = next(one for one in DATASET_TARGETS if one.name == "panoptic")
    content, png = next(iter(panoptic.seeds(folder, None)))
    document = json.loads(content)
    entry = {**document["annotations"][0], "file_name": "1.png"}
    entry["segments_info"] = [{**one, "score": 0.5, "isthing": 1} for one in entry["segments_info"]]
    yield [json.dumps({"annotations": [entry]}).encode(), png]


def _panoptic_results_prepare(folder: Path) -> None:
    panoptic = next(one for one in DATASET_TARGETS if one.name == "panoptic")
    panoptic.prepare(folder)
    content, png = next(iter(panoptic.seeds(folder, None)))
    write_files(folder, {"data/annotations/panoptic_train.json": content, "data/annotations/panoptic_train/1.png": png})


def _panoptic_results_run(files: Sequence[bytes], folder: Path) -> None:
    split = load_dataset(folder / "data", "panoptic", masks=True).train
    write_files(folder, {"results.json": files[0], "1.png": files[1]})
    for _, segments in read_panoptic_results(folder / "results.json", split):
        repr(segments), [one.area for one in segments]


# predictions as JSON lines


def _lines_seeds(_folder: Path, _nasty: Path | None) -> Iterable[Sequence[bytes]]:
    lines = [
        {"image": "1.png", "width": 3, "height": 2, "boxes": [[0, 0, 1, 1]], "scores": [0.5], "category_ids": [3]},
        {"image": "2.jpg", "error": "x"},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines).encode()
    yield [json.dumps({"format": "detrkit-predictions-1", "threshold": 0.5}).encode(), text]
    yield [b"{}", text[:-5]]


def _lines_run(files: Sequence[bytes], folder: Path) -> None:
    write_files(folder, {"predictions.settings.json": files[0], "predictions.jsonl": files[1]})
    with suppress(DetrkitError):
        list(read_jsonl(folder / "predictions.jsonl"))
    with JsonlWriter(folder / "predictions.jsonl", {"threshold": 0.5}) as writer:
        writer.add({"image": "3.png"})
    list(read_jsonl(folder / "predictions.jsonl"))


# run folders: config.yaml, categories.json, metrics.jsonl


def _run_seeds(folder: Path, _nasty: Path | None) -> Iterable[Sequence[bytes]]:
    write_config(folder / "config.yaml", RunConfig(data="data"), preset_config("detrkit-s").model_dump(mode="json"))
    categories = category_file_text(CATEGORIES).encode()
    metrics = [
        {"kind": "train", "step": 10, "epoch": 1, "loss": 2.5, "loss_ce": 1.0, "images_per_second": 3.5},
        {"kind": "evaluation", "step": 20, "epoch": 2, "ap": 0.25, "ap50": 0.5, "best": True},
    ]
    lines = "".join(json.dumps(line) + "\n" for line in metrics).encode()
    yield [(folder / "config.yaml").read_bytes(), categories, lines]
    yield [b"data: x\nmodel: detr-r50\nepochs: 3\noptimizer: {lr: 0.001}\n", b"", b""]
    yield [b"data: " + YAML_BOMB + b"\nmodel: detr-tiny\n", b"[]", b"1\n"]
    yield [b"data: x\nmodel:\n  name: detr-tiny\n  num_queries: " + YAML_BOMB + b"\n", b"[]", b"1\n"]


def _run_prepare(_folder: Path) -> None:
    draw_training_curves([])  # the first figure takes seconds, and so does the first model
    with suppress(DetrkitError):
        config_of_named_model("detrkit-s", {}, "weights")


def _run_run(files: Sequence[bytes], folder: Path) -> None:
    write_files(folder, {"run/config.yaml": files[0], "run/categories.json": files[1], "run/metrics.jsonl": files[2]})
    run = folder / "run"
    with suppress(DetrkitError):
        read_category_file(run, ReadContext())
    draw = zlib.crc32(files[2]) % 16 == 0  # drawing takes a hundred times as long as the rest
    metrics = read_metrics(run)
    if draw:
        draw_training_curves(metrics)
    if zlib.crc32(files[0]) % 8 == 0:  # builds a model
        with suppress(DetrkitError):
            config_of_named_model(str(run), {}, run)
    config = load_run_config(run / "config.yaml")
    planned = plan_model(config)
    plan_training(planned, set(planned.training.explicit), 100, 1)


TARGETS = (
    Target("results", ("json",), _results_run, _results_seeds, _results_prepare),
    Target(
        "panoptic-results", ("json", "png"), _panoptic_results_run, _panoptic_results_seeds, _panoptic_results_prepare
    ),
    Target("lines", ("json", "text"), _lines_run, _lines_seeds),
    Target("run", ("yaml", "json", "lines"), _run_run, _run_seeds, _run_prepare, is_slow=True),
)
