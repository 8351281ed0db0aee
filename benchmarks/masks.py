"""What do masks cost?

    python -m benchmarks.masks [--rounds 4]

DETR R50 with the mask head, 250 classes and 100 queries, float32, against `transformers` DetrForSegmentation with the same
weights: a training step of both together (batch 2 of 512 x 640, 7 objects each, losses of all layers and masks), and one
photo of 800 x 1066 predicted, with the masks of all queries, and of 10 and 30 kept ones, which only detrkit can leave it
at. Each has a process of its own, for memory is kept per process; they take turns, and the middle time counts. Peak memory
is the process's, PyTorch and weights included. Then the panoptic merge of one photo, against a straightforward one that
goes through Pillow as the published code does.
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
from benchmarks.training import Step, ask, largest_memory, make_batch, seconds_of
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
from detrkit.postprocess.panoptic import SMALLEST, KeptQueries, merge_segments
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
    """Noise with filled boxes on it."""
    batch = make_batch(batch_size, height, width, "cpu")
    return replace(batch, targets=[with_filled_boxes(target, height, width) for target in batch.targets])


def with_filled_boxes(target: Target, height: int, width: int) -> Target:
    """Give every object its box as its mask."""
    masks = torch.zeros(len(target.labels), height, width, dtype=torch.bool)
    scale = torch.tensor([width, height, width, height])
    for mask, (x1, y1, x2, y2) in zip(masks, (cxcywh_to_xyxy(target.boxes) * scale).int().tolist(), strict=True):
        mask[max(y1, 0) : y2, max(x1, 0) : x2] = True
    return replace(target, masks=masks)


def build_transformers() -> Any:
    """Their model, with the parts trainable that are meant to be."""
    from transformers import DetrConfig, DetrForSegmentation, ResNetConfig

    torch.manual_seed(0)
    backbone = ResNetConfig(out_features=["stage1", "stage2", "stage3", "stage4"])
    model = DetrForSegmentation(DetrConfig(backbone_config=backbone, num_labels=NUM_CLASSES, auxiliary_loss=True))
    for name, parameter in model.detr.model.backbone.named_parameters():
        parameter.requires_grad_(any(f"stages.{stage}." in name for stage in (1, 2, 3)))
    return model


def build_ours(theirs: Any) -> DETR:
    """Our model with their weights."""
    model = detrkit.build_model("detr-r50-panoptic", num_classes=NUM_CLASSES)
    load_state_dict(model, huggingface_to_detrkit(theirs.state_dict()))
    return model


def check_equal() -> None:
    """See that both learn the same thing, and draw the same masks."""
    batch = make_masked_batch(2, 128, 160)
    theirs = build_transformers().eval()
    ours = build_ours(theirs).eval()
    with torch.no_grad():
        said = theirs(batch.images, (~batch.padding_mask).long(), labels=their_labels(batch))
        predictions = ours(batch.images)
        report = SetCriterion(NUM_CLASSES)(predictions, batch.targets)
    assert predictions.masks is not None
    difference = float((predictions.masks - said.pred_masks).abs().max())
    print(f"losses {float(said.loss):.5f} and {float(report.total):.5f}, masks differ by {difference:.0e} at most")
    assert abs(float(said.loss) - float(report.total)) < 1e-3 * float(said.loss)
    assert difference < 1e-3


def their_labels(batch: Batch) -> list[dict[str, Any]]:
    """Targets as transformers wants them."""
    return [{"class_labels": one.labels, "boxes": one.boxes, "masks": one.masks} for one in batch.targets]


def training_step(which: str) -> Step:
    """One training step, AdamW included."""
    batch = make_masked_batch(2, *TRAINING[1])
    theirs = build_transformers().train()
    if which == "detrkit":
        settings = TrainingConfig(padding_invariant=False, clip_grad_norm=0.1)
        train_step = TrainStep(
            build_ours(theirs).train(), SetCriterion(NUM_CLASSES), settings, torch.device("cpu"), 1000
        )
        return lambda: float(train_step.step([batch]).total.detach())
    trained = [p for p in theirs.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=1e-4, fused=True)

    def step() -> float:
        loss = theirs(
            pixel_values=batch.images, pixel_mask=(~batch.padding_mask).long(), labels=their_labels(batch)
        ).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 0.1)
        optimizer.step()
        return float(loss.detach())

    return step


def prediction(which: str) -> Step:
    """One photo, up to mask logits."""
    torch.manual_seed(0)
    images = torch.randn(1, 3, *PREDICTING[1])
    theirs = build_transformers().eval()
    if which == "transformers":

        @torch.inference_mode()
        def predict_theirs() -> float:
            return float(theirs(images).pred_masks[0, 0, 0, 0])

        return predict_theirs

    model = fuse_for_inference(build_ours(theirs))
    images = images.contiguous(memory_format=torch.channels_last)
    queries = torch.arange(int(which.split()[1]))

    @torch.inference_mode()
    def predict_ours() -> float:
        return float(model(images).masks_of([queries])[0, 0, 0])

    return predict_ours


def report_side_by_side(task: str, rounds: int) -> None:
    """Print times and peak memory of all variants of a task."""
    workers = {which: start_worker(task, which) for which in VARIANTS[task]}
    times: dict[str, list[float]] = {which: [] for which in workers}
    for round_number in range(rounds + 1):
        for which, worker in workers.items():
            seconds = float(ask(worker, "step"))
            if round_number:  # the first one allocates
                times[which].append(seconds)
    memory = {which: float(ask(worker, "memory")) for which, worker in workers.items()}
    middle = {which: statistics.median(of_variant) for which, of_variant in times.items()}
    print(f"\n{task}: seconds, times as fast, peak memory, share of it")
    for which, seconds in middle.items():
        share = memory[which] / memory["transformers"]
        ratio = middle["transformers"] / seconds
        print(f"  {which:<20} {seconds:7.3f} {ratio:6.2f} {memory[which]:6.2f} GiB {share:5.2f}")
    for worker in workers.values():
        worker.terminate()


def start_worker(task: str, which: str) -> "subprocess.Popen[str]":
    """A process that works whenever it is asked to."""
    command = [sys.executable, "-m", "benchmarks.masks", "--work", task, which]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def work(task: str, which: str) -> None:
    """Be a worker."""
    step = training_step(which) if task == "train" else prediction(which)
    for line in sys.stdin:
        print(f"{largest_memory():.2f}" if line.strip() == "memory" else seconds_of(step, "cpu"), flush=True)


def merge_through_pillow(candidates: KeptQueries) -> tuple[np.ndarray, list[int]]:
    """Merge as the published code does, one step after the other, with its trips through Pillow."""
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
        colours = np.stack([numbers % 256, numbers // 256 % 256, numbers // 65536], axis=-1).astype(np.uint8)
        height, width = candidates.original
        picture = Image.fromarray(colours).resize((width, height), Image.Resampling.NEAREST)
        pixels = np.asarray(picture).astype(np.int64)
        resized = torch.from_numpy(pixels[..., 0] + 256 * pixels[..., 1] + 65536 * pixels[..., 2])
        areas = [int((resized == index).sum()) for index in range(len(logits))]
        is_small = torch.tensor([area <= SMALLEST for area in areas])
        if not is_small.any():
            return resized.numpy(), areas
        logits, labels = logits[~is_small], labels[~is_small]


def report_merge(rounds: int) -> None:
    """Print the time of a panoptic merge of 20 kept queries, half of them stuff."""
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
    print("\npanoptic merge of 20 queries, photo of 480 x 640: milliseconds, times as fast")
    middle = {name: statistics.median(of_variant) for name, of_variant in times.items()}
    for name, seconds in middle.items():
        print(f"  {name:<20} {1000 * seconds:7.1f} {middle['through Pillow'] / seconds:6.2f}")


def main() -> None:
    """Compare everything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--work", nargs=2, metavar=("TASK", "WHICH"))
    given = parser.parse_args()
    if given.work:
        work(*given.work)
        return
    check_equal()
    report_merge(given.rounds)
    report_side_by_side("predict", given.rounds)
    report_side_by_side("train", given.rounds)


if __name__ == "__main__":
    main()
