"""How fast is an evaluation, and are its numbers COCO's?

    python -m benchmarks.evaluation [--photos 5000] [--detections 100]

Photos with objects of 80 classes and 100 detections each, drawn from a seed, are scored by detrkit and by pycocotools, in
one process one after the other, from the same document and the same detections. What is timed is all from there to the
twelve numbers: building indices, matching, accumulating. detrkit starts from columns, as its models hand detections over,
and from the list of COCO results that pycocotools reads; its best of three runs counts, pycocotools runs once.
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
OBJECTS = 7.3  # per photo on average, as in COCO val2017
ROUNDS = 3
WIDTH, HEIGHT = 640, 480


def draw(num_images: int, per_photo: int, seed: int = 0) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A COCO document, and detections of which some are right, moved, misnamed or of nothing."""
    random = np.random.default_rng(seed)
    counts = random.poisson(OBJECTS, num_images)
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
    photos = np.repeat(np.arange(num_images), per_photo)
    starts = np.cumsum(counts) - counts
    chosen = starts[photos] + (random.random(len(photos)) * counts[photos]).astype(int)
    chosen = chosen.clip(max=len(owners) - 1)
    moved = boxes[chosen] + random.normal(0, 0.25, (len(photos), 4)) * np.tile(boxes[chosen][:, 2:], 2)
    moved[:, 2:] = moved[:, 2:].clip(min=1)
    said = np.where(random.random(len(photos)) < 0.6, labels[chosen], random.integers(1, NUM_CLASSES + 1, len(photos)))
    columns = (photos + 1, said, moved.round(2), random.random(len(photos)).round(4))
    results = [
        {"image_id": image_id, "category_id": label, "bbox": box, "score": score}
        for image_id, label, box, score in zip(*(column.tolist() for column in columns), strict=True)
    ]
    return document, results


def by_pycocotools(document: dict[str, Any], results: list[dict[str, Any]]) -> list[float]:
    """The twelve numbers."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = document
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return list(map(float, evaluation.stats))


def timed(work: Callable[[], Any], rounds: int) -> tuple[Any, float]:
    """What it gives, and its least time in seconds."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        outcome = work()
        times.append(time.perf_counter() - start)
    return outcome, min(times)


def main() -> None:
    """Score, compare, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--photos", type=int, default=5000)
    parser.add_argument("--detections", type=int, default=100, help="per photo")
    arguments = parser.parse_args()
    document, results = draw(arguments.photos, arguments.detections)
    found = DetectionArrays.from_coco(results)
    print(f"{arguments.photos} photos, {len(document['annotations'])} objects, {len(results)} detections, 80 classes")
    scores, from_columns = timed(lambda: evaluate_boxes(document, found), ROUNDS)
    _, from_list = timed(lambda: evaluate_boxes(document, results), ROUNDS)
    truth = GroundTruth.from_coco(document)
    _, whole = timed(lambda: analyse(truth, found, 100, METRICS), 1)
    expected, reference = timed(lambda: by_pycocotools(document, results), 1)
    ours = [scores.values[name] for name in COCO_METRICS]
    for name, one, other in zip(NAMES, ours, expected, strict=True):
        print(f"{name:6} {one:.15f} {other:.15f} {'equal' if one == other else f'differs by {abs(one - other):.1e}'}")
    print(f"pycocotools {reference:.1f} s")
    print(f"detrkit, from columns {from_columns:.2f} s: {reference / from_columns:.0f} times as fast")
    print(f"detrkit, from a list of results {from_list:.2f} s: {reference / from_list:.0f} times as fast")
    print(
        f"detrkit, with thresholds, kinds of mistakes and the rest {whole:.2f} s: {reference / whole:.0f} times as fast"
    )
    largest = max(abs(one - other) for one, other in zip(ours, expected, strict=True))
    assert largest < 1e-12, f"the numbers differ by {largest}"


if __name__ == "__main__":
    main()
