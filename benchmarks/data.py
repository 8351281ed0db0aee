"""Throughput of data loading for training.

    python -m benchmarks.data COCO_FOLDER [--images 60]

Samples per second of one process with the paper's training transforms: detrkit's, on uint8 tensors, and the same transforms
as in the published code, on Pillow images with torchvision's functional API and float tensors. The two take turns; both
decode with Pillow. Then, for a million synthetic boxes on 10,000 images: the private memory of a worker that has read all
of them, compared with a worker without any; and the padding of batches with and without grouping by aspect ratio.
"""

import argparse
import gc
import random
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import functional as F

from detrkit.data.batching import collate
from detrkit.data.dataset import DetectionDataset, Split
from detrkit.data.records import Record, Records
from detrkit.data.samplers import BatchGrouping, TrainBatchSampler
from detrkit.data.splits import load_dataset
from detrkit.data.transforms.augmentation import AugmentedDataset
from detrkit.data.transforms.geometry import (
    CROP_SHORT_SIDES,
    CROP_SIDES,
    MAX_LONG_SIDE,
    TRAIN_SHORT_SIDES,
    TrainTransform,
)

ROUNDS = 3


def target_size(size: tuple[int, int], short_side: int, limit: int | None) -> tuple[int, int]:
    """Return (height, width) after resizing a (width, height) image."""
    width, height = size
    if limit is not None and max(size) / min(size) * short_side > limit:
        short_side = round(limit * min(size) / max(size))
    scale = short_side / min(size)
    return (int(height * scale), short_side) if width < height else (short_side, int(width * scale))


def pillow_sample(record: Record) -> tuple[torch.Tensor, torch.Tensor]:
    """Load and transform a sample as the published code does."""
    image = Image.open(record.path).convert("RGB")
    boxes = torch.from_numpy(record.boxes.copy())
    if random.random() < 0.5:
        image = F.hflip(image)
        boxes = boxes[:, [2, 1, 0, 3]] * torch.tensor([-1, 1, -1, 1]) + torch.tensor([image.width, 0, image.width, 0])

    def resize(
        image: Image.Image, boxes: torch.Tensor, side: int, limit: int | None
    ) -> tuple[Image.Image, torch.Tensor]:
        resized = F.resize(image, list(target_size(image.size, side, limit)))
        ratio = torch.tensor([resized.width / image.width, resized.height / image.height]).repeat(2)
        return resized, boxes * ratio

    if random.random() < 0.5:
        image, boxes = resize(image, boxes, random.choice(CROP_SHORT_SIDES), None)
        width = random.randint(min(CROP_SIDES[0], image.width), min(image.width, CROP_SIDES[1]))
        height = random.randint(min(CROP_SIDES[0], image.height), min(image.height, CROP_SIDES[1]))
        left, top = random.randint(0, image.width - width), random.randint(0, image.height - height)
        image = F.crop(image, top, left, height, width)
        boxes = (boxes - torch.tensor([left, top, left, top])).clamp(min=0)
        boxes = torch.minimum(boxes, torch.tensor([width, height, width, height]))
        boxes = boxes[(boxes[:, 2:] > boxes[:, :2]).all(1)]
    image, boxes = resize(image, boxes, random.choice(TRAIN_SHORT_SIDES), MAX_LONG_SIDE)
    tensor = F.normalize(F.to_tensor(image), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    corners = torch.cat([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], 1)
    return tensor, corners / torch.tensor([image.width, image.height, image.width, image.height])


def time_samples(load: Callable[[int], object], count: int) -> float:
    """Return the seconds that it takes to load `count` samples, one by one."""
    start = time.perf_counter()
    for index in range(count):
        load(index)
    return time.perf_counter() - start


class BoxReader(Dataset[float]):
    """Reads the boxes of images without opening the images."""

    def __init__(self, records: Sequence[Record | list[dict[str, Any]]]) -> None:
        self.records = records

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> float:
        record = self.records[index]
        if isinstance(record, Record):
            return float(record.boxes.sum())
        return sum(sum(annotation["bbox"]) for annotation in record)


class PrivateMemory:
    """Collate function that returns the private memory of the worker in MB, which no other process shares."""

    def __call__(self, _batch: list[float]) -> float:
        """Measure this process."""
        gc.collect()
        lines = Path("/proc/self/smaps_rollup").read_text(encoding="utf-8").splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024


def worker_memory(records: Sequence[Record | list[dict[str, Any]]], method: str) -> float:
    """Return the peak private memory of two workers over an epoch in MB."""
    loader = DataLoader(
        BoxReader(records), batch_size=100, num_workers=2, collate_fn=PrivateMemory(), multiprocessing_context=method
    )
    return max(loader)


def million_boxes() -> Iterator[Record]:
    """Generate synthetic annotations."""
    random = np.random.default_rng(0)
    for number in range(10_000):
        boxes = random.uniform(0, 600, (100, 4)).astype(np.float32)
        labels = random.integers(0, 80, 100)
        path = Path(f"/datasets/coco/train2017/{number:012d}.jpg")
        yield Record(number, path, (480, 640), boxes, labels, np.zeros(100, dtype=bool))


def as_dicts(record: Record) -> list[dict[str, Any]]:
    """Convert the annotations of an image to COCO dictionaries, as pycocotools stores them."""
    return [
        {
            "id": record.image_id * 100 + number,
            "image_id": record.image_id,
            "category_id": label,
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "area": (x2 - x1) * (y2 - y1),
            "iscrowd": 0,
        }
        for number, ((x1, y1, x2, y2), label) in enumerate(
            zip(record.boxes.tolist(), record.labels.tolist(), strict=True)
        )
    ]


def report_memory() -> None:
    """Print the memory of a million boxes in a worker, as flat arrays and as dictionaries."""
    flat = Records.of(million_boxes())
    print(f"\na million boxes as flat arrays: {flat.arrays.num_bytes / 2**20:.0f} MB")
    print("private memory of a worker, in MB:   without, arrays, COCO dictionaries")
    for method in ("fork", "spawn"):
        none, arrays = worker_memory(flat[:1], method), worker_memory(flat, method)
        dicts = worker_memory([as_dicts(record) for record in flat], method)
        print(f"{method:<37}{none:7.0f} {arrays - none:+5.0f} {dicts - none:+20.0f}")


def report_padding(split: Split, batch_size: int = 4) -> None:
    """Print the share of padding in the pixels of one epoch with the paper's transforms."""
    images = AugmentedDataset(DetectionDataset(split), TrainTransform(), seed=0)
    for by_aspect_ratio in (False, True):
        grouping = BatchGrouping.from_records(split.records, by_aspect_ratio=by_aspect_ratio)
        order = TrainBatchSampler(grouping, batch_size, seed=0)
        masks = [collate([images[key] for key in batch]).padding_mask for batch in order]
        share = sum(float(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks)
        print(f"batches of {batch_size}, {'by aspect ratio' if by_aspect_ratio else 'at random'}: {share:.1%} padding")


def main() -> None:
    """Print samples per second and their ratio, padding, and memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--images", type=int, default=60)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    split = load_dataset(arguments.folder).train
    count = min(arguments.images, len(split.records))
    dataset = DetectionDataset(split, TrainTransform())
    times = {"detrkit": 0.0, "Pillow": 0.0}
    for round_number in range(ROUNDS + 1):
        torch.manual_seed(round_number)
        random.seed(round_number)
        measured = {
            "detrkit": time_samples(lambda index: collate([dataset[index]]), count),
            "Pillow": time_samples(lambda index: pillow_sample(split.records[index]), count),
        }
        if round_number:  # the first round fills the disk cache
            times = {name: times[name] + measured[name] for name in times}
    for name, seconds in times.items():
        print(f"{name:<8} {ROUNDS * count / seconds:6.1f} samples/s per process")
    print(f"ratio    {times['Pillow'] / times['detrkit']:6.2f}")
    report_padding(split)
    report_memory()


if __name__ == "__main__":
    main()
