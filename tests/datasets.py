"""Dataset folders made on the spot, for tests that go from files to files."""

import json
from pathlib import Path

from PIL import Image

from detrkit.data.synthetic import SHAPES, DrawingStyle, DrawnShapes
from detrkit.evaluation.coco import annotations_of_samples


def write_coco(root: Path, num_train: int = 4, num_val: int = 3, size: int = 64) -> Path:
    """Write drawn shapes as a folder in the COCO 2017 layout; photo 1 of each split has no objects."""
    (root / "annotations").mkdir(parents=True)
    for seed, (name, count) in enumerate({"train2017": num_train, "val2017": num_val}.items()):
        samples = DrawnShapes(count, seed, DrawingStyle(size=size)).draw_all()
        document = annotations_of_samples(samples, SHAPES)
        document["annotations"] = [entry for entry in document["annotations"] if entry["image_id"] != 1]
        (root / name).mkdir()
        for sample, entry in zip(samples, document["images"], strict=True):
            Image.fromarray(sample.image.permute(1, 2, 0).numpy()).save(root / name / entry["file_name"])
        (root / "annotations" / f"instances_{name}.json").write_text(json.dumps(document))
    return root
