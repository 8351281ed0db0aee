"""How fast are photos prepared for training?

    python -m benchmarks.data COCO_FOLDER [PHOTOS]

Samples per second of one process through the paper's train pipeline: detrkit's, on uint8 tensors, and the same pipeline
written as the published code has it, on Pillow images with torchvision's first functions and float tensors. The two take
turns; both decode with Pillow.
"""

import random
import sys
import time
from collections.abc import Callable

import torch
from PIL import Image
from torchvision.transforms import functional as F

from detrkit.data.batching import collate
from detrkit.data.dataset import PhotoDataset
from detrkit.data.formats.folder import read_dataset
from detrkit.data.records import Record
from detrkit.data.transforms import CROP_SHORT_SIDES, CROP_SIDES, LONG_SIDE_AT_MOST, TRAIN_SHORT_SIDES, TrainTransform

ROUNDS = 3


def target_size(size: tuple[int, int], short_side: int, limit: int | None) -> tuple[int, int]:
    """(height, width) after a resize of a (width, height) image."""
    width, height = size
    if limit is not None and max(size) / min(size) * short_side > limit:
        short_side = round(limit * min(size) / max(size))
    scale = short_side / min(size)
    return (int(height * scale), short_side) if width < height else (short_side, int(width * scale))


def on_pillow(record: Record) -> tuple[torch.Tensor, torch.Tensor]:
    """One sample as the published code prepares it."""
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
    image, boxes = resize(image, boxes, random.choice(TRAIN_SHORT_SIDES), LONG_SIDE_AT_MOST)
    tensor = F.normalize(F.to_tensor(image), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    corners = torch.cat([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], 1)
    return tensor, corners / torch.tensor([image.width, image.height, image.width, image.height])


def seconds(prepare: Callable[[int], object], count: int) -> float:
    """Time of preparing `count` samples, one by one."""
    start = time.perf_counter()
    for index in range(count):
        prepare(index)
    return time.perf_counter() - start


def main(folder: str, count: int) -> None:
    """Print samples per second and their ratio."""
    torch.set_num_threads(1)
    split = read_dataset(folder).train
    count = min(count, len(split.records))
    ours = PhotoDataset(split, TrainTransform())
    times = {"detrkit": 0.0, "Pillow": 0.0}
    for round_number in range(ROUNDS + 1):
        torch.manual_seed(round_number)
        random.seed(round_number)
        measured = {
            "detrkit": seconds(lambda index: collate([ours[index]]), count),
            "Pillow": seconds(lambda index: on_pillow(split.records[index]), count),
        }
        if round_number:  # the first warms the disk's cache
            times = {name: times[name] + measured[name] for name in times}
    for name, spent in times.items():
        print(f"{name:<8} {ROUNDS * count / spent:6.1f} samples/s per process")
    print(f"ratio    {times['Pillow'] / times['detrkit']:6.2f}")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 60)
