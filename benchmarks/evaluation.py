"""Speed of the COCO evaluation, and equality of its metrics with those of pycocotools.

    python -m benchmarks.evaluation [--images 5000] [--detections 100]

Random images with objects of 80 classes and 100 detections each are evaluated by detrkit and by pycocotools in one process,
from the same document and the same detections. The time includes everything up to the twelve metrics: building indices,
matching, accumulating. detrkit starts from arrays, as its models return detections, and from the list of COCO results that
pycocotools reads. Minimum of three runs for detrkit; pycocotools runs once.
"""

import argparse
import contextlib
import io
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detrkit.evaluation.analysis import analyse
from detrkit.evaluation.arrays import DetectionArrays, GroundTruth
from detrkit.evaluation.coco import COCO_METRICS, evaluate_boxes
from detrkit.evaluation.registry import METRICS

NUM_CLASSES = 80
MEAN_OBJECTS = 7.3  # per image, as in COCO val2017
ROUNDS = 3
WIDTH, HEIGHT = 640, 480


def random_dataset(num_images: int, num_detections: int, seed: int = 0) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return a COCO document, and results with localization errors, wrong classes and false positives."""
    random = np.random.default_rng(seed)
    counts = random.poisson(MEAN_OBJECTS, num_images)
    owners = np.repeat(np.arange(num_images), counts)
    sides = np.exp(random.uniform(np.log(8), np.log(300), (len(owners), 2)))
    corners = random.uniform(0, 1, (len(owners), 2)) * (np.array([WIDTH, HEIGHT]) - sides).clip(min=1)
    boxes = np.concatenate([corners, sides], axis=1).round(2)
    labels = random.integers(1, NUM_CLASSES + 1, len(owners))
    document = {
        "info": {},
        "images": [
            {"id": i + 1, "width": WIDTH, "height": HEIGHT, "file_name": f"{i + 1}.jpg"} for i in range(num_images)
        ],
        "categories": [{"id": i + 1, "name": f"class {i + 1}"} for i in range(NUM_CLASSES)],
        "annotations": [
            {
                "id": index + 1,
                "image_id": int(owner) + 1,
                "category_id": int(label),
                "bbox": box,
                "area": box[2] * box[3] * 0.7,
                "iscrowd": int(is_crowd),
            }
            for index, (owner, label, box, is_crowd) in enumerate(
                zip(owners, labels, boxes.tolist(), random.random(len(owners)) < 0.01, strict=True)
            )
        ],
    }
    image_of = np.repeat(np.arange(num_images), num_detections)
    starts = np.cumsum(counts) - counts
    chosen = starts[image_of] + (random.random(len(image_of)) * counts[image_of]).astype(int)
    chosen = chosen.clip(max=len(owners) - 1)
    moved = boxes[chosen] + random.normal(0, 0.25, (len(image_of), 4)) * np.tile(boxes[chosen][:, 2:], 2)
    moved[:, 2:] = moved[:, 2:].clip(min=1)
    random_labels = random.integers(1, NUM_CLASSES + 1, len(image_of))
    predicted = np.where(random.random(len(image_of)) < 0.6, labels[chosen], random_labels)
    columns = (image_of + 1, predicted, moved.round(2), random.random(len(image_of)).round(4))
    results = [
        {"image_id": image_id, "category_id": label, "bbox": box, "score": score}
        for image_id, label, box, score in zip(*(column.tolist() for column in columns), strict=True)
    ]
    return document, results


def evaluate_with_pycocotools(document: dict[str, Any], results: list[dict[str, Any]]) -> list[float]:
    """Compute the twelve COCO metrics."""
    with contextlib.redirect_stdout(io.StringIO()):
        ground_truth = COCO()
        ground_truth.dataset = document
        ground_truth.createIndex()
        evaluation = COCOeval(ground_truth, ground_truth.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return list(map(float, evaluation.stats))


def measure(function: Callable[[], Any], rounds: int) -> tuple[Any, float]:
    """Return the result of a function and its minimum time in seconds."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        result = function()
        times.append(time.perf_counter() - start)
    return result, min(times)


def main() -> None:
    """Evaluate, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--detections", type=int, default=100, help="per image")
    arguments = parser.parse_args()
    document, results = random_dataset(arguments.images, arguments.detections)
    detections = DetectionArrays.from_coco(results)
    print(f"{arguments.images} images, {len(document['annotations'])} objects, {len(results)} detections, 80 classes")
    scores, from_arrays = measure(lambda: evaluate_boxes(document, detections), ROUNDS)
    _, from_list = measure(lambda: evaluate_boxes(document, results), ROUNDS)
    ground_truth = GroundTruth.from_coco(document)
    _, analysis = measure(lambda: analyse(ground_truth, detections, 100, METRICS), 1)
    expected, reference = measure(lambda: evaluate_with_pycocotools(document, results), 1)
    metrics = [scores.values[name] for name in COCO_METRICS]
    for name, one, other in zip(COCO_METRICS, metrics, expected, strict=True):
        print(f"{name:10} {one:.15f} {other:.15f} {'equal' if one == other else f'differs by {abs(one - other):.1e}'}")
    print(f"pycocotools {reference:.1f} s")
    print(f"detrkit, from arrays {from_arrays:.2f} s: {reference / from_arrays:.0f} times as fast")
    print(f"detrkit, from a list of results {from_list:.2f} s: {reference / from_list:.0f} times as fast")
    print(f"detrkit, with all metrics of the report {analysis:.2f} s: {reference / analysis:.0f} times as fast")
    largest = max(abs(one - other) for one, other in zip(metrics, expected, strict=True))
    assert largest < 1e-12, f"the metrics differ by {largest}"


if __name__ == "__main__":
    main()
