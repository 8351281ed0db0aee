"""Speed of training steps.

    python -m benchmarks.training [--device cuda] [--steps 4]

Seconds per training step (forward, losses of all layers, backward, clipping, AdamW) of DETR R50 with 91 classes and 100
queries on a batch of 2 images of 512 x 640 with 7 objects each: detrkit and `transformers` DetrForObjectDetection with
auxiliary losses and the same weights, in float32 and bfloat16. Each variant has its own process, since memory is cached per
process; they take turns, step by step, and the median counts. Also the criterion alone. With `--device cuda`, also images
of 800 x 1066 at several batch sizes.

transformers freezes its native ResNet by parameter names that do not exist, which freezes all of it; here the published
parts are trained in both (41,302,368 parameters).
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
from torch import Tensor

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


def make_batch(
    batch_size: int,
    height: int,
    width: int,
    device: str,
    num_objects: int = NUM_OBJECTS,
    num_classes: int = NUM_CLASSES,
) -> Batch:
    """Create a batch of noise with random objects."""
    torch.manual_seed(0)
    centers, sizes = (
        torch.rand(batch_size, num_objects, 2) * 0.6 + 0.2,
        torch.rand(batch_size, num_objects, 2) * 0.3 + 0.05,
    )
    targets = [
        Target(torch.cat([center, size], 1), torch.randint(num_classes, (num_objects,)))
        for center, size in zip(centers, sizes, strict=True)
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
    """Build the model of transformers, with the published parts trainable."""
    from transformers import DetrConfig, DetrForObjectDetection, ResNetConfig

    torch.manual_seed(0)
    model = DetrForObjectDetection(
        DetrConfig(backbone_config=ResNetConfig(out_features=["stage4"]), num_labels=NUM_CLASSES, auxiliary_loss=True)
    )
    for name, parameter in model.model.backbone.named_parameters():
        parameter.requires_grad_(any(f"stages.{stage}." in name for stage in (1, 2, 3)))
    return model.train()


def build_detrkit(converted: Any) -> DETR:
    """Build detrkit's model with the weights of that of transformers."""
    model = detrkit.build_model("detr-r50", num_classes=NUM_CLASSES)
    load_state_dict(model, huggingface_to_detrkit(converted.state_dict()))
    return model.train()


def labels_of(batch: Batch) -> list[dict[str, Tensor]]:
    """Return targets as transformers takes them."""
    return [{"class_labels": target.labels, "boxes": target.boxes} for target in batch.targets]


def transformers_step(model: Any, batch: Batch, precision: str) -> Step:
    """Return a function that runs one training step of transformers."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        trainable, lr=1e-4, weight_decay=1e-4, fused=True
    )  # as in their Trainer and in detrkit
    labels = labels_of(batch)
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


def detrkit_step(model: DETR, batch: Batch, precision: str, compile_model: bool = False) -> Step:
    """Return a function that runs one training step of detrkit, as in its training loop."""
    settings = TrainingConfig(precision=precision, compile=compile_model, padding_invariant=False, clip_grad_norm=0.1)
    train_step = TrainStep(model, SetCriterion(NUM_CLASSES), settings, batch.images.device, length=1000)
    return lambda: float(train_step.step([batch]).total.detach())


def check_equal(device: str) -> None:
    """Check that both have the same loss, without dropout, and the same number of trainable parameters."""
    batch = make_batch(2, 512, 640, device)
    baseline = build_transformers()
    model = build_detrkit(baseline).to(device)
    baseline.to(device)
    counts = [sum(p.numel() for p in one.parameters() if p.requires_grad) for one in (baseline, model)]
    labels = labels_of(batch)
    with torch.no_grad():
        expected = float(baseline.eval()(batch.images, (~batch.padding_mask).long(), labels=labels).loss)
        actual = float(SetCriterion(NUM_CLASSES)(model.eval()(batch.images), batch.targets).total)
    print(f"trainable parameters {counts}, losses {expected:.5f} and {actual:.5f}")
    assert counts[0] == counts[1] == 41_302_368
    assert abs(expected - actual) < 1e-3 * expected


def report_steps(device: str, rounds: int) -> None:
    """Print seconds per step; every variant has its own process, and they take turns."""
    check_equal(device)
    variants = [
        (library, precision) for precision in ("float32", "bfloat16") for library in ("transformers", "detrkit")
    ]
    workers = {
        " ".join(variant): start_worker("benchmarks.training", "--worker", *variant, "--device", device)
        for variant in variants
    }
    medians, memory = measure_workers(workers, rounds)
    baseline = medians["transformers float32"]
    for name, seconds in medians.items():
        print(
            f"{name:<22} {seconds:7.3f} s per step, speedup {baseline / seconds:5.2f}, peak memory {memory[name]} GiB"
        )


def start_worker(module: str, *arguments: str) -> "subprocess.Popen[str]":
    """Start a process of a benchmark that runs a step on request."""
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8")


def measure_workers(
    workers: "dict[str, subprocess.Popen[str]]", rounds: int
) -> tuple[dict[str, float], dict[str, str]]:
    """Return the median seconds of a step and the peak memory in GiB of every process; they take turns, and end."""
    times: dict[str, list[float]] = {name: [] for name in workers}
    for round_number in range(rounds + 2):
        for name, worker in workers.items():
            seconds = float(request(worker, "step"))
            if round_number > 1:  # the first rounds allocate memory
                times[name].append(seconds)
    memory = {name: request(worker, "memory") for name, worker in workers.items()}
    for worker in workers.values():
        worker.communicate()
    return {name: statistics.median(seconds) for name, seconds in times.items()}, memory


def request(worker: "subprocess.Popen[str]", name: str) -> str:
    """Send a request to a worker and return its reply."""
    assert worker.stdin is not None
    assert worker.stdout is not None
    worker.stdin.write(name + "\n")
    worker.stdin.flush()
    return worker.stdout.readline().strip()


def run_worker(library: str, precision: str, device: str) -> None:
    """Answer requests of `start_worker`."""
    batch = make_batch(2, 512, 640, device)
    baseline = build_transformers()
    if library == "transformers":
        step = transformers_step(baseline.to(device), batch, precision)
    else:
        step = detrkit_step(build_detrkit(baseline), batch, precision)
    answer_requests(step, device)


def answer_requests(step: Step, device: str) -> None:
    """Answer requests for steps and memory on standard input."""
    for line in sys.stdin:
        if line.strip() == "memory":
            peak = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else peak_memory()
            print(f"{peak:.2f}", flush=True)
            continue
        print(time_step(step, device), flush=True)


def time_step(step: Step, device: str) -> float:
    """Return the seconds of one step."""
    start = time.perf_counter()
    step()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def report_criterion(device: str) -> None:
    """Print the time of the criterion alone: 6 layers, batch 16, 7 objects each."""
    torch.manual_seed(0)
    batch = make_batch(16, 32, 32, device)
    logits = torch.randn(6, 16, 100, NUM_CLASSES + 1, device=device, requires_grad=True)
    boxes = (torch.rand(6, 16, 100, 4, device=device) * 0.5 + 0.2).requires_grad_()
    criterion = SetCriterion(NUM_CLASSES)

    def step() -> float:
        return float(criterion(Predictions(logits, boxes), batch.targets).total.detach())

    times = [time_step(step, device) for _ in range(20)]
    print(f"criterion alone        {1000 * statistics.median(times):7.1f} ms (forward)")


def report_sizes(device: str) -> None:
    """Print images per second and peak memory at 800 x 1066."""
    for precision, compile_model in (("float32", False), ("bfloat16", False), ("bfloat16", True)):
        for batch_size in (1, 4, 16):
            batch = make_batch(batch_size, 800, 1066, device)
            model = detrkit.build_model("detr-r50")
            torch.cuda.reset_peak_memory_stats()
            step = detrkit_step(model, batch, precision, compile_model)
            seconds = statistics.median(time_step(step, device) for _ in range(10))
            memory = torch.cuda.max_memory_allocated() / 2**30
            name = precision + (", compiled" if compile_model else "")
            print(f"batch {batch_size:>2} {name:<20} {batch_size / seconds:7.1f} images/s, {memory:5.1f} GiB")


def report_synchronizations() -> None:
    """Count the synchronizations with the GPU per step."""
    from torch.profiler import ProfilerActivity, profile

    batch = make_batch(2, 512, 640, "cuda")
    settings = TrainingConfig(padding_invariant=False)
    train_step = TrainStep(
        detrkit.build_model("detr-r50"), SetCriterion(NUM_CLASSES), settings, batch.images.device, length=100
    )
    for _ in range(3):
        train_step.step([batch])
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        for _ in range(5):
            train_step.step([batch])
    waits = sum(event.count for event in profiler.key_averages() if "Synchronize" in event.key)
    print(f"synchronizations per step: {waits / 5:.1f} (including that at the end of the profiler)")


def peak_memory() -> float:
    """Return the peak memory of this process in GiB (Linux; getrusage includes the parent process)."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**20


def main() -> None:
    """Run the benchmarks for the device."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--worker", nargs=2, metavar=("LIBRARY", "PRECISION"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        run_worker(*arguments.worker, arguments.device)
        return
    report_criterion(arguments.device)
    report_steps(arguments.device, arguments.steps)
    if arguments.device == "cuda":
        report_synchronizations()
        report_sizes(arguments.device)


if __name__ == "__main__":
    main()
