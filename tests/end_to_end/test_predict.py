"""`detrkit predict` from files to files: JSON Lines, partitions, kills, tiles, classes, videos."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from detrkit import Detector, build_model
from detrkit._internal.signals import StopSignal
from detrkit.checkpoints.native import Checkpoint, Preprocessing, save_checkpoint
from detrkit.cli import main
from detrkit.data import video as videos
from detrkit.data.synthetic import SHAPES, SyntheticShapes, SyntheticStyle
from detrkit.data.video import VideoWriter, open_video
from detrkit.errors import DatasetError
from detrkit.inference.writers.jsonl import read_jsonl

pytestmark = pytest.mark.slow

COUNT = 24
# each start takes seconds, so one kill by default; DETRKIT_KILLS=10 repeats it
KILLS = int(os.environ.get("DETRKIT_KILLS", "1"))


def run(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    return int(left.value.code or 0)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with random weights, and synthetic images."""
    root = tmp_path_factory.mktemp("place")
    torch.manual_seed(0)
    model = build_model("detr-tiny", num_classes=len(SHAPES), num_queries=8, encoder_layers=1, decoder_layers=1)
    checkpoint = Checkpoint(model.state_dict(), model.config, SHAPES, Preprocessing(image_size=64))
    save_checkpoint(root / "model.safetensors", checkpoint)
    (root / "images" / "more").mkdir(parents=True)
    for number, sample in enumerate(SyntheticShapes(COUNT, 0, SyntheticStyle(size=64))):
        folder = root / "images" / ("more" if number % 4 == 0 else "")
        image = Image.fromarray(sample.image.permute(1, 2, 0).numpy())
        image.crop((0, 0, 64 - number % 3, 64)).save(folder / f"{number}.png")
    return root


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, place: Path) -> None:
    monkeypatch.chdir(place)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_PROCID", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)


def predict(output: Path, *arguments: str, threshold: str = "0") -> int:
    return run(["predict", "model.safetensors", *arguments, "--threshold", threshold, "--output", str(output)])


def test_lines_and_table_hold_the_detections(place: Path, tmp_path: Path) -> None:
    assert predict(tmp_path, "images", "--recursive", "--write", "jsonl,parquet", "--batch-size", "3") == 0
    lines = list(read_jsonl(tmp_path / "predictions.jsonl"))
    assert len(lines) == COUNT
    detector = Detector.load("model.safetensors")
    for line in lines[::5]:
        detections = detector.predict(line["image"], 0)
        assert detections.image is not None
        assert (line["width"], line["height"]) == detections.image.size
        for one, other in zip(line["objects"], detections.to_list(), strict=True):
            assert one["score"] == pytest.approx(other["score"], abs=1e-4)
            assert one["box"] == pytest.approx(other["box"], abs=0.01)
    table = pyarrow.parquet.read_table(tmp_path / "predictions.parquet").to_pylist()
    assert [row["image"] for row in table] == [line["image"] for line in lines]
    assert sum(len(row["objects"]) for row in table) == 8 * COUNT


def test_second_call_predicts_new_images_only(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output, some = tmp_path / "out", ["images/1.png", "images/2.png"]
    assert predict(output, *some, "--write", "jsonl") == 0
    first = (output / "predictions.jsonl").read_bytes()
    assert predict(output, *some, "images/3.png", "--write", "jsonl") == 0
    assert "resumed: 2 images already done" in capsys.readouterr().out
    assert (output / "predictions.jsonl").read_bytes().startswith(first)
    assert [line["image"] for line in read_jsonl(output / "predictions.jsonl")] == [*some, "images/3.png"]
    # lines of another threshold or other weights are not mixed
    assert predict(output, *some, "--write", "jsonl", threshold="0.3") == 2
    assert "was written with threshold 0.0, not 0.3" in capsys.readouterr().err
    arguments = [*some, "--threshold", "0", "--write", "jsonl", "--output", str(output)]
    torch.manual_seed(1)
    model = build_model("detr-tiny", num_classes=len(SHAPES))
    other = Checkpoint(model.state_dict(), model.config, SHAPES, Preprocessing(image_size=64))
    save_checkpoint(tmp_path / "other.safetensors", other)
    assert run(["predict", str(tmp_path / "other.safetensors"), *arguments]) == 2
    assert "was written with model sha256:" in capsys.readouterr().err


def test_partitions_write_their_own_files_and_each_image_once(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert predict(tmp_path, "images", "--recursive", "--write", "jsonl", "--partition", "0/3") == 0
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert predict(tmp_path, "images", "--recursive", "--write", "jsonl") == 0
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.setenv("SLURM_PROCID", "2")
    monkeypatch.setenv("SLURM_NTASKS", "3")
    assert predict(tmp_path, "images", "--recursive", "--write", "jsonl") == 0
    files = sorted(tmp_path.glob("*.jsonl"))
    assert [file.name for file in files] == [f"predictions-{rank}-of-3.jsonl" for rank in range(3)]
    seen = Counter(line["image"] for file in files for line in read_jsonl(file))
    assert len(seen) == COUNT
    assert set(seen.values()) == {1}


def test_images_of_partitions_do_not_overwrite_each_other(place: Path, tmp_path: Path) -> None:
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        shutil.copy(place / "images" / "1.png", tmp_path / folder / "1.png")
    out = tmp_path / "out"
    for rank in ("0/2", "1/2"):
        assert predict(out, str(tmp_path / "x" / "1.png"), str(tmp_path / "y" / "1.png"), "--partition", rank) == 0
    assert len(list(out.glob("*.png"))) == len(list(out.glob("*.json"))) == 2
    named = {json.loads(file.read_text())["image"] for file in out.glob("*.json")}
    assert len(named) == 2


def test_every_image_has_one_line_after_kills_at_random_moments(place: Path, tmp_path: Path) -> None:
    """SIGKILL between the first image and the last; then the same command again."""
    script = (
        "import pathlib, sys, time, torch; torch.set_num_threads(1)\n"
        "from detrkit.inference.writers import jsonl as lines\n"
        "original, most = lines.json.dumps, int(sys.argv.pop(1))\n"
        "written = pathlib.Path(sys.argv[-1], 'predictions.jsonl')\n"
        "def dumps(*a, **k):\n"
        "    time.sleep(0.05)\n"
        "    while written.exists() and written.read_bytes().count(b'\\n') >= most: time.sleep(1)\n"  # to be killed
        "    return original(*a, **k)\n"
        "lines.json.dumps = dumps\n"
        "from detrkit.cli import main; main(sys.argv[1:])"
    )
    arguments = ["predict", "model.safetensors", "images", "--recursive", "--threshold", "0", "--batch-size", "2"]
    command = [*arguments, "--write", "jsonl", "--output", str(tmp_path)]
    lines, chance = tmp_path / "predictions.jsonl", random.Random(0)
    for kill in range(KILLS):
        target = (kill + 1) * COUNT // (KILLS + 2)  # each call gets further than the previous one
        call = [sys.executable, "-c", script, str(target + 2), *command]
        with subprocess.Popen(call, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            while process.poll() is None and (not lines.exists() or lines.read_bytes().count(b"\n") < target):
                time.sleep(0.005)
            time.sleep(chance.random() * 0.06)
            process.send_signal(signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
    assert target <= sum(1 for _ in read_jsonl(lines)) < COUNT
    with lines.open("ab") as file:  # and a line that was cut short
        file.write(b'{"image": "images/1.p')
    call = [sys.executable, "-c", script, str(10**6), *command]
    assert subprocess.run(call, capture_output=True, check=False).returncode == 0
    seen = Counter(json.loads(line)["image"] for line in lines.read_text().splitlines())
    assert len(seen) == COUNT
    assert set(seen.values()) == {1}
    assert predict(tmp_path / "whole", "images", "--recursive", "--write", "jsonl") == 0
    whole = {line["image"]: line["objects"] for line in read_jsonl(tmp_path / "whole" / "predictions.jsonl")}
    for line in read_jsonl(lines):
        for one, other in zip(line["objects"], whole[line["image"]], strict=True):
            assert one["box"] == pytest.approx(other["box"], abs=0.01)


def test_ctrl_c_stops_after_the_current_image(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = Detector.predict_samples
    calls = 0

    def predict_samples(detector: Detector, *arguments: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return original(detector, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Detector, "predict_samples", predict_samples)
    assert predict(tmp_path, "images", "--write", "jsonl") == 130
    assert "stopped; the same command resumes" in capsys.readouterr().out
    monkeypatch.undo()
    monkeypatch.chdir(place)
    assert predict(tmp_path, "images", "--write", "jsonl") == 0
    assert sum(1 for _ in read_jsonl(tmp_path / "predictions.jsonl")) == 18


def test_unreadable_images_are_reported_and_recorded(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.png").write_text("not an image")
    given = ["images/1.png", str(tmp_path / "bad.png"), "images/2.png", "--write", "jsonl"]
    assert predict(tmp_path / "out", *given) == 2
    assert "1 of 3 inputs were not predicted" in capsys.readouterr().err
    lines = {line["image"]: line for line in read_jsonl(tmp_path / "out" / "predictions.jsonl")}
    assert len(lines) == 3
    assert "cannot be read as an image" in lines[str(tmp_path / "bad.png")]["error"]
    # the second call has nothing to do, and ends like the first
    assert predict(tmp_path / "out", *given) == 2
    said = capsys.readouterr()
    assert "1 image could not be read by an earlier call" in said.out
    assert "1 of 3 inputs were not predicted; " in said.err
    assert "bad.png: cannot be read as an image" in said.err
    # errors of images that are not inputs of this call do not count
    assert predict(tmp_path / "out", "images/1.png", "--write", "jsonl") == 0
    assert "could not be read" not in capsys.readouterr().out
    # repaired, and its line removed
    (tmp_path / "bad.png").write_bytes(Path("images/3.png").read_bytes())
    file = tmp_path / "out" / "predictions.jsonl"
    file.write_text("".join(line for line in file.read_text().splitlines(True) if '"error"' not in line))
    assert predict(tmp_path / "out", *given) == 0
    assert sum(1 for _ in read_jsonl(file)) == 3


def test_classes_are_selected_by_name(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert predict(tmp_path, "images", "--write", "jsonl") == 0
    all_names = [one["name"] for line in read_jsonl(tmp_path / "predictions.jsonl") for one in line["objects"]]
    target = Counter(all_names).most_common(1)[0][0]
    assert predict(tmp_path / "some", "images", "--write", "jsonl", "--classes", f"{target}, circle") == 0
    some = [one["name"] for line in read_jsonl(tmp_path / "some/predictions.jsonl") for one in line["objects"]]
    assert some == [name for name in all_names if name in (target, "circle")]
    assert predict(tmp_path / "none", "images", "--classes", "circel") == 2
    assert "did you mean 'circle'" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_large_image_is_predicted_in_tiles(place: Path, tmp_path: Path) -> None:
    sheet = Image.new("RGB", (300, 200))
    for number in range(6):
        with Image.open(f"images/{number}.png" if number % 4 else f"images/more/{number}.png") as image:
            sheet.paste(image, (number % 3 * 100, number // 3 * 100))
    sheet.save(tmp_path / "large.png")
    given = [str(tmp_path / "large.png"), "--tile", "128", "--overlap", "0.25", "--batch-size", "4"]
    assert predict(tmp_path / "out", *given) == 0
    objects = json.loads((tmp_path / "out" / "large.json").read_text())["objects"]
    assert objects
    assert [one["score"] for one in objects] == sorted((one["score"] for one in objects), reverse=True)
    with Image.open(tmp_path / "out" / "large.png") as image:
        assert image.size == (300, 200)


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    with VideoWriter(path, Fraction(5)) as writer:
        for number, sample in enumerate(SyntheticShapes(7, 0, SyntheticStyle(size=64))):
            writer.add(Image.fromarray(sample.image.permute(1, 2, 0).numpy()), number / 5)
    return path


def test_video_gives_an_annotated_video_and_lines(
    place: Path, tmp_path: Path, film: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict(tmp_path, str(film), "images/1.png", "--batch-size", "2") == 0
    assert "film.mp4: 7 frames, 56 objects" in capsys.readouterr().out
    assert sorted(file.name for file in tmp_path.iterdir()) == ["1.json", "1.png", "film.jsonl", "film.mp4"]
    lines = list(read_jsonl(tmp_path / "film.jsonl"))
    assert [line["frame"] for line in lines] == list(range(7))
    assert [line["seconds"] for line in lines] == pytest.approx([number / 5 for number in range(7)])
    assert {line["image"] for line in lines} == {str(film)}
    with open_video(film) as source:
        pixels = [frame.pixels for frame in source]
    detections = Detector.load("model.safetensors").predict(pixels[4], 0)
    assert lines[4]["objects"][0]["box"] == pytest.approx(detections.to_list()[0]["box"], abs=0.01)
    with open_video(tmp_path / "film.mp4") as drawn:
        frames = list(drawn)
    assert [frame.seconds for frame in frames] == pytest.approx([number / 5 for number in range(7)])
    assert float((frames[4].pixels.float() - pixels[4].float()).abs().mean()) > 5, "boxes are drawn"


def test_max_frames_and_parquet_output_of_a_video(place: Path, tmp_path: Path, film: Path) -> None:
    assert predict(tmp_path, str(film), "--max-frames", "3", "--write", "parquet") == 0
    assert sorted(file.name for file in tmp_path.iterdir()) == ["film.jsonl", "film.parquet"]
    assert pyarrow.parquet.read_table(tmp_path / "film.parquet")["frame"].to_pylist() == [0, 1, 2]


def test_damaged_video_keeps_other_videos_and_earlier_results(
    place: Path, tmp_path: Path, film: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(film.read_bytes()[:500])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "bad.jsonl").write_text('{"image": "earlier"}')
    assert predict(tmp_path / "out", str(bad), str(film)) == 2
    error = capsys.readouterr().err
    assert "bad.mp4: cannot be opened" in error
    assert "Traceback" not in error
    assert (tmp_path / "out" / "bad.jsonl").read_text() == '{"image": "earlier"}'
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["bad.jsonl", "film.jsonl", "film.mp4"]


def test_camera_stops_on_a_signal_and_its_video_plays(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(videos, "camera_address", lambda name, system: ("testsrc=size=64x48:rate=10", "lavfi"))
    original = VideoWriter.add

    def add(writer: VideoWriter, image: Image.Image, seconds: float, *more: Any) -> None:
        original(writer, image, seconds, *more)
        if seconds > 0.55:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(VideoWriter, "add", add)
    assert predict(tmp_path, "camera:0") == 128 + signal.SIGTERM
    assert "camera:0: 7 frames" in capsys.readouterr().out
    with open_video(tmp_path / "camera-0.mp4") as drawn:
        assert sum(1 for _ in drawn) == 7
    assert sum(1 for _ in read_jsonl(tmp_path / "camera-0.jsonl")) == 7


def test_stop_signal_before_the_first_image_leaves_a_usable_file(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    enter = StopSignal.__enter__

    def stopped(stop: StopSignal) -> StopSignal:
        enter(stop).received = signal.SIGINT
        return stop

    monkeypatch.setattr(StopSignal, "__enter__", stopped)
    assert predict(tmp_path, "images", "--write", "jsonl") == 130
    monkeypatch.undo()
    monkeypatch.chdir(place)
    assert predict(tmp_path, "images", "--write", "jsonl") == 0
    assert sum(1 for _ in read_jsonl(tmp_path / "predictions.jsonl")) == 18


def test_annotations_of_the_user_are_not_overwritten(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = tmp_path / "1.bmp"
    Image.open(place / "images" / "1.png").save(image)
    (tmp_path / "1.json").write_text('{"version": "5.0.1", "shapes": []}')
    assert predict(tmp_path, str(image), "--write", "json") == 2
    assert "was not written by detrkit" in capsys.readouterr().err
    assert json.loads((tmp_path / "1.json").read_text())["shapes"] == []
    (tmp_path / "1.json").unlink()
    assert [predict(tmp_path, str(image), "--write", "json") for _ in range(2)] == [0, 0], (
        "its own outputs are replaced"
    )
    assert "written to" in capsys.readouterr().out
    assert predict(tmp_path, str(image), "--write", ",") == 2
    assert "--write , names no output" in capsys.readouterr().err


def test_images_of_the_user_are_not_overwritten(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = tmp_path / "cat.jpg"
    Image.new("RGB", (64, 64)).save(image)
    Image.new("L", (64, 64)).save(tmp_path / "cat.png")  # a mask, say
    before = (tmp_path / "cat.png").read_bytes()
    arguments = ["predict", "model.safetensors", str(image), "--output", str(tmp_path), "--threshold", "0"]
    assert run(arguments) == 2
    assert "cat.png: was not written by detrkit and would be overwritten" in " ".join(capsys.readouterr().err.split())
    assert (tmp_path / "cat.png").read_bytes() == before
    assert run([*arguments, "--write", "json"]) == 0  # nothing is overwritten
    (tmp_path / "cat.png").unlink()
    assert run(arguments) == run(arguments) == 0  # own outputs are replaced


def test_videos_and_lines_of_the_user_are_not_overwritten(
    place: Path, film: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with av.open(str(tmp_path / "film.mp4"), "w") as container:  # of another program
        stream = container.add_stream("mpeg4", rate=8)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        container.mux(stream.encode(av.VideoFrame.from_image(Image.new("RGB", (64, 64)))))
        container.mux(stream.encode())
    before = (tmp_path / "film.mp4").read_bytes()
    assert predict(tmp_path, str(film)) == 2
    assert "film.mp4: was not written by detrkit" in " ".join(capsys.readouterr().err.split())
    assert (tmp_path / "film.mp4").read_bytes() == before
    (tmp_path / "film.mp4").unlink()
    (tmp_path / "film.jsonl").write_text('{"time": 0}\n')
    assert predict(tmp_path, str(film)) == 2
    assert "film.jsonl: was not written by detrkit" in " ".join(capsys.readouterr().err.split())
    (tmp_path / "film.jsonl").unlink()
    assert [predict(tmp_path, str(film)) for _ in range(2)] == [0, 0]  # own outputs are replaced


def test_pattern_skips_the_output_folder(place: Path, tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        Image.new("RGB", (64, 64)).save(tmp_path / name)
    output = tmp_path / "output"
    for _ in range(2):
        assert run(["predict", "model.safetensors", f"{tmp_path}/**/*.png", "--output", str(output)]) == 0
    assert sorted(path.name for path in output.glob("*.png")) == ["a.png", "b.png"]


def test_long_names_are_written(place: Path, tmp_path: Path) -> None:
    image = tmp_path / f"{'長' * 80}.jpg"  # 244 bytes
    Image.new("RGB", (64, 64)).save(image)
    assert run(["predict", "model.safetensors", str(image), "--output", str(tmp_path / "output")]) == 0
    assert (tmp_path / "output" / f"{image.stem}.png").is_file()


def test_exported_files_are_predicted_on_the_cpu(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    devices = []

    def load(_source: str, device: torch.device, **_: object) -> Detector:
        devices.append(device.type)
        raise DatasetError("enough")

    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr(Detector, "load", load)
    (tmp_path / "model.onnx").touch()
    assert run(["predict", str(tmp_path / "model.onnx"), "images/1.png", "--output", str(tmp_path / "output")]) == 2
    assert devices == ["cpu"]


def test_undecodable_file_name_is_predicted(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = tmp_path / os.fsdecode(b"caf\xe9.png")
    odd.write_bytes((place / "images" / "1.png").read_bytes())
    assert predict(tmp_path / "out", str(tmp_path)) == 0
    assert "written to" in capsys.readouterr().out
    content = json.loads((tmp_path / "out" / f"{odd.stem}.json").read_text())
    assert os.fsencode(content["image"]) == os.fsencode(odd)
