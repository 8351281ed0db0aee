"""The command line as a beginner meets it: help that teaches, and one sentence for every mistake."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from detrkit import build_model
from detrkit.checkpoints.native import Checkpoint, Preprocessing, save_checkpoint
from detrkit.cli import COMMANDS, main
from detrkit.data.synthetic import SHAPES
from tests.datasets import write_coco

_IMAGE = "shapes/val2017/2.png"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a dataset, a model, and things that are neither."""
    root = tmp_path_factory.mktemp("place")
    write_coco(root / "shapes")
    torch.manual_seed(0)
    model = build_model("detr-tiny", num_classes=len(SHAPES))
    save_checkpoint(
        root / "model.safetensors", Checkpoint(model.state_dict(), model.config, SHAPES, Preprocessing(image_size=64))
    )
    other = build_model("detr-tiny", num_classes=9)
    torch.save({"conv1.weight": torch.zeros(3)}, root / "resnet.pth")
    save_checkpoint(
        root / "nine.safetensors",
        Checkpoint(
            other.state_dict(),
            other.config,
            type(SHAPES)(tuple(range(1, 10)), tuple(f"thing {i}" for i in range(9))),
            Preprocessing(),
        ),
    )
    (root / "no_image.jpg").write_text("hello")
    (root / "broken.onnx").write_text("hello")
    (root / "empty").mkdir()
    (root / "folder.json").mkdir()
    (root / "cut.yaml").write_text("epochs: [1,")
    (root / "evil.yaml").write_text('data: !!python/object/apply:os.system ["touch witness"]')
    (root / "misspelt.yaml").write_text("epoch: 3\n")
    (root / "broken" / "annotations").mkdir(parents=True)
    (root / "broken" / "train2017").mkdir()
    (root / "broken" / "annotations" / "instances_train2017.json").write_text('{"images": [')
    return root


def run(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    output = capsys.readouterr()
    code = left.value.code
    assert isinstance(code, int)
    return code, output.out, output.err


MISTAKES = {
    "no such verb": (["tran"], "train"),
    "no model": (["predict"], "SOURCE"),
    "no photos": (["predict", "model.safetensors"], "IMAGE: found none"),
    "missing photo": (["predict", "model.safetensors", "nowhere.jpg"], "nowhere.jpg: found nothing"),
    "no image": (["predict", "model.safetensors", "no_image.jpg"], "no_image.jpg"),
    "folder without photos": (["predict", "model.safetensors", "empty"], "found no image in this folder"),
    "threshold in percent": (["predict", "model.safetensors", "no_image.jpg", "--threshold", "50"], "between 0 and 1"),
    "threshold is a word": (["predict", "model.safetensors", "no_image.jpg", "--threshold", "high"], "threshold"),
    "missing model": (["predict", "nowhere.safetensors", "no_image.jpg"], "nowhere.safetensors: no such file"),
    "model of another kind": (["predict", "resnet.pth", "no_image.jpg"], "contains only a backbone"),
    "model is a folder without one": (["predict", "empty", "no_image.jpg"], "expected a run folder"),
    "no such device": (
        ["predict", "model.safetensors", "no_image.jpg", "--device", "gpu9"],
        "error: --device gpu9 is not a device; use 'cpu', 'cuda', 'cuda:1' or 'auto'",
    ),
    "a device that computes nothing": (
        ["predict", "model.safetensors", "no_image.jpg", "--device", "meta"],
        "--device meta computes nothing",
    ),
    "a name longer than any file's": (["predict", "model.safetensors", f"{'a' * 300}.jpg"], "check the path"),
    "photos without a side": (["describe", "detr-tiny", "--size", "00x00"], "expected HEIGHTxWIDTH"),
    "a seed that nothing counts to": (["demo", "--seed", str(2**63)], "--seed: found 92233"),
    "photos larger than any": (["train", "shapes", "--image-size", "20000"], "--image-size: found 20000"),
    "settings of a run that goes on": (
        ["train", "--resume", "empty", "--dry-run", "--epochs", "1", "--output", "elsewhere"],
        "leave out --output, --dry-run, --epochs",
    ),
    "missing dataset": (["train", "nowhere"], "nowhere: no such file or folder, expected a dataset folder"),
    "wrong layout": (["train", "empty"], "found no annotations, expected coco: annotations/instances_train*.json"),
    "cut annotations": (["train", "broken"], "not readable as JSON"),
    "no dataset": (["train"], "data"),
    "unknown preset": (["train", "shapes", "--model", "detr-r5O"], "detr-r50"),
    "unknown model setting": (["train", "shapes", "--model", "detr-tiny", "--num-querys", "5"], "--num-queries"),
    "number of classes": (["train", "shapes", "--num-classes", "9"], "Unknown option: --num-classes"),
    "epochs beside steps": (
        ["train", "shapes", "--epochs", "2", "--steps", "3"],
        "--epochs and --steps exclude each other",
    ),
    "a size that no photo has": (
        ["doctor", "shapes", "--image-size", "3"],
        "--image-size 3: expected 32 to 10000 pixels",
    ),
    "nobody to decode photos": (["doctor", "shapes", "--workers", "-1"], "--workers -1: expected at least 0"),
    "model setting out of range": (
        ["train", "shapes", "--model", "detr-tiny", "--num-queries", "0"],
        "--num-queries: found 0",
    ),
    "misspelt option": (["train", "shapes", "--epoch", "3"], "--epochs"),
    "option out of range": (["train", "shapes", "--epochs", "0"], "--epochs: found 0"),
    "model setting like a date": (["train", "shapes", "--num-queries", "2024-13-45"], "--num-queries"),
    "negative seed": (["demo", "--seed", "-1"], "--seed"),
    "no photo at a time": (
        ["evaluate", "model.safetensors", "shapes", "--batch-size", "0"],
        "--batch-size 0 is too small",
    ),
    "results into a folder": (["evaluate", "model.safetensors", "shapes", "-o", "folder.json"], "is a folder"),
    "a report into a file": (["evaluate", "model.safetensors", "shapes", "-o", "no_image.jpg"], "is a file"),
    "evaluated nothing": (["evaluate", "model.safetensors"], "requires an argument"),
    "layers of photos without annotations": (
        ["evaluate", "model.safetensors", "shapes/val2017", "--by-layer"],
        "--by-layer needs annotations",
    ),
    "layers of results": (["evaluate", "r.json", "shapes", "--by-layer"], "--by-layer needs a model"),
    "missing results": (["evaluate", "nowhere.json", "shapes"], "nowhere.json: found nothing"),
    "results without a folder": (["evaluate", "r.json", "shapes", "-o", "s.json"], "pass a folder"),
    "thresholds of a model without": (
        ["predict", "model.safetensors", "no_image.jpg", "--threshold", "auto"],
        "--threshold auto needs thresholds stored in the model",
    ),
    "thresholds into a model without room": (
        ["evaluate", "resnet.pth", "shapes", "--store-thresholds"],
        "is not a detrkit checkpoint",
    ),
    "pictures over photos": (
        ["predict", "model.safetensors", "shapes/val2017", "-o", "shapes/val2017"],
        "would be overwritten",
    ),
    "an unknown class": (
        ["predict", "model.safetensors", "shapes/val2017", "--classes", "sqare"],
        "did you mean 'square'",
    ),
    "a share beyond the last": (
        ["predict", "model.safetensors", "shapes/val2017", "--partition", "2/2"],
        "--partition 2/2 is not INDEX/COUNT",
    ),
    "an unknown output": (
        ["predict", "model.safetensors", "shapes/val2017", "--write", "jsnl"],
        "did you mean 'jsonl'",
    ),
    "tiles of nothing": (["predict", "model.safetensors", "shapes/val2017", "--tile", "2"], "--tile: found 2"),
    "tiles that overlap too much": (
        ["predict", "model.safetensors", "shapes/val2017", "--tile", "64", "--overlap", "0.9"],
        "--overlap: found 0.9",
    ),
    "no frames": (["predict", "model.safetensors", "shapes/val2017", "--max-frames", "0"], "--max-frames: found 0"),
    "no such pattern": (["predict", "model.safetensors", "shapes/*.tiff"], "matches this pattern"),
    "JSON of a camera": (
        ["predict", "model.safetensors", "camera:0", "--write", "json"],
        "--write json is for images",
    ),
    "no photo opened": (["predict", "model.safetensors", "shapes/val2017", "--workers", "-1"], "--workers: found -1"),
    "mistyped weights": (["predict", "wieghts/detr.pth", "no_image.jpg"], "wieghts/detr.pth: no such file"),
    "masks of a narrow model": (
        ["train", "shapes", "--model", "detr-tiny", "--mask-head", "--hidden-dim", "96"],
        "mask head",
    ),
    "misspelt setting in a file": (["train", "shapes", "--config", "misspelt.yaml"], "epochs"),
    "cut settings": (["train", "shapes", "--config", "cut.yaml"], "not readable as YAML"),
    "settings that would run a command": (["train", "shapes", "--config", "evil.yaml"], "not readable as YAML"),
    "missing settings": (["train", "shapes", "--config", "nowhere.yaml"], "nowhere.yaml: the file does not exist"),
    "weights of another model": (
        ["train", "shapes", "--model", "detr-tiny", "--hidden-dim", "64", "--weights", "nine.safetensors"],
        "--weights nine.safetensors: only",
    ),
    "a Slurm job without Slurm": (
        ["train", "shapes", "--slurm", "nodes=2"],
        "--slurm: found no sbatch on this machine",
    ),
    "gone on with nothing": (["train", "--resume", "empty"], "empty: found no config.yaml"),
    "gone on with another model": (["train", "--resume", "empty", "--model", "detr-tiny"], "leave out --model"),
    "frozen nose": (["train", "shapes", "--model", "detr-tiny", "--freeze", "nose"], "--freeze: found nose"),
    "a backbone that timm lacks": (["train", "shapes", "--backbone", "timm:resnet5"], "timm has no such model"),
    "evaluated on other classes": (["evaluate", "nine.safetensors", "shapes"], "thing 0"),
    "exported to no form": (["export", "model.safetensors"], "--format"),
    "exported to an unknown form": (["export", "model.safetensors", "--format", "tflite"], "tflite"),
    "exported to ONNX in int8": (
        ["export", "model.safetensors", "--format", "onnx", "--precision", "int8", "--data", "shapes"],
        "use --format openvino",
    ),
    "int8 without photos": (
        ["export", "model.safetensors", "--format", "openvino", "--precision", "int8"],
        "needs images",
    ),
    "exported over something": (
        ["export", "nine.safetensors", "--format", "openvino", "-o", "shapes"],
        "exists already",
    ),
    "exported to the wrong suffix": (["export", "model.safetensors", "--format", "torch", "-o", "a.onnx"], ".pt2"),
    "exported to a folder that is a file": (
        ["export", "model.safetensors", "--format", "openvino", "-o", "a.onnx"],
        "expected a folder",
    ),
    "exported for photos of no size": (
        ["export", "model.safetensors", "--format", "onnx", "--image-size", "0"],
        "--image-size 0 is not in",
    ),
    "exported and compared on nothing": (
        ["export", "model.safetensors", "--format", "onnx", "--max-images", "0"],
        "--max-images 0",
    ),
    "exported and compared on no data": (
        ["export", "model.safetensors", "--format", "onnx", "--data", "nowhere"],
        "nowhere: no such file or folder",
    ),
    "exported and compared on other classes": (
        ["export", "nine.safetensors", "--format", "onnx", "--data", "shapes"],
        "thing 0",
    ),
    "exported nothing": (["export", "nowhere.pth", "--format", "onnx"], "nowhere.pth: no such file"),
    "predicted by a broken export": (["predict", "broken.onnx", "no_image.jpg"], "broken.onnx: not readable as ONNX"),
    "converted to nothing known": (["convert", "model.safetensors", "a.pth", "--to", "onnxx"], "onnxx"),
    "converted to the wrong suffix": (["convert", "model.safetensors", "a.bin", "--to", "official"], ".pth"),
    "converted over something": (
        ["convert", "model.safetensors", "nine.safetensors", "--to", "detrkit"],
        "exists already",
    ),
    "explained without an image": (["explain", "model.safetensors"], "IMAGE"),
    "explained missing image": (["explain", "model.safetensors", "nowhere.jpg"], "nowhere.jpg"),
    "explained into a folder": (["explain", "model.safetensors", "no_image.jpg", "-o", "empty"], "a folder"),
    "explained as text": (["explain", "model.safetensors", "no_image.jpg", "-o", "a.txt"], "--output a.txt"),
    "explained over the image": (
        ["explain", "model.safetensors", _IMAGE, "--figure", "decoder", "-o", _IMAGE],
        "is the image and would be overwritten",
    ),
    "explained with a threshold in percent": (
        ["explain", "model.safetensors", _IMAGE, "--threshold", "5"],
        "--threshold 5",
    ),
    "points without a figure": (["explain", "model.safetensors", _IMAGE, "--points", "1,2"], "is for --figure encoder"),
    "malformed points": (
        ["explain", "model.safetensors", _IMAGE, "--figure", "encoder", "--points", "left"],
        "--points left is not a point",
    ),
    "points outside the image": (
        ["explain", "model.safetensors", _IMAGE, "--figure", "encoder", "--points", "1,900"],
        "1,900",
    ),
    "layer out of range": (
        ["explain", "model.safetensors", _IMAGE, "--figure", "decoder", "--layer", "4"],
        "--layer 4 is out of range; expected 1 to 3",
    ),
    "head out of range": (
        ["explain", "model.safetensors", _IMAGE, "--figure", "decoder", "--head", "9"],
        "--head 9 is out of range; expected 1 to 8",
    ),
    "query out of range": (
        ["explain", "model.safetensors", _IMAGE, "--queries", "25"],
        "--queries 25 is out of range; expected 0 to 24",
    ),
    "matching figure without annotations": (
        ["explain", "model.safetensors", _IMAGE, "--figure", "matching"],
        "pass --annotations",
    ),
    "annotations of other images": (["explain", "model.safetensors", _IMAGE, "--annotations", "broken"], "broken"),
    "annotations of other classes": (
        [
            "explain",
            "nine.safetensors",
            "shapes/val2017/3.png",
            "--annotations",
            "shapes/annotations/instances_val2017.json",
        ],
        "thing 0",
    ),
    "described as text": (["describe", "detr-tiny", "-o", "a.txt"], "--output a.txt"),
    "described at no size": (["describe", "detr-tiny", "--size", "big"], "big"),
    "described nothing": (["describe", "detr-r51"], "detr-r50"),
    "described no data": (["describe", "data", "nowhere", "-o", "x.png"], "nowhere: no such file or folder"),
    "described no samples": (["describe", "data", "shapes", "--count", "0"], "--count 0: expected 1"),
    "described after the end": (["describe", "data", "shapes", "--epochs", "3", "--epoch", "4"], "expected 1 to 3"),
    "described over a folder": (["describe", "data", "shapes", "-o", "empty"], "is not the name of a PNG file"),
    "packed nothing": (["shard", "nowhere", "packed"], "nowhere: no such file or folder"),
    "packed into something": (["shard", "shapes", "shapes"], "is not overwritten"),
    "packed in shards of none": (
        ["shard", "shapes", "packed", "--images-per-shard", "0"],
        "--images-per-shard 0: expected at least 1",
    ),
    "colours of many channels": (
        ["train", "shapes", "--model", "detr-tiny", "--in-channels", "5", "--photometric", "1"],
        "these have 5 channels",
    ),
    "more channels than there are": (
        ["train", "shapes", "--model", "detr-tiny", "--in-channels", "5", "--workers", "0", "-o", "five"],
        "does not have 5 channels",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_sentence(
    mistake: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setattr("detrkit.training.slurm.shutil.which", lambda _name: None)  # a cluster's login node has it
    before = {path: path.stat().st_mtime_ns for path in place.rglob("*")}
    arguments, says = MISTAKES[mistake]
    code, out, err = run(arguments, capsys)
    assert code == 2
    assert says in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert "Traceback" not in out + err
    assert {path: path.stat().st_mtime_ns for path in place.rglob("*")} == before, "something was written"


@pytest.mark.parametrize("verb", [None, *COMMANDS])
def test_help_teaches_within_80_columns(
    verb: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as left:
        main([*([verb] if verb else []), "--help"])
    out = capsys.readouterr().out
    assert left.value.code in (0, None)
    assert max(len(line) for line in out.splitlines()) <= 80
    if verb is None:
        assert all(each in out for each in COMMANDS)
    elif verb != "demo":
        assert f"detrkit {verb}" in " ".join(out.split())
        assert "Example" in out


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out.strip() == "0.1.0"


def test_help_and_import_do_not_wait_for_torch() -> None:
    code = (
        "import sys, json, detrkit, detrkit.cli\n"
        "try: detrkit.cli.main(['train', '--help'])\n"
        "except SystemExit: pass\n"
        "print(json.dumps([name for name in ('torch', 'torchvision', 'matplotlib', 'PIL') if name in sys.modules]))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert json.loads(out.splitlines()[-1]) == []
