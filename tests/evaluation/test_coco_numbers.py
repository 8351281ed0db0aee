"""The 12 COCO metrics and AP per class: small cases by hand, and random ones against pycocotools."""

import contextlib
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detrkit.cli.metrics_table import print_coco_metrics
from detrkit.evaluation.coco import COCO_METRICS, evaluate_boxes

pycocotools_coco = pytest.importorskip("pycocotools.coco")
pycocotools_eval = pytest.importorskip("pycocotools.cocoeval")


def document(annotations: list[dict[str, Any]], num_images: int, categories: tuple[int, ...]) -> dict[str, Any]:
    return {
        "info": {},
        "images": [{"id": i + 1, "width": 640, "height": 480, "file_name": f"{i + 1}.jpg"} for i in range(num_images)],
        "annotations": [
            {"id": number + 1, "iscrowd": 0, "area": entry["bbox"][2] * entry["bbox"][3], **entry}
            for number, entry in enumerate(annotations)
        ],
        "categories": [{"id": c, "name": f"class {c}"} for c in categories],
    }


def random_case(seed: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Objects of all sizes, crowds, a class without objects, and detections of which about half are true positives."""
    random = np.random.default_rng(seed)
    objects, results = [], []
    for image_id in range(1, 26):
        for _ in range(int(random.integers(0, 8))):
            w, h = random.choice([12, 50, 150], 2) * random.uniform(0.5, 1.5, 2)
            x, y = random.uniform(0, [640 - w, 480 - h])
            category = int(random.choice([3, 7, 20]))
            objects.append(
                {
                    "image_id": image_id,
                    "category_id": category,
                    "bbox": [float(x), float(y), float(w), float(h)],
                    "iscrowd": int(random.random() < 0.1),
                }
            )
            for _ in range(int(random.integers(0, 4))):
                shift = random.normal(0, 0.15, 4) * [w, h, w, h]
                results.append(
                    {
                        "image_id": image_id,
                        "category_id": category if random.random() < 0.8 else 20,
                        "bbox": [float(v) for v in np.maximum(np.array([x, y, w, h]) + shift, 1)],
                        "score": float(random.random()),
                    }
                )
    return document(objects, 25, (3, 7, 20, 90)), results


@pytest.mark.parametrize("seed", range(3))
def test_metrics_equal_those_of_pycocotools(seed: int) -> None:
    ground_truth, results = random_case(seed)
    with contextlib.redirect_stdout(io.StringIO()):
        reference = pycocotools_coco.COCO()
        reference.dataset = ground_truth
        reference.createIndex()
        evaluation = pycocotools_eval.COCOeval(reference, reference.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    scores = evaluate_boxes(ground_truth, results)
    np.testing.assert_allclose([scores.values[name] for name in COCO_METRICS], evaluation.stats, rtol=0, atol=1e-9)
    for index, score in enumerate(scores.per_class):
        precision = evaluation.eval["precision"][:, :, index, 0, 2]
        expected = precision[precision > -1].mean() if (precision > -1).any() else math.nan
        np.testing.assert_allclose(score.ap, expected, rtol=0, atol=1e-9)
    assert math.isnan(scores.per_class[-1].ap)
    assert scores.num_objects == sum(not entry["iscrowd"] for entry in ground_truth["annotations"])


def test_ap_by_hand() -> None:
    """Class 1: one object detected with IoU 0.72, a true positive at five of ten thresholds. Class 2: missed."""
    ground_truth = document(
        [
            {"image_id": 1, "category_id": 1, "bbox": [0, 0, 100, 100]},
            {"image_id": 1, "category_id": 2, "bbox": [200, 200, 50, 50]},
        ],
        1,
        (1, 2),
    )
    scores = evaluate_boxes(ground_truth, [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 100, 72], "score": 0.9}])
    first, second = scores.per_class
    assert (first.num_objects, second.num_objects) == (1, 1)
    assert first.ap == pytest.approx(0.5)
    assert first.ap50 == pytest.approx(1)
    assert first.ap75 == 0
    assert second.ap == 0
    assert scores.ap == pytest.approx(0.25)


def test_ap_by_object_size() -> None:
    """Small: detected. Medium: missed. Large: detected with IoU 0.72, a true positive at five of ten thresholds."""
    sides = [20.0, 50.0, 100.0]
    objects = [{"image_id": 1, "category_id": 1, "bbox": [150.0 * i, 0.0, s, s]} for i, s in enumerate(sides)]
    detections = [
        {"image_id": 1, "category_id": 1, "bbox": box, "score": 0.9}
        for box in ([0.0, 0.0, 20.0, 20.0], [300.0, 0.0, 100.0, 72.0])
    ]
    (score,) = evaluate_boxes(document(objects, 1, (1,)), detections).per_class
    assert (score.ap_small, score.ap_medium, score.ap_large) == (pytest.approx(1), 0, pytest.approx(0.5))
    assert score.ar == pytest.approx((1 + 0 + 0.5) / 3)


def test_ap_without_detections_is_zero_and_without_objects_undefined() -> None:
    ground_truth = document([{"image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9]}], 2, (1,))
    assert evaluate_boxes(ground_truth, []).ap == 0
    empty = evaluate_boxes(document([], 1, (1,)), [])
    assert empty.num_objects == 0
    assert empty.ap == -1


def test_only_the_selected_images_are_evaluated() -> None:
    objects = [{"image_id": i, "category_id": 1, "bbox": [0, 0, 90, 90]} for i in (1, 2)]
    detections = [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 90, 90], "score": 0.5}]
    assert evaluate_boxes(document(objects, 2, (1,)), detections).values["ar100"] == pytest.approx(0.5)
    assert evaluate_boxes(document(objects, 2, (1,)), detections, image_ids=[1]).ap == pytest.approx(1)


def test_console_table_fits_80_columns() -> None:
    from rich.console import Console

    ground_truth, results = random_case(0)
    ground_truth["categories"][0]["name"] = (
        "a category whose name is longer than anybody would want to read in a table of metrics"
    )
    console = Console(file=io.StringIO(), width=80)
    print_coco_metrics(evaluate_boxes(ground_truth, results), console)
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert any("AP50" in line for line in lines)
    assert max(len(line) for line in lines) <= 80


def test_files_in_the_wild_are_scored(tmp_path: Path) -> None:
    """Negative ids, loose types and a byte order mark, which strict readers refuse, give the same numbers."""
    ground_truth, results = random_case(1)
    expected = evaluate_boxes(ground_truth, results).values
    category = {entry["id"]: -entry["id"] for entry in ground_truth["categories"]}
    wild: dict[str, Any] = {
        "info": [],
        "images": [
            {**entry, "id": entry["id"] - 1000, "license": "CC", "date_captured": 5} for entry in ground_truth["images"]
        ],
        "categories": [{**entry, "id": category[entry["id"]]} for entry in ground_truth["categories"]],
        "annotations": [
            {
                **entry,
                "id": f"a{entry['id']}",
                "image_id": entry["image_id"] - 1000,
                "category_id": category[entry["category_id"]],
                "iscrowd": entry["iscrowd"] or None,
            }
            for entry in ground_truth["annotations"]
        ],
    }
    moved = [
        {**entry, "image_id": entry["image_id"] - 1000, "category_id": category[entry["category_id"]]}
        for entry in results
    ]
    path = tmp_path / "instances.json"
    path.write_text("\ufeff" + json.dumps(wild), encoding="utf-8")
    actual = evaluate_boxes(path, moved).values
    assert actual == pytest.approx(expected, abs=1e-12)


def test_detections_of_categories_that_the_data_does_not_have_do_not_count() -> None:
    ground_truth = document([{"image_id": 1, "category_id": 1, "bbox": [0, 0, 90, 90]}], 1, (1,))
    detections = [{"image_id": 1, "category_id": c, "bbox": [0, 0, 90, 90], "score": 0.5} for c in (1, 12)]
    assert evaluate_boxes(ground_truth, detections).ap == pytest.approx(1)
