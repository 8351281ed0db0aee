"""How well `detrkit train --minutes` keeps its time, idle and while other processes compute.

    python -m benchmarks.time_limit --minutes 2 --busy 0 2 4
    python -m benchmarks.time_limit --minutes 2 --busy 4 --from 0.5

Trains detrkit-s on 24 synthetic images of 480 px. The time is that of the whole command, from its start to its exit.
"""

import argparse
import json
import multiprocessing
import subprocess
import sys
import tempfile
import threading
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

from detrkit.data.images import tensor_to_image
from detrkit.data.synthetic import SHAPES, SyntheticShapes, SyntheticStyle
from detrkit.evaluation.ground_truth import samples_to_coco
from detrkit.training.loggers.jsonl import read_metrics

NUM_TRAIN, NUM_VAL, SIZE = 24, 6, 480


def write_shapes(root: Path) -> Path:
    """Write synthetic shapes in the COCO layout."""
    (root / "annotations").mkdir(parents=True)
    for seed, (name, count) in enumerate({"train2017": NUM_TRAIN, "val2017": NUM_VAL}.items()):
        samples = SyntheticShapes(count, seed, SyntheticStyle(size=SIZE)).draw_all()
        document = samples_to_coco(samples, SHAPES)
        (root / name).mkdir()
        for sample, entry in zip(samples, document["images"], strict=True):
            tensor_to_image(sample.image).save(root / name / entry["file_name"])
        (root / "annotations" / f"instances_{name}.json").write_text(json.dumps(document), encoding="utf-8")
    return root


def compute() -> None:
    """Keep a core busy."""
    while True:
        sum(number * number for number in range(100_000))


def start_busy_processes(count: int) -> list[BaseProcess]:
    """Start processes that compute until they are terminated."""
    context = multiprocessing.get_context("spawn")
    processes: list[BaseProcess] = [context.Process(target=compute, daemon=True) for _ in range(count)]
    for process in processes:
        process.start()
    return processes


def measure(data: Path, output: Path, minutes: float, busy: int, after: float) -> None:
    """Run one command, and print its duration."""
    processes: list[BaseProcess] = []
    timer = threading.Timer(60 * minutes * after, lambda: processes.extend(start_busy_processes(busy)))
    command = [sys.executable, "-m", "detrkit", "train", str(data), "--minutes", str(minutes), "--output", str(output)]
    start = time.monotonic()
    timer.start()
    try:
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds = time.monotonic() - start
    finally:
        timer.cancel()
        for process in processes:
            process.terminate()
    entries = read_metrics(output)
    evaluations = [entry for entry in entries if entry["kind"] == "evaluation"]
    steps, ratio = evaluations[-1]["step"], seconds / (60 * minutes)
    print(f"| {busy} | {after:.0%} | {steps} | {len(evaluations)} | {seconds:.1f} | {ratio:.3f} |", flush=True)


def main() -> None:
    """Measure runs one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=2.0, help="time limit")
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 4], help="processes that compute meanwhile")
    parser.add_argument(
        "--from", type=float, default=0.0, dest="after", help="fraction of the time at which they start"
    )
    options = parser.parse_args()
    print("| busy processes | from | steps | evaluations | s | / limit |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        data = write_shapes(Path(folder) / "shapes")
        for number, busy in enumerate(options.busy):
            measure(data, Path(folder) / f"run-{number}", options.minutes, busy, options.after)


if __name__ == "__main__":
    main()
