"""Prediction at scale as a user meets it: lines, shares, kills, tiles, classes, videos."""

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
from detrkit.inference.writers.jsonl import read_lines

COUNT = 24
# each start takes seconds, so that one fits into a test; DETRKIT_KILLS=10 tries harder
KILLS = int(os.environ.get("DETRKIT_KILLS", "1"))


def run(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    return int(left.value.code or 0)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of random weights, and drawn photos."""
    root = tmp_path_factory.mktemp("place")
    torch.manual_seed(0)
    model = build_model("detr-tiny", num_classes=len(SHAPES), num_queries=8, encoder_layers=1, decoder_layers=1)
    checkpoint = Checkpoint(model.state_dict(), model.config, SHAPES, Preprocessing(image_size=64))
    save_checkpoint(root / "model.safetensors", checkpoint)
    (root / "photos" / "more").mkdir(parents=True)
    for number, sample in enumerate(SyntheticShapes(COUNT, 0, SyntheticStyle(size=64))):
        folder = root / "photos" / ("more" if number % 4 == 0 else "")
        picture = Image.fromarray(sample.image.permute(1, 2, 0).numpy())
        picture.crop((0, 0, 64 - number % 3, 64)).save(folder / f"{number}.png")
    return root


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, place: Path) -> None:
    monkeypatch.chdir(place)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_PROCID", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)


def predict(output: Path, *arguments: str, threshold: str = "0") -> int:
    return run(["predict", "model.safetensors", *arguments, "--threshold", threshold, "--output", str(output)])


def test_lines_and_table_hold_what_predict_finds(place: Path, tmp_path: Path) -> None:
    assert predict(tmp_path, "photos", "--recursive", "--write", "jsonl,parquet", "--batch-size", "3") == 0
    lines = list(read_lines(tmp_path / "predictions.jsonl"))
    assert len(lines) == COUNT
    detector = Detector.load("model.safetensors")
    for line in lines[::5]:
        found = detector.predict(line["image"], 0)
        assert found.image is not None
        assert (line["width"], line["height"]) == found.image.size
        for one, other in zip(line["objects"], found.to_list(), strict=True):
            assert one["score"] == pytest.approx(other["score"], abs=1e-4)
            assert one["box"] == pytest.approx(other["box"], abs=0.01)
    table = pyarrow.parquet.read_table(tmp_path / "predictions.parquet").to_pylist()
    assert [row["image"] for row in table] == [line["image"] for line in lines]
    assert sum(len(row["objects"]) for row in table) == 8 * COUNT


def test_a_second_call_predicts_only_what_is_new(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, some = tmp_path / "out", ["photos/1.png", "photos/2.png"]
    assert predict(output, *some, "--write", "jsonl") == 0
    first = (output / "predictions.jsonl").read_bytes()
    assert predict(output, *some, "photos/3.png", "--write", "jsonl") == 0
    assert "2 of 3 photos done already" in capsys.readouterr().out
    assert (output / "predictions.jsonl").read_bytes().startswith(first)
    assert [line["image"] for line in read_lines(output / "predictions.jsonl")] == [*some, "photos/3.png"]
    # with another threshold, or other weights, the file would mean nothing
    assert predict(output, *some, "--write", "jsonl", threshold="0.3") == 2
    assert "was begun with threshold 0.0, found 0.3" in capsys.readouterr().err
    arguments = [*some, "--threshold", "0", "--write", "jsonl", "--output", str(output)]
    torch.manual_seed(1)
    model = build_model("detr-tiny", num_classes=len(SHAPES))
    other = Checkpoint(model.state_dict(), model.config, SHAPES, Preprocessing(image_size=64))
    save_checkpoint(tmp_path / "other.safetensors", other)
    assert run(["predict", str(tmp_path / "other.safetensors"), *arguments]) == 2
    assert "was begun with model sha256:" in capsys.readouterr().err


def test_shares_have_files_of_their_own_and_every_photo_once(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert predict(tmp_path, "photos", "--recursive", "--write", "jsonl", "--shard", "0/3") == 0
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert predict(tmp_path, "photos", "--recursive", "--write", "jsonl") == 0
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.setenv("SLURM_PROCID", "2")
    monkeypatch.setenv("SLURM_NTASKS", "3")
    assert predict(tmp_path, "photos", "--recursive", "--write", "jsonl") == 0
    files = sorted(tmp_path.glob("*.jsonl"))
    assert [file.name for file in files] == [f"predictions-{rank}-of-3.jsonl" for rank in range(3)]
    seen = Counter(line["image"] for file in files for line in read_lines(file))
    assert len(seen) == COUNT
    assert set(seen.values()) == {1}


def test_pictures_of_shares_never_take_each_others_place(place: Path, tmp_path: Path) -> None:
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        shutil.copy(place / "photos" / "1.png", tmp_path / folder / "1.png")
    out = tmp_path / "out"
    for rank in ("0/2", "1/2"):
        assert predict(out, str(tmp_path / "x" / "1.png"), str(tmp_path / "y" / "1.png"), "--shard", rank) == 0
    assert len(list(out.glob("*.png"))) == len(list(out.glob("*.json"))) == 2
    named = {json.loads(file.read_text())["image"] for file in out.glob("*.json")}
    assert len(named) == 2


def test_killed_at_random_moments_every_photo_has_one_line(place: Path, tmp_path: Path) -> None:
    """SIGKILL, which nothing can catch, between the first photo and the last; then the same command again."""
    script = (
        "import sys, time, torch; torch.set_num_threads(1)\n"
        "from detrkit.inference.writers import jsonl as lines\n"
        "slow = lines.json.dumps\n"
        "def dumps(*a, **k): time.sleep(0.05); return slow(*a, **k)\n"
        "lines.json.dumps = dumps\n"
        "from detrkit.cli import main; main(sys.argv[1:])"
    )
    arguments = ["predict", "model.safetensors", "photos", "--recursive", "--threshold", "0", "--batch-size", "2"]
    command = [sys.executable, "-c", script, *arguments, "--write", "jsonl", "--output", str(tmp_path)]
    lines, chance = tmp_path / "predictions.jsonl", random.Random(0)
    for kill in range(KILLS):
        wanted = (kill + 1) * COUNT // (KILLS + 2)  # each call gets further than the one before
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            while process.poll() is None and (not lines.exists() or lines.read_bytes().count(b"\n") < wanted):
                time.sleep(0.005)
            time.sleep(chance.random() * 0.06)
            process.send_signal(signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
    assert wanted <= sum(1 for _ in read_lines(lines)) < COUNT
    with lines.open("ab") as file:  # and once in the middle of a line
        file.write(b'{"image": "photos/1.p')
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    seen = Counter(json.loads(line)["image"] for line in lines.read_text().splitlines())
    assert len(seen) == COUNT
    assert set(seen.values()) == {1}
    assert predict(tmp_path / "whole", "photos", "--recursive", "--write", "jsonl") == 0
    whole = {line["image"]: line["objects"] for line in read_lines(tmp_path / "whole" / "predictions.jsonl")}
    for line in read_lines(lines):
        for one, other in zip(line["objects"], whole[line["image"]], strict=True):
            assert one["box"] == pytest.approx(other["box"], abs=0.01)


def test_ctrl_c_ends_after_the_photo_at_hand(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = Detector.find
    calls = 0

    def find(detector: Detector, *arguments: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return original(detector, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Detector, "find", find)
    assert predict(tmp_path, "photos", "--write", "jsonl") == 130
    assert "stopped after 3 of 18 photos; the same command goes on" in capsys.readouterr().out
    monkeypatch.undo()
    monkeypatch.chdir(place)
    assert predict(tmp_path, "photos", "--write", "jsonl") == 0
    assert sum(1 for _ in read_lines(tmp_path / "predictions.jsonl")) == 18


def test_unreadable_photos_are_named_and_recorded(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.png").write_text("no photo")
    given = ["photos/1.png", str(tmp_path / "bad.png"), "photos/2.png", "--write", "jsonl"]
    assert predict(tmp_path / "out", *given) == 2
    assert "1 of 3 photos were not predicted" in capsys.readouterr().err
    lines = {line["image"]: line for line in read_lines(tmp_path / "out" / "predictions.jsonl")}
    assert len(lines) == 3
    assert "cannot be read as a photo" in lines[str(tmp_path / "bad.png")]["error"]
    # the second call has nothing to do, and ends as the first
    assert predict(tmp_path / "out", *given) == 2
    said = capsys.readouterr()
    assert "photos that could not be read before: 1; their lines say why" in said.out
    assert "1 of 3 photos were not predicted; " in said.err
    assert "bad.png: cannot be read as a photo" in said.err
    # photos that are not asked for are no fault of this call
    assert predict(tmp_path / "out", "photos/1.png", "--write", "jsonl") == 0
    assert "could not be read" not in capsys.readouterr().out
    # mended, and its line taken out
    (tmp_path / "bad.png").write_bytes(Path("photos/3.png").read_bytes())
    file = tmp_path / "out" / "predictions.jsonl"
    file.write_text("".join(line for line in file.read_text().splitlines(True) if '"error"' not in line))
    assert predict(tmp_path / "out", *given) == 0
    assert sum(1 for _ in read_lines(file)) == 3


def test_classes_by_name(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert predict(tmp_path, "photos", "--write", "jsonl") == 0
    everything = [one["name"] for line in read_lines(tmp_path / "predictions.jsonl") for one in line["objects"]]
    wanted = Counter(everything).most_common(1)[0][0]
    assert predict(tmp_path / "some", "photos", "--write", "jsonl", "--classes", f"{wanted}, circle") == 0
    some = [one["name"] for line in read_lines(tmp_path / "some/predictions.jsonl") for one in line["objects"]]
    assert some == [name for name in everything if name in (wanted, "circle")]
    assert predict(tmp_path / "none", "photos", "--classes", "circel") == 2
    assert "did you mean 'circle'" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_tiles_of_a_large_photo(place: Path, tmp_path: Path) -> None:
    sheet = Image.new("RGB", (300, 200))
    for number in range(6):
        with Image.open(f"photos/{number}.png" if number % 4 else f"photos/more/{number}.png") as picture:
            sheet.paste(picture, (number % 3 * 100, number // 3 * 100))
    sheet.save(tmp_path / "large.png")
    given = [str(tmp_path / "large.png"), "--tile", "128", "--overlap", "0.25", "--batch-size", "4"]
    assert predict(tmp_path / "out", *given) == 0
    objects = json.loads((tmp_path / "out" / "large.json").read_text())["objects"]
    assert objects
    assert [one["score"] for one in objects] == sorted((one["score"] for one in objects), reverse=True)
    with Image.open(tmp_path / "out" / "large.png") as picture:
        assert picture.size == (300, 200)


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    with VideoWriter(path, Fraction(5)) as writer:
        for number, sample in enumerate(SyntheticShapes(7, 0, SyntheticStyle(size=64))):
            writer.add(Image.fromarray(sample.image.permute(1, 2, 0).numpy()), number / 5)
    return path


def test_a_video_becomes_a_video_and_lines(
    place: Path, tmp_path: Path, film: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict(tmp_path, str(film), "photos/1.png", "--batch-size", "2") == 0
    assert "film.mp4: 7 frames, 56 objects" in capsys.readouterr().out
    assert sorted(file.name for file in tmp_path.iterdir()) == ["1.json", "1.png", "film.jsonl", "film.mp4"]
    lines = list(read_lines(tmp_path / "film.jsonl"))
    assert [line["frame"] for line in lines] == list(range(7))
    assert [line["seconds"] for line in lines] == pytest.approx([number / 5 for number in range(7)])
    assert {line["image"] for line in lines} == {str(film)}
    with open_video(film) as source:
        pixels = [frame.pixels for frame in source]
    found = Detector.load("model.safetensors").predict(pixels[4], 0)
    assert lines[4]["objects"][0]["box"] == pytest.approx(found.to_list()[0]["box"], abs=0.01)
    with open_video(tmp_path / "film.mp4") as drawn:
        frames = list(drawn)
    assert [frame.seconds for frame in frames] == pytest.approx([number / 5 for number in range(7)])
    assert float((frames[4].pixels.float() - pixels[4].float()).abs().mean()) > 5, "boxes are drawn"


def test_only_some_frames_and_only_a_table(place: Path, tmp_path: Path, film: Path) -> None:
    assert predict(tmp_path, str(film), "--frames", "3", "--write", "parquet") == 0
    assert sorted(file.name for file in tmp_path.iterdir()) == ["film.jsonl", "film.parquet"]
    assert pyarrow.parquet.read_table(tmp_path / "film.parquet")["frame"].to_pylist() == [0, 1, 2]


def test_a_broken_video_costs_neither_the_others_nor_an_earlier_result(
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


def test_a_camera_is_stopped_by_ctrl_c_and_its_video_plays(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(videos, "camera_address", lambda name, system: ("testsrc=size=64x48:rate=10", "lavfi"))
    original = VideoWriter.add

    def add(writer: VideoWriter, picture: Image.Image, seconds: float) -> None:
        original(writer, picture, seconds)
        if seconds > 0.55:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(VideoWriter, "add", add)
    assert predict(tmp_path, "camera:0") == 128 + signal.SIGTERM
    assert "camera:0: 7 frames" in capsys.readouterr().out
    with open_video(tmp_path / "camera-0.mp4") as drawn:
        assert sum(1 for _ in drawn) == 7
    assert sum(1 for _ in read_lines(tmp_path / "camera-0.jsonl")) == 7


def test_a_stop_signal_before_the_first_photo_leaves_a_usable_file(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    enter = StopSignal.__enter__

    def stopped(stop: StopSignal) -> StopSignal:
        enter(stop).received = signal.SIGINT
        return stop

    monkeypatch.setattr(StopSignal, "__enter__", stopped)
    assert predict(tmp_path, "photos", "--write", "jsonl") == 130
    monkeypatch.undo()
    monkeypatch.chdir(place)
    assert predict(tmp_path, "photos", "--write", "jsonl") == 0
    assert sum(1 for _ in read_lines(tmp_path / "predictions.jsonl")) == 18


def test_annotations_beside_the_photos_are_spared(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = tmp_path / "1.bmp"
    Image.open(place / "photos" / "1.png").save(photo)
    (tmp_path / "1.json").write_text('{"version": "5.0.1", "shapes": []}')
    assert predict(tmp_path, str(photo), "--write", "json") == 2
    assert "was not written by detrkit" in capsys.readouterr().err
    assert json.loads((tmp_path / "1.json").read_text())["shapes"] == []
    (tmp_path / "1.json").unlink()
    assert [predict(tmp_path, str(photo), "--write", "json") for _ in range(2)] == [0, 0], "its own it writes again"
    assert "JSON is in" in capsys.readouterr().out
    assert predict(tmp_path, str(photo), "--write", ",") == 2
    assert "--write: found ','" in capsys.readouterr().err


def test_pictures_of_others_are_spared(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photo = tmp_path / "cat.jpg"
    Image.new("RGB", (64, 64)).save(photo)
    Image.new("L", (64, 64)).save(tmp_path / "cat.png")  # a mask, say
    before = (tmp_path / "cat.png").read_bytes()
    arguments = ["predict", "model.safetensors", str(photo), "--output", str(tmp_path), "--threshold", "0"]
    assert run(arguments) == 2
    assert "cat.png: was not written by detrkit and would be overwritten" in " ".join(capsys.readouterr().err.split())
    assert (tmp_path / "cat.png").read_bytes() == before
    assert run([*arguments, "--write", "json"]) == 0  # nothing takes its place
    (tmp_path / "cat.png").unlink()
    assert run(arguments) == run(arguments) == 0  # our own are written anew


def test_videos_and_lines_of_others_are_spared(
    place: Path, film: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with av.open(str(tmp_path / "film.mp4"), "w") as container:  # somebody's cut of it
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
    assert [predict(tmp_path, str(film)) for _ in range(2)] == [0, 0]  # our own are written anew


def test_a_pattern_leaves_out_what_was_found(place: Path, tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        Image.new("RGB", (64, 64)).save(tmp_path / name)
    found = tmp_path / "found"
    for _ in range(2):
        assert run(["predict", "model.safetensors", f"{tmp_path}/**/*.png", "--output", str(found)]) == 0
    assert sorted(path.name for path in found.glob("*.png")) == ["a.png", "b.png"]


def test_a_long_name_is_written(place: Path, tmp_path: Path) -> None:
    photo = tmp_path / f"{'長' * 80}.jpg"  # 244 bytes
    Image.new("RGB", (64, 64)).save(photo)
    assert run(["predict", "model.safetensors", str(photo), "--output", str(tmp_path / "found")]) == 0
    assert (tmp_path / "found" / f"{photo.stem}.png").is_file()


def test_exported_files_predict_on_the_cpu_beside_a_gpu(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load(_source: str, device: torch.device, **_: object) -> Detector:
        asked.append(device.type)
        raise DatasetError("enough")

    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("detrkit.inference.predict.is_exported", lambda _source: True)
    monkeypatch.setattr("detrkit.inference.device.is_exported", lambda _source: True)
    monkeypatch.setattr(Detector, "load", load)
    assert run(["predict", "model.onnx", "photos/1.png", "--output", "x"]) == 2
    assert asked == ["cpu"]


def test_a_name_that_is_no_text_is_predicted_like_any(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = tmp_path / os.fsdecode(b"caf\xe9.png")
    odd.write_bytes((place / "photos" / "1.png").read_bytes())
    assert predict(tmp_path / "out", str(tmp_path)) == 0
    assert "pictures and JSON are in" in capsys.readouterr().out
    content = json.loads((tmp_path / "out" / f"{odd.stem}.json").read_text())
    assert os.fsencode(content["image"]) == os.fsencode(odd)
