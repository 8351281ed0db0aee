"""Small dataset folders for tests."""

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from detrkit import build_model
from detrkit.checkpoints.native import Checkpoint, Preprocessing, save_checkpoint
from detrkit.data.segment_png import write_ids
from detrkit.data.synthetic import SHAPES, SyntheticShapes, SyntheticStyle
from detrkit.evaluation.ground_truth import samples_to_coco


def write_coco(root: Path, num_train: int = 4, num_val: int = 3, size: int = 64) -> Path:
    """Write synthetic shapes in the COCO 2017 layout; image 1 of each split has no objects."""
    (root / "annotations").mkdir(parents=True)
    for seed, (name, count) in enumerate({"train2017": num_train, "val2017": num_val}.items()):
        samples = SyntheticShapes(count, seed, SyntheticStyle(size=size)).draw_all()
        document = samples_to_coco(samples, SHAPES)
        document["annotations"] = [entry for entry in document["annotations"] if entry["image_id"] != 1]
        (root / name).mkdir()
        for sample, entry in zip(samples, document["images"], strict=True):
            Image.fromarray(sample.image.permute(1, 2, 0).numpy()).save(root / name / entry["file_name"])
        (root / "annotations" / f"instances_{name}.json").write_text(json.dumps(document))
    return root


def write_whole_photos(root: Path, num_train: int = 4, num_val: int = 3) -> tuple[Path, Path]:
    """Write a dataset in which every image is covered by one circle, and a model that always predicts nearly that.

    Returns:
        The folder, and the weights of a detr-tiny whose boxes cover 0.96 of any image.
    """
    folder = write_coco(root / "photos", num_train, num_val)
    for path in (folder / "annotations").iterdir():
        document = json.loads(path.read_text())
        document["annotations"] = [
            {"id": n, "image_id": image["id"], "category_id": 1, "bbox": [0, 0, 64, 64], "area": 4096, "iscrowd": 0}
            for n, image in enumerate(document["images"], 1)
        ]
        path.write_text(json.dumps(document))
    model = build_model("detr-tiny", num_classes=3)
    with torch.no_grad():
        model.heads.box_head.last.weight.zero_()
        model.heads.box_head.last.bias.copy_(torch.tensor([0.0, 0.0, 4.0, 4.0]))
        model.heads.class_head.bias.copy_(torch.tensor([5.0, 0.0, 0.0, 0.0]))
    weights = root / "whole.safetensors"
    save_checkpoint(weights, Checkpoint(model.state_dict(), model.config, SHAPES, Preprocessing(image_size=64)))
    return folder, weights


PANOPTIC_CATEGORIES = [
    {"id": 90, "name": "zebra", "isthing": 1},
    {"id": 4, "name": "grass", "isthing": 0},
    {"id": 7, "name": "ant", "isthing": 1},
]
# id, category, crowd, (top, left, bottom, right): a later rectangle covers those before it
PANOPTIC_SEGMENTS = [
    (70_000, 4, 0, (10, 0, 20, 30)),
    (300, 90, 0, (2, 5, 12, 15)),
    (5, 7, 0, (0, 29, 9, 30)),
    (6, 7, 1, (0, 0, 2, 10)),
]


def panoptic_document(num_images: int = 2) -> tuple[dict[str, Any], np.ndarray]:
    """Return a panoptic document of identical images of 20 x 30 pixels, and the segment ids of their pixels."""
    ids = np.zeros((20, 30), np.int32)
    for number, _, _, (top, left, bottom, right) in PANOPTIC_SEGMENTS:
        ids[top:bottom, left:right] = number
    segments = []
    for number, category, crowd, _ in PANOPTIC_SEGMENTS:
        rows, columns = (ids == number).any(1).nonzero()[0], (ids == number).any(0).nonzero()[0]
        x, y = int(columns[0]), int(rows[0])
        box = [x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y]
        area = int((ids == number).sum())
        segments.append({"id": number, "category_id": category, "iscrowd": crowd, "bbox": box, "area": area})
    numbers = range(1, num_images + 1)
    return {
        "images": [{"id": n, "file_name": f"{n}.jpg", "height": 20, "width": 30} for n in numbers],
        "annotations": [
            {"image_id": n, "file_name": f"{n}.png", "segments_info": json.loads(json.dumps(segments))} for n in numbers
        ],
        "categories": PANOPTIC_CATEGORIES,
    }, ids


def write_panoptic(root: Path, layout: Literal["official", "flat", "single"] = "official", num_images: int = 2) -> Path:
    """Write `panoptic_document` as a folder: COCO's own layout, PNG folders next to the images', or a single JSON."""
    document, ids = panoptic_document(num_images)
    for split in ("train2017",) if layout == "single" else ("train2017", "val2017"):
        file = root / "annotations" / f"panoptic_{split}.json"
        images, pngs = root / split, (file.with_suffix("") if layout == "official" else root / f"panoptic_{split}")
        if layout == "single":
            file, images, pngs = root / "segments.json", root / "images", root / "masks"
        for folder in (file.parent, images, pngs):
            folder.mkdir(parents=True, exist_ok=True)
        for entry in document["images"]:
            shade = 50 * entry["id"] + (split == "val2017")
            Image.new("RGB", (30, 20), (shade % 256, 90, 30)).save(images / entry["file_name"])
            write_ids(pngs / f"{entry['id']}.png", torch.from_numpy(ids))
        file.write_text(json.dumps(document))
    return root
