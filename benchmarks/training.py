"""How fast does a DETR learn?

    python -m benchmarks.training [--device cuda] [--steps 4]

Seconds per training step (forward, losses of all layers, backward, clipping, AdamW) of DETR R50 with 91 classes and 100
queries on a batch of 2 photos of 512 x 640 with 7 objects each: detrkit in float32 and bfloat16, and `transformers`
DetrForObjectDetection with auxiliary losses and the same weights in float32. Each has a process of its own, for memory is
kept and fetched per process; they take turns, step by step, and the middle step counts. Also the losses alone. With
`--device cuda` also photos of 800 x 1066 at several batch sizes.

transformers freezes its native ResNet by names that do not exist, so that all of it is frozen; here the published parts
are trained in both (41,302,368 parameters).
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import detrkit
from detrkit.checkpoints.conversion.huggingface import huggingface_to_detrkit
from detrkit.checkpoints.state_dict import load_state_dict
from detrkit.config.training import TrainingConfig
from detrkit.losses.criterion import SetCriterion
from detrkit.models.detr import DETR
from detrkit.structures import Batch, Predictions, Target
from detrkit.training.train_step import TrainStep

Step = Callable[[], float]
NUM_CLASSES, NUM_OBJECTS = 91, 7


def make_batch(batch_size: int, height: int, width: int, device: str) -> Batch:
    """Noise with objects on it."""
    torch.manual_seed(0)
    centres, sizes = (
        torch.rand(batch_size, NUM_OBJECTS, 2) * 0.6 + 0.2,
        torch.rand(batch_size, NUM_OBJECTS, 2) * 0.3 + 0.05,
    )
    targets = [
        Target(torch.cat([centre, size], 1), torch.randint(NUM_CLASSES, (NUM_OBJECTS,)))
        for centre, size in zip(centres, sizes, strict=True)
    ]
    shape = (height, width)
    return Batch(
        torch.randn(batch_size, 3, *shape),
        torch.zeros(batch_size, *shape, dtype=torch.bool),
        targets,
        list(range(batch_size)),
        [shape] * batch_size,
        [shape] * batch_size,
    ).to(device)


def build_transformers() -> Any:
    """Their model, with the parts trainable that are meant to be."""
    from transformers import DetrConfig, DetrForObjectDetection, ResNetConfig

    torch.manual_seed(0)
    model = DetrForObjectDetection(
        DetrConfig(backbone_config=ResNetConfig(out_features=["stage4"]), num_labels=NUM_CLASSES, auxiliary_loss=True)
    )
    for name, parameter in model.model.backbone.named_parameters():
        parameter.requires_grad_(any(f"stages.{stage}." in name for stage in (1, 2, 3)))
    return model.train()


def build_ours(theirs: Any) -> DETR:
    """Our model with their weights."""
    model = detrkit.build_model("detr-r50", num_classes=NUM_CLASSES)
    load_state_dict(model, huggingface_to_detrkit(theirs.state_dict()))
    return model.train()


def their_step(model: Any, batch: Batch, precision: str) -> Step:
    """One training step of transformers."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        trained, lr=1e-4, weight_decay=1e-4, fused=True
    )  # their Trainer's usual one, and ours
    labels = [{"class_labels": target.labels, "boxes": target.boxes} for target in batch.targets]
    device = batch.images.device.type

    def step() -> float:
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bfloat16"):
            loss = model(pixel_values=batch.images, pixel_mask=(~batch.padding_mask).long(), labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        return float(loss.detach())

    return step


def our_step(model: DETR, batch: Batch, precision: str, compile_model: bool = False) -> Step:
    """One training step of detrkit, as its trainer takes it."""
    settings = TrainingConfig(precision=precision, compile=compile_model, padding_invariant=False, clip_grad_norm=0.1)
    train_step = TrainStep(model, SetCriterion(NUM_CLASSES), settings, batch.images.device, num_steps=1000)
    return lambda: float(train_step.step([batch]).total.detach())


def check_equal(device: str) -> None:
    """See that both learn the same thing: losses without dropout, and trainable parameters."""
    batch = make_batch(2, 512, 640, device)
    theirs = build_transformers()
    ours = build_ours(theirs).to(device)
    theirs.to(device)
    counts = [sum(p.numel() for p in model.parameters() if p.requires_grad) for model in (theirs, ours)]
    labels = [{"class_labels": target.labels, "boxes": target.boxes} for target in batch.targets]
    with torch.no_grad():
        expected = float(theirs.eval()(batch.images, (~batch.padding_mask).long(), labels=labels).loss)
        actual = float(SetCriterion(NUM_CLASSES)(ours.eval()(batch.images), batch.targets).total)
    print(f"trainable parameters {counts}, losses {expected:.5f} and {actual:.5f}")
    assert counts[0] == counts[1] == 41_302_368
    assert abs(expected - actual) < 1e-3 * expected


def report_steps(device: str, rounds: int) -> None:
    """Print seconds per step side by side: three processes take turns, so that each has its own memory."""
    check_equal(device)
    variants = [(which, precision) for precision in ("float32", "bfloat16") for which in ("transformers", "detrkit")]
    workers = {" ".join(variant): start_worker(*variant, device) for variant in variants}
    times: dict[str, list[float]] = {name: [] for name in workers}
    for round_number in range(rounds + 2):
        for name, worker in workers.items():
            seconds = float(ask(worker, "step"))
            if round_number > 1:  # the first ones allocate
                times[name].append(seconds)
    memory = {name: ask(worker, "memory") for name, worker in workers.items()}
    middle = {name: statistics.median(of_step) for name, of_step in times.items()}
    slowest = middle["transformers float32"]
    for name, seconds in middle.items():
        print(f"{name:<22} {seconds:7.3f} s per step, {slowest / seconds:5.2f} times, peak memory {memory[name]} GiB")


def start_worker(which: str, precision: str, device: str) -> "subprocess.Popen[str]":
    """A process that takes a step whenever it is asked to."""
    command = [sys.executable, "-m", "benchmarks.training", "--work", which, precision, "--device", device]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def ask(worker: "subprocess.Popen[str]", what: str) -> str:
    """Send one line to a worker, and read its answer."""
    assert worker.stdin is not None
    assert worker.stdout is not None
    worker.stdin.write(what + "\n")
    worker.stdin.flush()
    return worker.stdout.readline().strip()


def work(which: str, precision: str, device: str) -> None:
    """Be a worker."""
    batch = make_batch(2, 512, 640, device)
    theirs = build_transformers()
    if which == "transformers":
        step = their_step(theirs.to(device), batch, precision)
    else:
        step = our_step(build_ours(theirs), batch, precision)
    for line in sys.stdin:
        if line.strip() == "memory":
            peak = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else largest_memory()
            print(f"{peak:.2f}", flush=True)
            continue
        print(seconds_of(step, device), flush=True)


def seconds_of(step: Step, device: str) -> float:
    """Time of one step."""
    start = time.perf_counter()
    step()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def report_criterion(device: str) -> None:
    """Print the time of matching and losses alone: 6 layers, batch 16, 7 objects each."""
    torch.manual_seed(0)
    batch = make_batch(16, 32, 32, device)
    logits = torch.randn(6, 16, 100, NUM_CLASSES + 1, device=device, requires_grad=True)
    boxes = (torch.rand(6, 16, 100, 4, device=device) * 0.5 + 0.2).requires_grad_()
    loss = SetCriterion(NUM_CLASSES)

    def step() -> float:
        return float(loss(Predictions(logits, boxes), batch.targets).total.detach())

    times = [seconds_of(step, device) for _ in range(20)]
    print(f"criterion alone        {1000 * statistics.median(times):7.1f} ms (forward)")


def report_sizes(device: str) -> None:
    """Print photos per second and peak memory at 800 x 1066."""
    for precision, compile_model in (("float32", False), ("bfloat16", False), ("bfloat16", True)):
        for batch_size in (1, 4, 16):
            batch = make_batch(batch_size, 800, 1066, device)
            model = detrkit.build_model("detr-r50")
            torch.cuda.reset_peak_memory_stats()
            step = our_step(model, batch, precision, compile_model)
            seconds = statistics.median(seconds_of(step, device) for _ in range(10))
            memory = torch.cuda.max_memory_allocated() / 2**30
            name = precision + (", compiled" if compile_model else "")
            print(f"batch {batch_size:>2} {name:<20} {batch_size / seconds:7.1f} photos/s, {memory:5.1f} GiB")


def report_synchronisations() -> None:
    """Count how often a step waits for the GPU."""
    from torch.profiler import ProfilerActivity, profile

    batch = make_batch(2, 512, 640, "cuda")
    settings = TrainingConfig(padding_invariant=False)
    train_step = TrainStep(
        detrkit.build_model("detr-r50"), SetCriterion(NUM_CLASSES), settings, batch.images.device, num_steps=100
    )
    for _ in range(3):
        train_step.step([batch])
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        for _ in range(5):
            train_step.step([batch])
    waits = sum(event.count for event in profiler.key_averages() if "Synchronize" in event.key)
    print(f"synchronisations per step: {waits / 5:.1f} (the profiler's own at its end included)")


def largest_memory() -> float:
    """The most memory that this process held, in GiB (Linux; getrusage would count the parent's, too)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**20


def main() -> None:
    """Run what fits the device."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--work", nargs=2, metavar=("WHICH", "PRECISION"))
    given = parser.parse_args()
    if given.work:
        work(*given.work, given.device)
        return
    report_criterion(given.device)
    report_steps(given.device, given.steps)
    if given.device == "cuda":
        report_synchronisations()
        report_sizes(given.device)


if __name__ == "__main__":
    main()
