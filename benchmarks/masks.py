"""Cost of masks.

    python -m benchmarks.masks [--rounds 4]

DETR R50 with the mask head, 250 classes and 100 queries, float32, compared with `transformers` DetrForSegmentation with the
same weights: a training step of detector and mask head (batch 2 of 512 x 640, 7 objects each, losses of all layers and
masks), and the prediction of one image of 800 x 1066 with the masks of all queries, and in detrkit also of 30 and of 10
selected queries. Each variant has its own process, since memory is cached per process; they take turns, and the median time
counts. Peak memory is that of the process, PyTorch and weights included. Finally the panoptic merge of one image, compared
with a straightforward one through Pillow, as in the published code.
"""

import argparse
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from benchmarks.training import Step, make_batch, peak_memory, request, time_step
from PIL import Image
from torch.nn import functional as F

import detrkit
from detrkit.checkpoints.conversion.huggingface import huggingface_to_detrkit
from detrkit.checkpoints.state_dict import load_state_dict
from detrkit.config.training import TrainingConfig
from detrkit.losses.criterion import SetCriterion
from detrkit.models.detr import DETR
from detrkit.models.fuse import fuse_for_inference
from detrkit.ops.boxes import cxcywh_to_xyxy
from detrkit.postprocess.panoptic import MAX_DROPPED_AREA, KeptQueries, merge_segments
from detrkit.structures import Batch, Target
from detrkit.training.train_step import TrainStep

NUM_CLASSES = 250
IS_THING = [label <= 90 for label in range(NUM_CLASSES)]
TRAINING, PREDICTING = ("train", (512, 640)), ("predict", (800, 1066))
VARIANTS = {
    "train": ["transformers", "detrkit"],
    "predict": ["transformers", "detrkit, 100 masks", "detrkit, 30 masks", "detrkit, 10 masks"],
}


def make_masked_batch(batch_size: int, height: int, width: int) -> Batch:
    """Create a batch of noise whose objects have their boxes as masks."""
    batch = make_batch(batch_size, height, width, "cpu")
    return replace(batch, targets=[with_box_masks(target, height, width) for target in batch.targets])


def with_box_masks(target: Target, height: int, width: int) -> Target:
    """Use the box of every object as its mask."""
    masks = torch.zeros(len(target.labels), height, width, dtype=torch.bool)
    scale = torch.tensor([width, height, width, height])
    for mask, (x1, y1, x2, y2) in zip(masks, (cxcywh_to_xyxy(target.boxes) * scale).int().tolist(), strict=True):
        mask[max(y1, 0) : y2, max(x1, 0) : x2] = True
    return replace(target, masks=masks)


def build_transformers() -> Any:
    """Build the model of transformers, with the published parts trainable."""
    from transformers import DetrConfig, DetrForSegmentation, ResNetConfig

    torch.manual_seed(0)
    backbone = ResNetConfig(out_features=["stage1", "stage2", "stage3", "stage4"])
    model = DetrForSegmentation(DetrConfig(backbone_config=backbone, num_labels=NUM_CLASSES, auxiliary_loss=True))
    for name, parameter in model.detr.model.backbone.named_parameters():
        parameter.requires_grad_(any(f"stages.{stage}." in name for stage in (1, 2, 3)))
    return model


def build_detrkit(converted: Any) -> DETR:
    """Build detrkit's model with the weights of that of transformers."""
    model = detrkit.build_model("detr-r50-panoptic", num_classes=NUM_CLASSES)
    load_state_dict(model, huggingface_to_detrkit(converted.state_dict()))
    return model


def check_equal() -> None:
    """Check that both compute the same loss and the same masks."""
    batch = make_masked_batch(2, 128, 160)
    baseline = build_transformers().eval()
    model = build_detrkit(baseline).eval()
    with torch.no_grad():
        expected = baseline(batch.images, (~batch.padding_mask).long(), labels=transformers_labels(batch))
        predictions = model(batch.images)
        output = SetCriterion(NUM_CLASSES)(predictions, batch.targets)
    assert predictions.masks is not None
    difference = float((predictions.masks - expected.pred_masks).abs().max())
    print(f"losses {float(expected.loss):.5f} and {float(output.total):.5f}, masks differ by {difference:.0e} ")
    assert abs(float(expected.loss) - float(output.total)) < 1e-3 * float(expected.loss)
    assert difference < 1e-3


def transformers_labels(batch: Batch) -> list[dict[str, Any]]:
    """Convert targets to the format of transformers."""
    return [{"class_labels": one.labels, "boxes": one.boxes, "masks": one.masks} for one in batch.targets]


def training_step(variant: str) -> Step:
    """Return a function that runs one training step, AdamW included."""
    batch = make_masked_batch(2, *TRAINING[1])
    baseline = build_transformers().train()
    if variant == "detrkit":
        settings = TrainingConfig(padding_invariant=False, clip_grad_norm=0.1)
        train_step = TrainStep(
            build_detrkit(baseline).train(), SetCriterion(NUM_CLASSES), settings, torch.device("cpu"), 1000
        )
        return lambda: float(train_step.step([batch]).total.detach())
    trainable = [p for p in baseline.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1e-4, weight_decay=1e-4, fused=True)

    def step() -> float:
        loss = baseline(
            pixel_values=batch.images, pixel_mask=(~batch.padding_mask).long(), labels=transformers_labels(batch)
        ).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainable, 0.1)
        optimizer.step()
        return float(loss.detach())

    return step


def prediction(variant: str) -> Step:
    """Return a function that predicts one image, up to the mask logits."""
    torch.manual_seed(0)
    images = torch.randn(1, 3, *PREDICTING[1])
    baseline = build_transformers().eval()
    if variant == "transformers":

        @torch.inference_mode()
        def predict_baseline() -> float:
            return float(baseline(images).pred_masks[0, 0, 0, 0])

        return predict_baseline

    model = fuse_for_inference(build_detrkit(baseline))
    images = images.contiguous(memory_format=torch.channels_last)
    queries = torch.arange(int(variant.split()[1]))

    @torch.inference_mode()
    def predict() -> float:
        return float(model(images).masks_of([queries])[0, 0, 0])

    return predict


def report_side_by_side(task: str, rounds: int) -> None:
    """Print times and peak memory of all variants of a task."""
    workers = {variant: start_worker(task, variant) for variant in VARIANTS[task]}
    times: dict[str, list[float]] = {variant: [] for variant in workers}
    for round_number in range(rounds + 1):
        for variant, worker in workers.items():
            seconds = float(request(worker, "step"))
            if round_number:  # the first round allocates memory
                times[variant].append(seconds)
    memory = {variant: float(request(worker, "memory")) for variant, worker in workers.items()}
    medians = {variant: statistics.median(seconds) for variant, seconds in times.items()}
    print(f"\n{task}: seconds, speedup, peak memory, relative memory")
    for variant, seconds in medians.items():
        share = memory[variant] / memory["transformers"]
        ratio = medians["transformers"] / seconds
        print(f"  {variant:<20} {seconds:7.3f} {ratio:6.2f} {memory[variant]:6.2f} GiB {share:5.2f}")
    for worker in workers.values():
        worker.terminate()


def start_worker(task: str, variant: str) -> "subprocess.Popen[str]":
    """Start a process that runs a step on request."""
    command = [sys.executable, "-m", "benchmarks.masks", "--worker", task, variant]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8")


def run_worker(task: str, variant: str) -> None:
    """Answer requests for steps and memory."""
    step = training_step(variant) if task == "train" else prediction(variant)
    for line in sys.stdin:
        print(f"{peak_memory():.2f}" if line.strip() == "memory" else time_step(step, "cpu"), flush=True)


def merge_through_pillow(candidates: KeptQueries) -> tuple[np.ndarray, list[int]]:
    """Merge segments step by step as the published code does, resizing id maps with Pillow."""
    logits, labels = candidates.logits, candidates.labels
    logits = F.interpolate(logits[:, None], candidates.processed, mode="bilinear", align_corners=False)[:, 0]
    groups: dict[int, list[int]] = {}
    for index, label in enumerate(labels.tolist()):
        if not IS_THING[label]:
            groups.setdefault(label, []).append(index)
    is_first = True
    while True:
        ids = logits.flatten(1).transpose(0, 1).softmax(-1).argmax(-1).view(logits.shape[1:])
        for group in groups.values() if is_first else ():
            for index in group:
                ids.masked_fill_(ids == index, group[0])
        is_first = False
        numbers = ids.numpy().astype(np.int64)
        colors = np.stack([numbers % 256, numbers // 256 % 256, numbers // 65536], axis=-1).astype(np.uint8)
        height, width = candidates.original
        image = Image.fromarray(colors).resize((width, height), Image.Resampling.NEAREST)
        pixels = np.asarray(image).astype(np.int64)
        resized = torch.from_numpy(pixels[..., 0] + 256 * pixels[..., 1] + 65536 * pixels[..., 2])
        areas = [int((resized == index).sum()) for index in range(len(logits))]
        is_small = torch.tensor([area <= MAX_DROPPED_AREA for area in areas])
        if not is_small.any():
            return resized.numpy(), areas
        logits, labels = logits[~is_small], labels[~is_small]


def report_merge(rounds: int) -> None:
    """Print the time of a panoptic merge of 20 queries, half of them stuff."""
    torch.manual_seed(0)
    coarse = torch.randn(1, 20, 7, 9) * 8
    logits = F.interpolate(coarse, (200, 267), mode="bicubic")[0]
    labels = torch.tensor([*range(1, 11), *(150 + index % 7 for index in range(10))])
    candidates = KeptQueries(logits, labels, torch.full((20,), 0.9), PREDICTING[1], PREDICTING[1], (480, 640))
    variants = {
        "through Pillow": lambda: merge_through_pillow(candidates),
        "detrkit, reference": lambda: merge_segments(candidates, IS_THING, "reference"),
        "detrkit, corrected": lambda: merge_segments(candidates, IS_THING),
    }
    expected = variants["through Pillow"]()[0]
    assert np.array_equal(merge_segments(candidates, IS_THING, "reference").ids.numpy(), expected)
    times: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(5 * rounds):
        for name, merge in variants.items():
            start = time.perf_counter()
            merge()
            times[name].append(time.perf_counter() - start)
    print("\npanoptic merge of 20 queries, image of 480 x 640: milliseconds, speedup")
    medians = {name: statistics.median(seconds) for name, seconds in times.items()}
    for name, seconds in medians.items():
        print(f"  {name:<20} {1000 * seconds:7.1f} {medians['through Pillow'] / seconds:6.2f}")


def main() -> None:
    """Compare training, prediction and merging."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--worker", nargs=2, metavar=("TASK", "VARIANT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        run_worker(*arguments.worker)
        return
    check_equal()
    report_merge(arguments.rounds)
    report_side_by_side("predict", arguments.rounds)
    report_side_by_side("train", arguments.rounds)


if __name__ == "__main__":
    main()
