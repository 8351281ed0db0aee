"""Time until a wrong command line is answered, for every command.

    python -m benchmarks.startup [--repeats 5] [--command train]

Starts `python -m detrkit` with wrong paths, swapped arguments, misspelt options, missing arguments and unknown names, and
prints the median seconds from start to exit of every command's mistakes. Each must be answered with one sentence and exit
code 2. A first call, which is not timed, leaves the files of Python and its packages in the disk cache.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from PIL import Image

MAX_SECONDS = 1.0
MISTAKES: dict[str, dict[str, list[str]]] = {
    "demo": {"typo": ["--sead", "1"], "name": ["--task", "boxs"], "range": ["--seed", "-1"], "too many": ["photos"]},
    "train": {
        "path": ["nowhere"],
        "swapped": ["run"],
        "typo": ["photos", "--epoch", "3"],
        "missing": [],
        "name": ["photos", "--model", "detr-r5O"],
        "another name": ["photos", "--weights", "detr-r5O"],
        "setting": ["photos", "--lr", "fast"],
        "format": ["photos", "--format", "cocoa"],
        "resume": ["--resume", "nowhere"],
    },
    "evaluate": {
        "path": ["run", "nowhere"],
        "another path": ["nowhere.pth", "photos"],
        "swapped": ["photos", "run"],
        "typo": ["run", "photos", "--by-layers"],
        "missing": ["run"],
        "name": ["detr-r5O", "photos"],
        "format": ["run", "photos", "--split", "vall"],
    },
    "predict": {
        "path": ["run", "nowhere.jpg"],
        "another path": ["nowhere.pth", "photo.png"],
        "swapped": ["photo.png", "run"],
        "typo": ["run", "photo.png", "--treshold", "0.3"],
        "missing": ["run"],
        "name": ["detr-r5O", "photo.png"],
        "range": ["run", "photo.png", "--threshold", "50"],
        "format": ["run", "photo.png", "--write", "jsnl"],
    },
    "explain": {
        "path": ["run", "nowhere.jpg"],
        "another path": ["nowhere.pth", "photo.png"],
        "swapped": ["photo.png", "run"],
        "typo": ["run", "photo.png", "--treshold", "0.3"],
        "missing": ["run"],
        "name": ["detr-r5O", "photo.png"],
        "range": ["run", "photo.png", "--threshold", "50"],
    },
    "serve": {
        "path": ["nowhere.pth"],
        "swapped": ["photos"],
        "typo": ["run", "--prot", "80"],
        "missing": [],
        "name": ["detr-r5O"],
        "range": ["run", "--port", "99999"],
    },
    "doctor": {
        "path": ["nowhere"],
        "swapped": ["run"],
        "typo": ["photos", "--jsn", "a.json"],
        "missing": [],
        "name": ["photos", "--model", "detr-r5O"],
        "format": ["photos", "--format", "cocoa"],
        "range": ["photos", "--workers", "-1"],
    },
    "export": {
        "path": ["nowhere.pth", "--format", "onnx"],
        "swapped": ["photos", "--format", "onnx"],
        "typo": ["run", "--fromat", "onnx"],
        "missing": ["run"],
        "name": ["detr-r5O", "--format", "onnx"],
        "format": ["run", "--format", "tflite"],
        "another path": ["run", "--format", "onnx", "--data", "nowhere"],
    },
    "convert": {
        "path": ["nowhere.pth", "out", "--to", "huggingface"],
        "swapped": ["out.pth", "run", "--to", "official"],
        "typo": ["run", "out.pth", "--too", "official"],
        "missing": ["run"],
        "name": ["detr-r5O", "out.pth", "--to", "official"],
        "format": ["run", "out.pth", "--to", "offical"],
    },
    "convert-data": {
        "path": ["nowhere", "out", "--to", "coco"],
        "swapped": ["out", "photos", "--to", "coco"],
        "typo": ["photos", "out", "--too", "coco"],
        "missing": ["photos"],
        "format": ["photos", "out", "--to", "cocoa"],
        "model": ["run", "out", "--to", "coco"],
    },
    "shard": {
        "path": ["nowhere", "out"],
        "swapped": ["out", "photos"],
        "typo": ["photos", "out", "--image-per-shard", "9"],
        "missing": ["photos"],
        "range": ["photos", "out", "--images-per-shard", "0"],
        "model": ["run", "out"],
    },
    "benchmark": {
        "path": ["nowhere.pth"],
        "swapped": ["photos"],
        "typo": ["--sizes", "64x64"],
        "name": ["detr-r5O"],
        "range": ["--size", "big"],
        "format": ["--precisions", "float8"],
    },
    "describe": {
        "path": ["nowhere.pth"],
        "swapped": ["photos"],
        "typo": ["detr-r50", "--sizes", "64x64"],
        "missing": [],
        "name": ["detr-r5O"],
        "range": ["detr-r50", "--size", "big"],
    },
    "describe data": {
        "path": ["nowhere"],
        "swapped": ["run"],
        "typo": ["photos", "--counts", "3"],
        "missing": [],
        "name": ["photos", "--model", "detr-r5O"],
    },
    "config": {"typo": ["--modle", "detr-r50"], "name": ["--model", "detr-r5O"], "too many": ["photos"]},
    "models": {"typo": ["--all"], "too many": ["detr-r50"]},
    "": {"typo": ["tran", "photos"]},
}


def write_place(folder: Path) -> None:
    """Write a dataset, a run folder and an image, by their names only: no command reads them."""
    annotations = folder / "photos" / "annotations"
    annotations.mkdir(parents=True)
    (annotations / "instances_train.json").write_text(
        '{"images": [], "annotations": [], "categories": []}', encoding="utf-8"
    )
    (folder / "run" / "best").mkdir(parents=True)
    (folder / "run" / "best" / "model.safetensors").touch()
    (folder / "run" / "config.yaml").touch()
    Image.new("RGB", (8, 8)).save(folder / "photo.png")


def seconds_to_answer(place: Path, arguments: list[str]) -> float:
    """Run a wrong command line, check that it is answered in one sentence, and return the seconds that it took."""
    start = time.perf_counter()
    result = subprocess.run(
        [sys.executable, "-m", "detrkit", *arguments], cwd=place, capture_output=True, encoding="utf-8", check=False
    )
    seconds = time.perf_counter() - start
    assert result.returncode == 2, (arguments, result.stdout + result.stderr)
    assert result.stderr.count("\n") == 1, (arguments, result.stderr)
    return seconds


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--command", choices=[*MISTAKES], help="of this command only")
    options = parser.parse_args()
    commands = MISTAKES if options.command is None else {options.command: MISTAKES[options.command]}
    slow = 0
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        write_place(place)
        seconds_to_answer(place, ["train", "nowhere"])
        print("median seconds until a wrong command line is answered")
        for command, mistakes in commands.items():
            medians = {
                kind: median(seconds_to_answer(place, [*command.split(), *given]) for _ in range(options.repeats))
                for kind, given in mistakes.items()
            }
            slow += sum(one > MAX_SECONDS for one in medians.values())
            print(
                f"{command or '(none)':14}", ", ".join(f"{kind} {one:.2f}" for kind, one in medians.items()), flush=True
            )
    print(f"{slow} above {MAX_SECONDS:g} s" if slow else f"all within {MAX_SECONDS:g} s")
    sys.exit(bool(slow))


if __name__ == "__main__":
    main()
