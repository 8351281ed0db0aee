"""Help and error messages of the command line: every user error is one sentence and exit code 2."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import detrkit
from detrkit import build_model
from detrkit.checkpoints.native import Checkpoint, Preprocessing, save_checkpoint
from detrkit.cli import COMMANDS, main
from detrkit.data.synthetic import SHAPES
from tests.datasets import write_coco

_IMAGE = "shapes/val2017/2.png"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a dataset, checkpoints, and malformed files."""
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
    with pytest.raises(SystemExit) as exit_info:
        main(arguments)
    output = capsys.readouterr()
    code = exit_info.value.code
    assert isinstance(code, int)
    return code, output.out, output.err


ERRORS = {
    "unknown command": (["tran"], "train"),
    "model missing": (["predict"], "SOURCE"),
    "images missing": (["predict", "model.safetensors"], "IMAGE: found none"),
    "image does not exist": (["predict", "model.safetensors", "nowhere.jpg"], "nowhere.jpg: found nothing"),
    "file is not an image": (["predict", "model.safetensors", "no_image.jpg"], "no_image.jpg"),
    "folder without images": (["predict", "model.safetensors", "empty"], "found no image in this folder"),
    "threshold in percent": (["predict", "model.safetensors", "no_image.jpg", "--threshold", "50"], "between 0 and 1"),
    "threshold is not a number": (["predict", "model.safetensors", "no_image.jpg", "--threshold", "high"], "threshold"),
    "model does not exist": (["predict", "nowhere.safetensors", "no_image.jpg"], "nowhere.safetensors: no such file"),
    "weights of a backbone": (["predict", "resnet.pth", "no_image.jpg"], "contains only a backbone"),
    "model folder without a model": (["predict", "empty", "no_image.jpg"], "expected a run folder"),
    "unknown device": (
        ["predict", "model.safetensors", "no_image.jpg", "--device", "gpu9"],
        "error: --device gpu9 is not a device; use 'cpu', 'cuda', 'cuda:1' or 'auto'",
    ),
    "meta device": (
        ["predict", "model.safetensors", "no_image.jpg", "--device", "meta"],
        "--device meta computes nothing",
    ),
    "file name too long": (["predict", "model.safetensors", f"{'a' * 300}.jpg"], "check the path"),
    "size of zero": (["describe", "detr-tiny", "--size", "00x00"], "expected HEIGHTxWIDTH"),
    "seed too large": (["demo", "--seed", str(2**63)], "is out of range"),
    "image size too large": (["train", "shapes", "--image-size", "20000"], "--image-size: found 20000"),
    "settings with resume": (
        ["train", "--resume", "empty", "--dry-run", "--epochs", "1", "--output", "elsewhere"],
        "leave out --epochs, --output, --dry-run",
    ),
    "dataset does not exist": (["train", "nowhere"], "nowhere: no such file or folder, expected a dataset folder"),
    "unknown dataset layout": (
        ["train", "empty"],
        "found no annotations, expected coco: annotations/instances_train*.json",
    ),
    "truncated annotations": (["train", "broken"], "not readable as JSON"),
    "dataset missing": (["train"], "data"),
    "unknown preset": (["train", "shapes", "--model", "detr-r5O"], "detr-r50"),
    "unknown model setting": (["train", "shapes", "--model", "detr-tiny", "--num-querys", "5"], "--num-queries"),
    "num_classes is not a setting": (["train", "shapes", "--num-classes", "9"], "Unknown option: --num-classes"),
    "epochs and steps": (
        ["train", "shapes", "--epochs", "2", "--steps", "3"],
        "--epochs and --steps exclude each other",
    ),
    "image size too small": (
        ["doctor", "shapes", "--image-size", "3"],
        "--image-size 3: expected 32 to 4096 pixels",
    ),
    "negative number of workers": (
        ["doctor", "shapes", "--workers", "-1"],
        "--workers -1 is too small; expected at least 0",
    ),
    "model setting out of range": (
        ["train", "shapes", "--model", "detr-tiny", "--num-queries", "0"],
        "--num-queries: found 0",
    ),
    "misspelt option": (["train", "shapes", "--epoch", "3"], "--epochs"),
    "option out of range": (["train", "shapes", "--epochs", "0"], "--epochs: found 0"),
    "model setting is a date": (["train", "shapes", "--num-queries", "2024-13-45"], "--num-queries"),
    "negative seed": (["demo", "--seed", "-1"], "--seed"),
    "batch size of zero": (
        ["evaluate", "model.safetensors", "shapes", "--batch-size", "0"],
        "--batch-size 0 is too small",
    ),
    "results output is a folder": (["evaluate", "model.safetensors", "shapes", "-o", "folder.json"], "is a folder"),
    "report output is a file": (["evaluate", "model.safetensors", "shapes", "-o", "no_image.jpg"], "is a file"),
    "evaluate without data": (
        ["evaluate", "model.safetensors"],
        "DATA is missing; usage: detrkit evaluate SOURCE DATA",
    ),
    "by-layer without annotations": (
        ["evaluate", "model.safetensors", "shapes/val2017", "--by-layer"],
        "--by-layer needs annotations",
    ),
    "by-layer of results": (["evaluate", "r.json", "shapes", "--by-layer"], "--by-layer needs a model"),
    "results do not exist": (["evaluate", "nowhere.json", "shapes"], "nowhere.json: no such file"),
    "results output is not a folder": (["evaluate", "r.json", "shapes", "-o", "s.json"], "pass a folder"),
    "auto threshold without stored thresholds": (
        ["predict", "model.safetensors", "no_image.jpg", "--threshold", "auto"],
        "--threshold auto needs thresholds stored in the model",
    ),
    "store thresholds in another format": (
        ["evaluate", "resnet.pth", "shapes", "--store-thresholds"],
        "is not a detrkit checkpoint",
    ),
    "pictures would overwrite images": (
        ["predict", "model.safetensors", "shapes/val2017", "-o", "shapes/val2017"],
        "would be overwritten",
    ),
    "unknown class": (
        ["predict", "model.safetensors", "shapes/val2017", "--classes", "sqare"],
        "did you mean 'square'",
    ),
    "partition out of range": (
        ["predict", "model.safetensors", "shapes/val2017", "--partition", "2/2"],
        "--partition 2/2 is not INDEX/COUNT",
    ),
    "unknown output kind": (
        ["predict", "model.safetensors", "shapes/val2017", "--write", "jsnl"],
        "did you mean 'jsonl'",
    ),
    "tile too small": (["predict", "model.safetensors", "shapes/val2017", "--tile", "2"], "--tile 2 is too small"),
    "tile overlap too large": (
        ["predict", "model.safetensors", "shapes/val2017", "--tile", "64", "--overlap", "0.9"],
        "--overlap 0.9 is not",
    ),
    "max-frames of zero": (
        ["predict", "model.safetensors", "shapes/val2017", "--max-frames", "0"],
        "--max-frames: found 0",
    ),
    "pattern without matches": (["predict", "model.safetensors", "shapes/*.tiff"], "matches this pattern"),
    "JSON of a camera": (
        ["predict", "model.safetensors", "camera:0", "--write", "json"],
        "--write json is for images",
    ),
    "negative number of reader threads": (
        ["predict", "model.safetensors", "shapes/val2017", "--workers", "-1"],
        "--workers: found -1",
    ),
    "misspelt weights path": (["predict", "wieghts/detr.pth", "no_image.jpg"], "wieghts/detr.pth: no such file"),
    "mask head of a narrow model": (
        ["train", "shapes", "--model", "detr-tiny", "--mask-head", "--hidden-dim", "96"],
        "--mask-head needs --hidden-dim",
    ),
    "misspelt setting in a file": (["train", "shapes", "--config", "misspelt.yaml"], "epochs"),
    "truncated settings file": (["train", "shapes", "--config", "cut.yaml"], "not readable as YAML"),
    "settings file with a Python tag": (["train", "shapes", "--config", "evil.yaml"], "not readable as YAML"),
    "settings file does not exist": (
        ["train", "shapes", "--config", "nowhere.yaml"],
        "nowhere.yaml: the file does not exist",
    ),
    "weights of another model": (
        ["train", "shapes", "--model", "detr-tiny", "--hidden-dim", "64", "--weights", "nine.safetensors"],
        "--weights nine.safetensors: only",
    ),
    "a Slurm job without Slurm": (
        ["train", "shapes", "--slurm", "nodes=2"],
        "--slurm: found no sbatch on this machine",
    ),
    "resume without a run": (["train", "--resume", "empty"], "empty: there is no config.yaml"),
    "resume with another model": (["train", "--resume", "empty", "--model", "detr-tiny"], "leave out --model"),
    "freeze an unknown part": (["train", "shapes", "--model", "detr-tiny", "--freeze", "nose"], "--freeze: found nose"),
    "unknown timm backbone": (["train", "shapes", "--backbone", "timm:resnet5"], "is not a model of timm"),
    "evaluate on other classes": (["evaluate", "nine.safetensors", "shapes"], "thing 0"),
    "export format missing": (["export", "model.safetensors"], "--format"),
    "unknown export format": (["export", "model.safetensors", "--format", "tflite"], "tflite"),
    "int8 ONNX": (
        ["export", "model.safetensors", "--format", "onnx", "--precision", "int8", "--data", "shapes"],
        "use --format openvino",
    ),
    "int8 without images": (
        ["export", "model.safetensors", "--format", "openvino", "--precision", "int8"],
        "pass your dataset or images as --data",
    ),
    "export would overwrite a folder": (
        ["export", "nine.safetensors", "--format", "openvino", "-o", "shapes"],
        "exists already",
    ),
    "export with the wrong suffix": (["export", "model.safetensors", "--format", "torch", "-o", "a.onnx"], ".pt2"),
    "export folder with a file suffix": (
        ["export", "model.safetensors", "--format", "openvino", "-o", "a.onnx"],
        "expected a folder",
    ),
    "export image size of zero": (
        ["export", "model.safetensors", "--format", "onnx", "--image-size", "0"],
        "--image-size 0 is not in",
    ),
    "export compared on no images": (
        ["export", "model.safetensors", "--format", "onnx", "--max-images", "0"],
        "--max-images 0",
    ),
    "export data does not exist": (
        ["export", "model.safetensors", "--format", "onnx", "--data", "nowhere"],
        "nowhere: no such file or folder",
    ),
    "export compared on other classes": (
        ["export", "nine.safetensors", "--format", "onnx", "--data", "shapes"],
        "thing 0",
    ),
    "export source does not exist": (["export", "nowhere.pth", "--format", "onnx"], "nowhere.pth: no such file"),
    "malformed exported model": (["predict", "broken.onnx", "no_image.jpg"], "broken.onnx: not readable as ONNX"),
    "unknown checkpoint format": (["convert", "model.safetensors", "a.pth", "--to", "onnxx"], "onnxx"),
    "convert with the wrong suffix": (["convert", "model.safetensors", "a.bin", "--to", "official"], ".pth"),
    "convert would overwrite a file": (
        ["convert", "model.safetensors", "nine.safetensors", "--to", "detrkit"],
        "exists already; choose another OUTPUT",
    ),
    "explain without an image": (["explain", "model.safetensors"], "IMAGE"),
    "explain image does not exist": (["explain", "model.safetensors", "nowhere.jpg"], "nowhere.jpg"),
    "explain output is a folder": (["explain", "model.safetensors", "no_image.jpg", "-o", "empty"], "a folder"),
    "explain output is not a page": (["explain", "model.safetensors", "no_image.jpg", "-o", "a.txt"], "--output a.txt"),
    "explain would overwrite the image": (
        ["explain", "model.safetensors", _IMAGE, "--figure", "decoder", "-o", _IMAGE],
        "is the image and would be overwritten",
    ),
    "explain threshold in percent": (
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
    "describe output is not a picture": (["describe", "detr-tiny", "-o", "a.txt"], "--output a.txt"),
    "describe size is not a size": (["describe", "detr-tiny", "--size", "big"], "big"),
    "describe an unknown model": (["describe", "detr-r51"], "detr-r50"),
    "describe data does not exist": (["describe", "data", "nowhere", "-o", "x.png"], "nowhere: no such file or folder"),
    "describe no samples": (["describe", "data", "shapes", "--count", "0"], "--count 0: expected 1"),
    "describe an epoch after the last": (
        ["describe", "data", "shapes", "--epochs", "3", "--epoch", "4"],
        "expected 1 to 3",
    ),
    "describe output is a folder": (["describe", "data", "shapes", "-o", "empty"], "is not the name of a PNG file"),
    "shard dataset does not exist": (["shard", "nowhere", "packed"], "nowhere: no such file or folder"),
    "shard would overwrite a folder": (["shard", "shapes", "shapes"], "is not overwritten"),
    "shards of no images": (
        ["shard", "shapes", "packed", "--images-per-shard", "0"],
        "--images-per-shard 0 is too small; expected at least 1",
    ),
    "photometric distortion of many channels": (
        ["train", "shapes", "--model", "detr-tiny", "--in-channels", "5", "--photometric", "1"],
        "these have 5 channels",
    ),
    "images with fewer channels": (
        ["train", "shapes", "--model", "detr-tiny", "--in-channels", "5", "--workers", "0", "-o", "five"],
        "does not have 5 channels",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_user_error_is_one_sentence_and_writes_nothing(
    case: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setattr("detrkit.training.slurm.shutil.which", lambda _name: None)  # as on a login node
    before = {path: path.stat().st_mtime_ns for path in place.rglob("*")}
    arguments, message = ERRORS[case]
    code, out, err = run(arguments, capsys)
    assert code == 2
    assert message in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert "Traceback" not in out + err
    assert {path: path.stat().st_mtime_ns for path in place.rglob("*")} == before, "something was written"


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_help_fits_80_columns_and_has_an_example(
    command: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as exit_info:
        main([*([command] if command else []), "--help"])
    out = capsys.readouterr().out
    assert exit_info.value.code in (0, None)
    assert max(len(line) for line in out.splitlines()) <= 80
    if command is None:
        assert all(each in out for each in COMMANDS)
    elif command != "demo":
        assert f"detrkit {command}" in " ".join(out.split())
        assert "Example" in out


def test_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out.strip() == detrkit.__version__


def test_help_of_train_does_not_import_torch() -> None:
    code = (
        "import sys, json, detrkit, detrkit.cli\n"
        "try: detrkit.cli.main(['train', '--help'])\n"
        "except SystemExit: pass\n"
        "print(json.dumps([name for name in ('torch', 'torchvision', 'matplotlib', 'PIL') if name in sys.modules]))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert json.loads(out.splitlines()[-1]) == []
