"""Smoke test of an installation, on any system: `python tests/smoke.py [FOLDER]`.

Writes a small dataset into a folder whose name has spaces and accents, checks and converts it, trains for a moment with
worker processes, evaluates, predicts and exports. CI runs it on Windows and macOS.
"""

import json
import multiprocessing
import sys
import tempfile
from pathlib import Path

from PIL import Image

import detrkit
from detrkit.cli import main
from detrkit.data.synthetic import SHAPES, SyntheticShapes, SyntheticStyle
from detrkit.evaluation.ground_truth import samples_to_coco

_TRAINING = ["--model", "detr-tiny", "--epochs", "1", "--image-size", "64", "--batch-size", "2", "--workers", "2"]


def write_dataset(folder: Path) -> Path:
    """Write synthetic shapes in the COCO 2017 layout; a class name and a file name are not ASCII."""
    (folder / "annotations").mkdir(parents=True)
    for seed, (split, count) in enumerate({"train2017": 6, "val2017": 2}.items()):
        samples = SyntheticShapes(count, seed, SyntheticStyle(size=64)).draw_all()
        document = samples_to_coco(samples, SHAPES)
        document["categories"][0]["name"] = "Kreis \u25cb"
        document["images"][0]["file_name"] = "caf\u00e9 1.png"
        (folder / split).mkdir()
        for sample, entry in zip(samples, document["images"], strict=True):
            Image.fromarray(sample.image.permute(1, 2, 0).numpy()).save(folder / split / entry["file_name"])
        text = json.dumps(document, ensure_ascii=False)
        (folder / "annotations" / f"instances_{split}.json").write_text(text, encoding="utf-8")
    return folder


def run(*words: object) -> None:
    """Run a command of detrkit.

    Raises:
        SystemExit: it failed.
    """
    arguments = [str(word) for word in words]
    print(f"\n$ detrkit {' '.join(arguments)}", flush=True)  # noqa: T201
    try:
        main(arguments)
    except SystemExit as left:
        if left.code:
            raise


def smoke(folder: Path) -> None:
    """Run the commands."""
    photos = write_dataset(folder / "my ph\u00f6tos")
    first = folder / "my r\u00fcns" / "first"
    run("doctor", photos, "--html", folder / "findings.html")
    run("convert-data", photos, folder / "as yolo", "--to", "yolo")
    run("shard", photos, folder / "shards", "--images-per-shard", "4")
    run("train", photos, "--output", first, "--device", "cpu", *_TRAINING)
    run("evaluate", first, folder / "shards", "--output", folder / "report", "--device", "cpu")
    run("predict", first, photos / "val2017", "--output", folder / "found", "--threshold", "0", "--device", "cpu")
    run(
        "explain",
        first,
        photos / "val2017" / "caf\u00e9 1.png",
        "--output",
        folder / "explained.html",
        "--device",
        "cpu",
    )
    run("doctor", photos, "--fix", folder / "fixed")
    expected = [first / "best" / "model.safetensors", folder / "report" / "report.html", folder / "explained.html"]
    missing = [str(path) for path in expected if not path.is_file()]
    if missing or len(list((folder / "found").rglob("*.png"))) + len(list((folder / "found").rglob("*.jpg"))) < 2:
        raise SystemExit(f"missing: {', '.join(missing) or folder / 'found'}")
    print(f"\ndetrkit {detrkit.__version__} works on {sys.platform}")  # noqa: T201


if __name__ == "__main__":  # worker processes import this module
    if "--spawn" in sys.argv:  # as Windows and macOS start processes
        multiprocessing.set_start_method("spawn")
    places = [word for word in sys.argv[1:] if not word.startswith("--")]
    if places:
        smoke(Path(places[0]))
    else:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
            smoke(Path(place))
