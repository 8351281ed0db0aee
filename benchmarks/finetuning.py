r"""Fine-tuning of a real-time detector on few images, next to training from random weights.

    python -m benchmarks.finetuning [--model dfine-n] [--pretraining 1500] [--steps 200] [--size 256] [--seeds 1 2]

Without published weights, a detector is trained first: on 1,000 synthetic images of circles and squares. It is written in
its authors' form, and fine-tuned on 30 images of circles and triangles, with the rows of its class heads matched by name:
"circle" keeps its weights, "triangle" is new. The same 30 images are learned from random weights with the same number of
steps. Both have the settings that `detrkit train` chooses, and are evaluated on 200 images.

Other settings of `detrkit train` are appended as NAME=VALUE and are those of the fine-tuning alone. The trained detector
is kept in FOLDER, so that settings can be compared: --folder FOLDER.
"""

import argparse
import tempfile
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

import torch
import yaml
from PIL import Image
from torch.utils.data import Dataset

import detrkit
from detrkit.data.images import tensor_to_image
from detrkit.data.synthetic import SHAPES, SyntheticShapes, SyntheticStyle
from detrkit.structures import Sample

NUM_PRETRAINING, NUM_TRAIN, NUM_VAL = 1000, 30, 200
FIRST, SECOND = ("circle", "square"), ("circle", "triangle")


class ShapesOf(Dataset[tuple[Image.Image, dict[str, Any]]]):
    """Synthetic images that contain no other classes than these, in torchvision's form."""

    def __init__(self, classes: Sequence[str], number: int, seed: int, size: int) -> None:
        indices = [SHAPES.names.index(name) for name in classes]
        drawn = SyntheticShapes(100 * number, seed, SyntheticStyle(size=size, max_objects=4))
        self.samples: list[Sample] = []
        self.labels: list[torch.Tensor] = []
        for position in count():
            sample = drawn[position]
            if set(sample.annotations.labels.tolist()) <= set(indices):
                self.samples.append(sample)
                self.labels.append(torch.tensor([indices.index(int(label)) for label in sample.annotations.labels]))
                if len(self.samples) == number:
                    break

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Image.Image, dict[str, Any]]:
        sample = self.samples[index]
        return tensor_to_image(sample.image), {"boxes": sample.annotations.boxes, "labels": self.labels[index]}


def pretrain(model: str, folder: Path, steps: int, size: int) -> Path:
    """Train on the first classes and return the checkpoint in the authors' form; one that exists is kept."""
    path = folder / f"{model}.pth"
    if path.exists():
        return path
    result = detrkit.train(
        ShapesOf(FIRST, NUM_PRETRAINING, 1, size),
        model,
        val=ShapesOf(FIRST, NUM_VAL, 2, size),
        classes=FIRST,
        output=folder / "pretraining",
        steps=steps,
        evaluate_every=10**6,
        loggers=("jsonl",),
        **common(size),
    )
    print(f"trained on {' and '.join(FIRST)}: AP {result.evaluation.ap:.3f}", flush=True)
    detrkit.convert(result.output, path, "official")
    return path


def common(size: int) -> dict[str, Any]:
    """Return the settings of all runs."""
    return {"image_size": size, "batch_size": 4, "workers": 0}


def main() -> None:
    """Train, convert, fine-tune, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="dfine-n")
    parser.add_argument("--pretraining", type=int, default=1500, help="steps of the first training")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--size", type=int, default=256, help="side of the images in pixels")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--folder", type=Path, help="keep the first training here (default: a temporary folder)")
    parser.add_argument("--only", choices=["weights", "random"], help="train from these alone")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("settings", nargs="*", metavar="NAME=VALUE")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    given = {name: yaml.safe_load(value) for name, _, value in (one.partition("=") for one in arguments.settings)}
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        weights = pretrain(arguments.model, folder, arguments.pretraining, arguments.size)
        val = ShapesOf(SECOND, NUM_VAL, 4, arguments.size)
        for seed in arguments.seeds:
            data = ShapesOf(SECOND, NUM_TRAIN, 2 + seed, arguments.size)
            for start, more in (("weights", {"weights": weights, **given}), ("random", {})):
                if arguments.only in (None, start):
                    result = detrkit.train(
                        data,
                        arguments.model,
                        val=val,
                        classes=SECOND,
                        output=Path(temporary) / f"{start}-{seed}",
                        steps=arguments.steps,
                        evaluate_every=10**6,
                        seed=seed,
                        loggers=("jsonl",),
                        **common(arguments.size),
                        **more,
                    )
                    print(f"seed {seed}, from {start}: AP {result.evaluation.ap:.3f}", flush=True)


if __name__ == "__main__":
    main()
