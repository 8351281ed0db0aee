"""Prediction of many images: every image once, even after a kill, in constant memory.

    python -m benchmarks.prediction [--images 1000] [--plot memory.png]

Writes synthetic images of 96 pixels a side, in three shapes, to a temporary folder, and predicts them with detr-tiny
(random weights) in two partitions, each a process of its own that writes JSON lines and Parquet. The first partition is
killed by SIGKILL half-way and started again. Prints how often each image occurs in the lines, and the resident memory of
each process during prediction; plots it over the images.
"""

import argparse
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image

from detrkit import build_model
from detrkit._internal.files import atomic_write
from detrkit.checkpoints.native import Checkpoint, Preprocessing, save_checkpoint
from detrkit.data.synthetic import SHAPES, SyntheticShapes, SyntheticStyle
from detrkit.inference.writers.jsonl import read_jsonl

NUM_PARTITIONS = 2
SIDE = 96
Reading = tuple[int, float]  # images done, resident MiB


def write_images(folder: Path, count: int) -> None:
    """Write synthetic images; a third each is square, landscape and portrait."""
    folder.mkdir()
    for number, sample in enumerate(SyntheticShapes(count, 0, SyntheticStyle(size=SIDE)).draw_all()):
        width, height = ((SIDE, SIDE), (SIDE, 64), (64, SIDE))[number % 3]
        image = Image.fromarray(sample.image.permute(1, 2, 0).numpy())
        image.crop((0, 0, width, height)).save(folder / f"{number:05d}.jpg")


def write_model(path: Path) -> None:
    """Write detr-tiny with random weights."""
    torch.manual_seed(0)
    model = build_model("detr-tiny", num_classes=len(SHAPES))
    save_checkpoint(path, Checkpoint(model.state_dict(), model.config, SHAPES, Preprocessing(image_size=SIDE)))


def start(root: Path, partition: int) -> subprocess.Popen[bytes]:
    """Start or resume the prediction of a partition."""
    command = [
        "predict",
        str(root / "model.safetensors"),
        str(root / "images"),
        "--partition",
        f"{partition}/{NUM_PARTITIONS}",
    ]
    command += ["--threshold", "0.1", "--batch-size", "8", "--write", "jsonl,parquet", "--output", str(root / "output")]
    return subprocess.Popen([sys.executable, "-m", "detrkit", *command], stdout=subprocess.DEVNULL)


def lines_path(root: Path, partition: int) -> Path:
    """Return the file of JSON lines of a partition."""
    return root / "output" / f"predictions-{partition}-of-{NUM_PARTITIONS}.jsonl"


def resident_memory(process: subprocess.Popen[bytes]) -> float:
    """Return the resident memory of a process in MiB; 0 if it has ended."""
    try:
        status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
    except OSError:
        return 0
    values = [line.split()[1] for line in status.splitlines() if line.startswith("VmRSS")]
    return int(values[0]) / 1024 if values else 0


def watch(process: subprocess.Popen[bytes], lines: Path, until: float = np.inf) -> list[Reading]:
    """Read the memory whenever more images are done, until `until` of them are."""
    readings: list[Reading] = []
    before = done = lines.read_bytes().count(b"\n") if lines.exists() else 0
    while process.poll() is None and done < until:
        time.sleep(0.02)
        done = lines.read_bytes().count(b"\n") if lines.exists() else 0
        if done > (readings[-1][0] if readings else before) and (memory := resident_memory(process)):
            readings.append((done, memory))
    return readings


def run_partition(root: Path, partition: int, kill_at: float) -> list[tuple[str, list[Reading]]]:
    """Predict a partition; kill and resume it after `kill_at` images."""
    runs = []
    if kill_at < np.inf:
        process = start(root, partition)
        runs.append((f"partition {partition}, killed", watch(process, lines_path(root, partition), kill_at)))
        process.send_signal(signal.SIGKILL)
        process.wait()
        print(f"partition {partition}: killed after {sum(1 for _ in read_jsonl(lines_path(root, partition)))} lines")
    process = start(root, partition)
    label = f"partition {partition}" + (", resumed" if runs else "")
    runs.append((label, watch(process, lines_path(root, partition))))
    if process.wait():
        raise SystemExit(f"partition {partition} ended with {process.returncode}")
    return runs


def growth(readings: Sequence[Reading]) -> float:
    """Fit a line to the second half of the readings; return MiB per 1000 images."""
    later = readings[len(readings) // 2 :]
    images, memory = np.array(later).T
    return float(np.polyfit(images, memory, 1)[0] * 1000)


def plot(runs: Sequence[tuple[str, list[Reading]]], path: Path) -> None:
    """Plot resident memory over the images."""
    figure = Figure(figsize=(8, 3.5), layout="constrained")
    axes = figure.subplots()
    for label, readings in runs:
        axes.plot(*zip(*readings, strict=True), label=label, linewidth=1.4)
    axes.set(xlabel="images done", ylabel="resident memory, MiB")
    axes.set_ylim(0, 1.25 * max(memory for _, readings in runs for _, memory in readings))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=130)


def main() -> None:
    """Run both partitions and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--plot", type=Path, default=Path("memory.png"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_images(root / "images", arguments.images)
        write_model(root / "model.safetensors")
        runs = run_partition(root, 0, kill_at=arguments.images / NUM_PARTITIONS / 2) + run_partition(
            root, 1, kill_at=np.inf
        )
        seen = Counter(
            line["image"] for partition in range(NUM_PARTITIONS) for line in read_jsonl(lines_path(root, partition))
        )
        print(f"{arguments.images} images: {len(seen)} in the lines, at most {max(seen.values())} time(s) each")
        for label, readings in runs:
            memory = [one[1] for one in readings]
            print(
                f"{label}: {readings[-1][0] - readings[0][0]} images watched, {memory[len(memory) // 2]:.0f} MiB half-way, "
                f"peak {max(memory):.0f}, {growth(readings):+.1f} MiB per 1000 images in the second half"
            )
        plot(runs, arguments.plot)


if __name__ == "__main__":
    main()
