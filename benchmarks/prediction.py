"""Does prediction at scale keep its promises: every photo once, whatever is killed, in memory that does not grow?

    python -m benchmarks.prediction [--photos 1000] [--plot memory.png]

Draws photos of 96 pixels a side, in three shapes, into a temporary folder, and predicts them with detr-tiny (random
weights) in two shares, each a process of its own that writes JSON lines and Parquet. The first share is killed by SIGKILL
half-way and begun again. Prints how often each photo stands in the lines, and the resident memory of each process while it
predicts; draws it over the photos.
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

WORLD = 2
SIDE = 96
Reading = tuple[int, float]  # photos done, resident MiB


def write_photos(folder: Path, count: int) -> None:
    """Draw photos; a third each is square, lying and upright."""
    folder.mkdir()
    for number, sample in enumerate(SyntheticShapes(count, 0, SyntheticStyle(size=SIDE))):
        width, height = ((SIDE, SIDE), (SIDE, 64), (64, SIDE))[number % 3]
        picture = Image.fromarray(sample.image.permute(1, 2, 0).numpy())
        picture.crop((0, 0, width, height)).save(folder / f"{number:05d}.jpg")


def write_model(path: Path) -> None:
    """The tiny preset, of random weights."""
    torch.manual_seed(0)
    model = build_model("detr-tiny", num_classes=len(SHAPES))
    save_checkpoint(path, Checkpoint(model.state_dict(), model.config, SHAPES, Preprocessing(image_size=SIDE)))


def start(root: Path, rank: int) -> subprocess.Popen[bytes]:
    """Begin a share, or go on with it."""
    words = ["predict", str(root / "model.safetensors"), str(root / "photos"), "--partition", f"{rank}/{WORLD}"]
    words += ["--threshold", "0.1", "--batch-size", "8", "--write", "jsonl,parquet", "--output", str(root / "found")]
    return subprocess.Popen([sys.executable, "-m", "detrkit", *words], stdout=subprocess.DEVNULL)


def lines_of(root: Path, rank: int) -> Path:
    """The share's file."""
    return root / "found" / f"predictions-{rank}-of-{WORLD}.jsonl"


def resident(process: subprocess.Popen[bytes]) -> float:
    """Memory of a process in MiB; 0 when it has ended."""
    try:
        status = Path(f"/proc/{process.pid}/status").read_text()
    except OSError:
        return 0
    found = [line.split()[1] for line in status.splitlines() if line.startswith("VmRSS")]
    return int(found[0]) / 1024 if found else 0


def watch(process: subprocess.Popen[bytes], lines: Path, until: float = np.inf) -> list[Reading]:
    """Read memory each time that more photos are done; stop at a number of them."""
    readings: list[Reading] = []
    before = done = lines.read_bytes().count(b"\n") if lines.exists() else 0
    while process.poll() is None and done < until:
        time.sleep(0.02)
        done = lines.read_bytes().count(b"\n") if lines.exists() else 0
        if done > (readings[-1][0] if readings else before) and (memory := resident(process)):
            readings.append((done, memory))
    return readings


def run_share(root: Path, rank: int, kill_at: float) -> list[tuple[str, list[Reading]]]:
    """Predict a share; kill it once on the way if it is to be killed."""
    runs = []
    if kill_at < np.inf:
        process = start(root, rank)
        runs.append((f"share {rank}, killed", watch(process, lines_of(root, rank), kill_at)))
        process.send_signal(signal.SIGKILL)
        process.wait()
        print(f"share {rank}: killed after {sum(1 for _ in read_jsonl(lines_of(root, rank)))} lines")
    process = start(root, rank)
    label = f"share {rank}" + (", gone on with" if runs else "")
    runs.append((label, watch(process, lines_of(root, rank))))
    if process.wait():
        raise SystemExit(f"share {rank} ended with {process.returncode}")
    return runs


def growth(readings: Sequence[Reading]) -> float:
    """MiB per 1000 photos: a straight line through the second half, after warming up."""
    later = readings[len(readings) // 2 :]
    photos, memory = np.array([one[0] for one in later]), np.array([one[1] for one in later])
    return float(np.polyfit(photos, memory, 1)[0] * 1000)


def draw(runs: Sequence[tuple[str, list[Reading]]], path: Path) -> None:
    """Draw resident memory over the photos."""
    figure = Figure(figsize=(8, 3.5), layout="constrained")
    axes = figure.subplots()
    for label, readings in runs:
        axes.plot(*zip(*readings, strict=True), label=label, linewidth=1.4)
    axes.set(xlabel="photos of the share that are done", ylabel="resident memory, MiB")
    axes.set_ylim(0, 1.25 * max(memory for _, readings in runs for _, memory in readings))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=130)


def main() -> None:
    """Run both shares and say what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=1000)
    parser.add_argument("--plot", type=Path, default=Path("memory.png"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        write_photos(root / "photos", arguments.photos)
        write_model(root / "model.safetensors")
        runs = run_share(root, 0, kill_at=arguments.photos / WORLD / 2) + run_share(root, 1, kill_at=np.inf)
        seen = Counter(line["image"] for rank in range(WORLD) for line in read_jsonl(lines_of(root, rank)))
        print(f"{arguments.photos} photos: {len(seen)} in the lines, at most {max(seen.values())} time(s) each")
        for label, readings in runs:
            memory = [one[1] for one in readings]
            print(
                f"{label}: {readings[-1][0] - readings[0][0]} photos watched, {memory[len(memory) // 2]:.0f} MiB half-way, "
                f"{max(memory):.0f} at most, {growth(readings):+.1f} MiB per 1000 photos in the second half"
            )
        draw(runs, arguments.plot)


if __name__ == "__main__":
    main()
