"""Small hand-written evaluation inputs, and random large ones."""

from typing import Any

import numpy as np

from detrkit.evaluation.arrays import DetectionArrays, EvalInput, GroundTruth

CLASSES = (3, 7, 20)  # category ids; cat, dog, cow


def document(
    objects: list[tuple[int, int, list[float]]], num_images: int = 1, crowds: tuple[int, ...] = ()
) -> dict[str, Any]:
    """Objects (image, category id, xywh) as a COCO document; `crowds` are indices into them."""
    return {
        "images": [{"id": 10 * (i + 1), "width": 1000, "height": 500} for i in range(num_images)],
        "annotations": [
            {"id": i + 1, "image_id": 10 * image, "category_id": category, "bbox": box, "iscrowd": int(i in crowds)}
            for i, (image, category, box) in enumerate(objects)
        ],
        "categories": [{"id": n, "name": name} for n, name in zip(CLASSES, ("cat", "dog", "cow"), strict=True)],
    }


def results(detections: list[tuple[int, int, list[float], float]]) -> list[dict[str, Any]]:
    """Detections (image, category id, xywh, score) as COCO results."""
    return [
        {"image_id": 10 * image, "category_id": category, "bbox": box, "score": score}
        for image, category, box, score in detections
    ]


def case(
    objects: list[tuple[int, int, list[float]]],
    detections: list[tuple[int, int, list[float], float]],
    num_images: int = 1,
    crowds: tuple[int, ...] = (),
) -> EvalInput:
    return EvalInput.align(
        GroundTruth.from_coco(document(objects, num_images, crowds)), DetectionArrays.from_coco(results(detections))
    )


def random_case(seed: int, num_images: int = 30, *, crowd_share: float = 0.1) -> EvalInput:
    """Random images with true positives, shifted, misclassified, duplicate and background detections."""
    random = np.random.default_rng(seed)
    objects, detections = [], []
    for image in range(1, num_images + 1):
        for _ in range(int(random.integers(0, 8))):
            w, h = random.uniform(60, 250, 2)
            x, y = random.uniform(0, 700), random.uniform(0, 250)
            category = int(random.choice(CLASSES))
            objects.append((image, category, [x, y, w, h]))
            for _ in range(int(random.integers(0, 4))):
                shift = random.normal(0, 0.2, 4) * [w, h, w, h]
                box = np.maximum(np.array([x, y, w, h]) + shift, 1).tolist()
                label = category if random.random() < 0.7 else int(random.choice(CLASSES))
                detections.append((image, label, box, float(random.random())))
        for _ in range(int(random.integers(0, 3))):
            box = [*random.uniform(0, 400, 2).tolist(), 40.0, 40.0]
            detections.append((image, int(random.choice(CLASSES)), box, float(random.random())))
    crowds = tuple(np.flatnonzero(random.random(len(objects)) < crowd_share).tolist())
    return case(objects, detections, num_images, crowds)
