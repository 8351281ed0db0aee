"""Commands from files to files: train, evaluate, predict, describe and convert."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import detrkit
from detrkit import Detector
from detrkit._internal.files import file_lock
from detrkit.checkpoints.conversion.convert import convert
from detrkit.checkpoints.load import load_checkpoint
from detrkit.cli import main
from detrkit.errors import ConfigError
from detrkit.training.loggers.jsonl import read_metrics
from detrkit.training.run_folder import refuse_dataset_folder
from tests.datasets import write_coco, write_whole_photos

pytestmark = pytest.mark.slow

SHORT = [
    *("--epochs", "1", "--batch-size", "2", "--workers", "0", "--image-size", "64", "--log-every", "1"),
    *("--device", "cpu"),  # where a run is reproducible bit for bit
]


def run(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as exit_info:
        main(arguments)
    return int(exit_info.value.code or 0)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset folder `shapes`, and a run folder `run` trained on it."""
    root = tmp_path_factory.mktemp("place")
    write_coco(root / "shapes")
    with pytest.raises(SystemExit) as exit_info:
        main(["train", str(root / "shapes"), "--model", "detr-tiny", "--output", str(root / "run"), *SHORT])
    assert not exit_info.value.code
    return root


def test_run_folder_contents(place: Path) -> None:
    folder = place / "run"
    for name in ("config.yaml", "categories.json", "metrics.jsonl", "report.html", "last", "best", "tensorboard"):
        assert (folder / name).exists(), name
    assert [entry["kind"] for entry in read_metrics(folder)] == ["train", "train", "evaluation"]
    assert len(list((folder / "predictions").glob("*.png"))) == 3
    assert json.loads((folder / "categories.json").read_text())[0] == {"id": 1, "name": "circle"}
    page = (folder / "report.html").read_text()
    assert "http" not in page.replace("http-equiv", "")
    assert "circle" in page
    checkpoint = load_checkpoint(folder)
    assert checkpoint.categories.names == ("circle", "square", "triangle")
    assert checkpoint.preprocessing.image_size == 64


def test_run_folder_is_not_overwritten(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (place / "run" / "metrics.jsonl").read_bytes()
    assert run(["train", str(place / "shapes"), "--model", "detr-tiny", "--output", str(place / "run"), *SHORT]) == 2
    assert "holds a run already" in capsys.readouterr().err
    assert (place / "run" / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("inside", ["", "train2017", "train2017/deep/run"])
def test_output_inside_the_dataset_is_rejected(inside: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = place / "shapes"
    before = sorted(folder.rglob("*"))
    assert run(["train", str(folder), "--model", "detr-tiny", "--output", str(folder / inside), *SHORT]) == 2
    assert "lies inside the dataset" in " ".join(capsys.readouterr().err.split())
    assert sorted(folder.rglob("*")) == before


def test_output_next_to_the_image_folders_is_accepted(tmp_path: Path) -> None:
    folder = write_coco(tmp_path / "shapes")
    refuse_dataset_folder(folder / "runs" / "first", str(folder))
    refuse_dataset_folder(tmp_path, str(folder))
    (folder / "data.yaml").touch()
    with pytest.raises(ConfigError, match="lies inside the dataset"):
        refuse_dataset_folder(folder, str(folder / "data.yaml"))


def test_run_folder_is_locked_while_training(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "run"
    arguments = ["train", str(place / "shapes"), "--model", "detr-tiny", "--output", str(output), *SHORT]
    output.mkdir()
    with file_lock(output):
        assert run(arguments) == 2
        said = " ".join(capsys.readouterr().err.split())
        assert f"{output}: another process writes to it; wait until it ends, or choose another --output" in said
        assert [path.name for path in output.iterdir()] == [".lock"]
    # a killed process releases the lock
    dies = (
        "import os, pathlib, sys, detrkit._internal.files as f; "
        "f.file_lock(pathlib.Path(sys.argv[1])).__enter__(); os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", dies, output], check=False).returncode == 9
    assert run(arguments) == 0


def test_run_is_reproducible_from_its_config(place: Path, tmp_path: Path) -> None:
    assert run(["train", "--config", str(place / "run" / "config.yaml"), "--output", str(tmp_path / "again")]) == 0
    first, again = load_checkpoint(place / "run").state, load_checkpoint(tmp_path / "again").state
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_evaluate_repeats_the_ap_of_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, weights = write_whole_photos(tmp_path)
    slow = ["--lr", "1e-6", "--backbone-lr", "1e-6", "--weights", str(weights)]
    assert run(["train", str(folder), *SHORT, *slow, "--output", str(tmp_path / "run")]) == 0
    results = tmp_path / "results.json"
    common = ["evaluate", str(tmp_path / "run"), str(folder), "--workers", "0", "--device", "cpu"]
    assert run([*common, "--output", str(results), "--batch-size", "3"]) == 0
    assert "AP50" in capsys.readouterr().out
    entries = json.loads(results.read_text())
    assert {entry["category_id"] for entry in entries} <= {1, 2, 3}
    scored = [entry for entry in read_metrics(tmp_path / "run") if entry["kind"] == "evaluation"][-1]
    result = detrkit.evaluate(tmp_path / "run", folder, workers=0, device="cpu")
    assert result.ap > 0.01
    assert result.ap == pytest.approx(scored["ap"], abs=1e-6)
    assert result.metrics.values["ar100"] == pytest.approx(scored["ar100"], abs=1e-6)


def test_predict_writes_images_and_json(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = place / "shapes" / "val2017"
    arguments = ["predict", str(place / "run"), str(photos), "--threshold", "0", "--output", str(tmp_path / "out")]
    assert run(arguments) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        f"{i}.{kind}" for i in (1, 2, 3) for kind in ("json", "png")
    )
    content = json.loads((tmp_path / "out" / "2.json").read_text())
    objects = content["objects"] if isinstance(content, dict) else content
    found = Detector.load(place / "run").predict(photos / "2.png", threshold=0)
    assert len(objects) == len(found) == 25
    assert objects[0]["name"] == found.class_names[0]
    assert objects[0]["score"] == pytest.approx(float(found.scores[0]), abs=1e-4)
    with Image.open(tmp_path / "out" / "2.png") as picture:
        assert picture.size == (64, 64)


def test_unreadable_image_does_not_stop_prediction(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = place / "shapes" / "val2017" / "1.png"
    (tmp_path / "bad.png").write_text("no image")
    out = tmp_path / "out"
    assert run(["predict", str(place / "run"), str(tmp_path / "bad.png"), str(good), "--output", str(out)]) == 2
    assert "bad.png" in capsys.readouterr().err
    assert sorted(path.name for path in out.iterdir()) == ["1.json", "1.png"]


def test_describe_reports_the_published_number_of_parameters(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["describe", "detr-r50", "--size", "480x640"]) == 0
    out = capsys.readouterr().out
    assert "41.5" in out or "41,5" in out  # million parameters, 91 classes (paper, table 1: 41M)
    assert max(len(line) for line in out.splitlines()) <= 80
    assert run(["describe", str(place / "run"), "--size", "64x64"]) == 0
    assert "(1, 128, 8, 8)" in capsys.readouterr().out  # stride 8


@pytest.mark.parametrize("format", ["detrkit", "official", "huggingface", "huggingface-no-timm"])
def test_conversion_round_trip_keeps_the_weights(
    format: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from detrkit import build_model, state_dict_as_official

    if format.startswith("huggingface"):
        pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = build_model("detr-r50", num_classes=3, num_queries=5, encoder_layers=1, decoder_layers=1)
    torch.save({"model": state_dict_as_official(model)}, tmp_path / "a.pth")
    name = {"detrkit": "b.safetensors", "official": "b.pth"}.get(format, "b")
    assert run(["convert", str(tmp_path / "a.pth"), str(tmp_path / name), "--to", format]) == 0
    assert "largest difference" in capsys.readouterr().out
    assert convert(str(tmp_path / name), tmp_path / "c.safetensors", "detrkit").max_difference == 0
    back = load_checkpoint(tmp_path / "c.safetensors").state
    assert all(torch.equal(tensor, back[key]) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize("workers", ["0", "1"])
def test_truncated_image_is_reported_in_one_sentence_from_any_process(
    workers: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_coco(tmp_path / "shapes")
    photo = data / "train2017" / "2.png"
    photo.write_bytes(photo.read_bytes()[:300])
    short = [*SHORT, "--output", str(tmp_path / "run")]
    short[short.index("--workers") + 1] = workers
    arguments = ["train", str(data), "--model", "detr-tiny", *short]
    assert run(arguments) == 2
    *others, error, advice = capsys.readouterr().err.splitlines()
    assert error.startswith(f"error: {photo}: cannot be read as an image")
    assert advice == f"check the dataset with: detrkit doctor {data}"
    assert not any("Traceback" in line for line in others)
    # nothing was trained, so the run folder can be used again with repaired data
    write_coco(tmp_path / "good")
    (tmp_path / "good" / "train2017" / "2.png").replace(photo)
    assert run(arguments) == 0


def test_a_few_unreadable_images_are_skipped_and_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_coco(tmp_path / "shapes", num_train=6)
    bad = [data / "train2017" / "4.png", data / "val2017" / "2.png"]
    for photo in bad:
        photo.write_bytes(b"no photo")
    arguments = ["train", str(data), "--model", "detr-tiny", *SHORT, "--output", str(tmp_path / "run")]
    assert run([*arguments, "--max-unreadable", "0.4"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    for photo in bad:
        assert f"left out: {photo}: cannot be read" in out
    assert out.count("left out") == 2


def test_ctrl_c_exits_with_130_and_a_usable_run_folder(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from detrkit.training.trainer import Trainer

    original = Trainer.train_epoch

    def stop_in_third(trainer: Trainer) -> bool:
        if trainer.progress.epoch == 3:
            trainer.state.stop.received = signal.SIGINT
        return original(trainer)

    monkeypatch.setattr(Trainer, "train_epoch", stop_in_third)
    output = tmp_path / "run"
    longer = ["--epochs", "5", *SHORT[2:], "--output", str(output)]
    assert run(["train", str(place / "shapes"), "--model", "detr-tiny", *longer]) == 130
    assert "stopped after 2 complete epochs" in capsys.readouterr().out
    assert (output / "last" / "model.safetensors").exists()
    assert (output / "report.html").exists()
    assert len(Detector.load(output).predict(place / "shapes" / "val2017" / "1.png", threshold=0)) == 25
    monkeypatch.undo()
    assert run(["train", "--resume", str(output)]) == 0
    epochs = [entry["epoch"] for entry in read_metrics(output) if entry["kind"] == "evaluation"]
    assert epochs == [1, 2, 3, 4, 5]
    capsys.readouterr()
    assert run(["train", "--resume", str(output)]) == 2
    assert "the run has ended, after 5 epochs" in capsys.readouterr().err
    assert run(["train", str(place / "shapes"), "--resume", str(output)]) == 2


def test_training_from_scratch_trains_the_whole_backbone(place: Path) -> None:
    from detrkit.config.run import RunConfig
    from detrkit.config.training import TrainingConfig
    from detrkit.training.build import build_model_for
    from detrkit.training.planner import plan_model as with_defaults

    config = RunConfig(data="x", model="detr-r18", training=TrainingConfig(lr=3e-4))
    scratch = with_defaults(config)
    assert scratch.training.optimizer.backbone_lr == 3e-4
    model, _ = build_model_for(scratch, load_checkpoint(place / "run").categories)
    assert model.config.backbone_normalization == "batch"
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert with_defaults(config.model_copy(update={"weights": "imagenet"})).training.optimizer.backbone_lr == 1e-5
    given = config.model_copy(update={"training": TrainingConfig(backbone_lr=1e-4)})
    assert with_defaults(given).training.optimizer.backbone_lr == 1e-4
    tiny = RunConfig(data="x", model="detr-tiny", training=TrainingConfig(batch_size=3))
    assert with_defaults(tiny).training.batch_size == 3
    assert with_defaults(tiny).training.image_size == 256


def test_grey_scale_shards_with_all_augmentations(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards, folder = tmp_path / "shards", tmp_path / "grey"
    assert run(["shard", str(place / "shapes"), str(shards), "--images-per-shard", "2"]) == 0
    assert "4 train, 3 val" in capsys.readouterr().out
    strong = ["--scale-jitter", "0.5", "--mosaic", "0.5", "--mixup", "0.5", "--photometric", "0.5"]
    sheet = tmp_path / "sheet.png"
    assert run(["describe", "data", str(shards), "--model", "detr-tiny", *SHORT, *strong, "-o", str(sheet)]) == 0
    printed = capsys.readouterr().out
    assert "circle" in printed
    assert "4 samples of epoch 1" in printed
    with Image.open(sheet) as picture:
        assert picture.size[0] == 640
    grey = ["--in-channels", "1", "--output", str(folder)]
    assert run(["train", str(shards), "--model", "detr-tiny", *SHORT, *strong, *grey]) == 0
    assert run(["evaluate", str(folder), str(shards), "-o", str(tmp_path / "scores")]) == 0
    photo = next((place / "shapes" / "val2017").glob("*.png"))
    assert run(["predict", str(folder), str(photo), "--output", str(tmp_path / "found")]) == 0
    with Image.open(next((tmp_path / "found").glob("*.png"))) as picture:
        assert picture.mode == "RGB"
    assert load_checkpoint(folder).config.in_channels == 1
    # weights of a grey-scale model can initialise an RGB model
    again = [*SHORT, "--weights", str(folder), "--output", str(tmp_path / "colour")]
    assert run(["train", str(place / "shapes"), "--model", "detr-tiny", *again]) == 0


def test_square_brackets_in_names_are_printed_literally(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """rich would interpret them as markup."""
    folder = write_coco(tmp_path / "a[/b]")
    for path in folder.glob("annotations/*.json"):
        document = json.loads(path.read_text())
        for category in document["categories"]:
            category["name"] += " [/] [bold"
        path.write_text(json.dumps(document))
    trained = tmp_path / "run[/x]"
    assert run(["doctor", str(folder), "--html", str(tmp_path / "page.html")]) == 0
    assert run(["describe", "data", str(folder), "--image-size", "64", "-o", str(tmp_path / "a.png")]) == 0
    assert run(["train", str(folder), "--model", "detr-tiny", "--output", str(trained), *SHORT]) == 0
    assert run(["shard", str(folder), str(tmp_path / "shards[/c]")]) == 0
    assert run(["evaluate", str(trained), str(folder), "-o", str(tmp_path / "scores")]) == 0
    photo = next((folder / "val2017").iterdir())
    assert run(["predict", str(trained), str(photo), "--threshold", "0", "--output", str(tmp_path / "out[/y]")]) == 0
    assert run(["convert", str(trained), str(tmp_path / "weights[/z].safetensors"), "--to", "detrkit"]) == 0
    assert "circle [/] [bold" in capsys.readouterr().out
