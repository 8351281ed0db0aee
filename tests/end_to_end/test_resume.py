"""Resumed runs: killed, stopped by a signal, on a full disk, with two processes, with a damaged or foreign state."""

import json
import os
import random
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from detrkit.checkpoints.files import read_training_state, write_training_state
from detrkit.cli import main, training_console
from detrkit.cli.training_console import ConsoleProgress
from detrkit.errors import CheckpointError, ConfigError
from detrkit.training.callbacks import TrainingState
from detrkit.training.loggers.jsonl import read_metrics
from tests.datasets import write_coco, write_whole_photos
from tests.waiting import PATIENCE, wait_until

pytestmark = pytest.mark.slow

SHORT = [
    *("--model", "detr-tiny", "--batch-size", "2", "--workers", "0", "--image-size", "64", "--log-every", "1"),
    *("--device", "cpu"),  # where a run repeats bit for bit, and any machine has two
]


# each start of a run takes seconds, so that few fit into a test; DETRKIT_KILLS=20 tries harder
KILLS = int(os.environ.get("DETRKIT_KILLS", "1"))


def run(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    return int(left.value.code or 0)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    state = read_training_state(folder / "last" / "state.pt")["train_step"]
    return {**state["model"], **{f"average.{name}": tensor for name, tensor in state["average"].items()}}


def assert_equal_weights(folder: Path, expected: Path) -> None:
    actual = weights(folder)
    assert actual.keys() == weights(expected).keys()
    for name, tensor in weights(expected).items():
        assert torch.equal(actual[name], tensor), name


def test_two_processes_stop_at_sigterm_and_resume(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder, weights = write_whole_photos(tmp_path, num_train=8, num_val=5)
    output = tmp_path / "run"
    slow = ["--lr", "1e-6", "--backbone-lr", "1e-6", "--weights", str(weights)]
    training = subprocess.Popen(
        [
            *(sys.executable, "-m", "detrkit", "train", str(folder), *SHORT, *slow, "--epochs", "500"),
            *("--evaluate-every", "500", "--devices", "2", "--output", str(output)),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_until(lambda: training.poll() is not None or len(read_metrics(output)) >= 3)
        assert training.poll() is None
        training.terminate()
        _, said = training.communicate(timeout=PATIENCE)
    finally:
        training.kill()
    assert training.returncode == 143
    assert "Traceback" not in said
    state = read_training_state(output / "last" / "state.pt")
    done = int(state["train_step"]["step_number"])
    assert done >= 3
    config = output / "config.yaml"  # a shorter end, for a test's sake
    epochs = done // 2 + 2
    config.write_text(re.sub(r"epochs: 500\n", f"epochs: {epochs}\n", config.read_text()))
    write_training_state(output / "last" / "state.pt", {**state, "num_steps": 2 * epochs})
    assert run(["train", "--resume", str(output)]) == 0
    entries = read_metrics(output)
    assert [entry["step"] for entry in entries if entry["kind"] == "train"] == list(range(1, 2 * epochs + 1))
    # the evaluation that two processes shared out, and one of the same weights by itself
    together = [entry["ap"] for entry in entries if entry["kind"] == "evaluation"][-1]
    model = str(output / "last" / "model.safetensors")
    alone = [
        "evaluate",
        model,
        str(folder),
        "--batch-size",
        "2",
        "--device",
        "cpu",
        "--output",
        str(tmp_path / "alone"),
    ]
    assert run(alone) == 0
    ap = json.loads((tmp_path / "alone" / "scores.json").read_text())["metrics"]["ap"]
    assert ap > 0.01
    assert together == pytest.approx(ap, abs=1e-6)
    capfd.readouterr()
    assert run(["train", "--resume", str(output)]) == 2
    assert "the run has ended" in capfd.readouterr().err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["SIGTERM", "Ctrl-C"])
def test_signal_while_processes_start_ends_them_without_a_trace(number: int, code: int, tmp_path: Path) -> None:
    folder, output = write_coco(tmp_path / "shapes"), tmp_path / "run"
    script = (
        "import os, sys\n"
        "from detrkit.cli import main\n"
        "from detrkit.training import launch\n"
        "start, number = launch.start_processes, int(sys.argv.pop(1))\n"
        "def start_and_signal(*arguments, **options):\n"
        "    context = start(*arguments, **options)\n"
        "    receivers = [os.getpid()]\n"
        "    if number == 2: receivers += [process.pid for process in context.processes]\n"  # as the terminal does
        "    for receiver in receivers: os.kill(receiver, number)\n"
        "    return context\n"
        "launch.start_processes = start_and_signal\n"
        "main(sys.argv[1:])\n"
    )
    command = [sys.executable, "-c", script, str(int(number)), "train", str(folder), *SHORT, "--devices", "2"]
    command += ["--epochs", "500", "--output", str(output)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert ended.returncode == code, ended.stderr
    assert "Traceback" not in ended.stderr
    assert "terminated" not in ended.stderr
    assert not (output / "last").exists()


def test_error_of_one_process_ends_all_and_is_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = write_coco(tmp_path / "shapes", num_train=8)
    (folder / "train2017" / "5.png").write_bytes(b"broken")
    output = tmp_path / "run"
    assert run(["train", str(folder), *SHORT, "--epochs", "9", "--devices", "2", "--output", str(output)]) == 2
    error = capfd.readouterr().err
    assert "5.png: cannot be read as an image" in error
    assert "Traceback" not in error


def test_run_killed_at_random_moments_ends_with_the_same_weights(tmp_path: Path) -> None:
    """SIGKILL, which nothing can catch, while importing, training, evaluating, saving."""
    folder = write_coco(tmp_path / "shapes", num_train=6, num_val=2)
    settings = [
        *SHORT,
        "--epochs",
        str(1 + 2 * KILLS),
        "--evaluate-every",
        "4",
        "--ema-decay",
        "0.9",
        "--dropout",
        "0.1",
    ]
    # kills itself some time after its first save, so that it does not matter how fast another process would notice
    script = (
        "import os, signal, sys, threading, torch; torch.set_num_threads(1)\n"
        "from detrkit.training import run, trainer; trainer._SECONDS_BETWEEN_SAVES = 0\n"
        "from detrkit.cli import main\n"
        "delay, save, timers = float(sys.argv.pop(1)), run.write_training_state, []\n"
        "def save_and_die(*saved):\n"
        "    save(*saved)\n"
        "    timers.append(threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL)))\n"
        "    timers[-1].start()\n"
        "if delay >= 0: run.write_training_state = save_and_die\n"
        "try: main(sys.argv[1:])\n"
        "finally:\n"
        "    if timers: threading.Event().wait()\n"  # until it is killed
    )

    def start(delay: float, *arguments: str) -> int:
        command = [sys.executable, "-c", script, str(delay), "train", *arguments]
        return subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False).returncode

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert start(-1, str(folder), *settings, "--output", str(whole)) == 0
    chance = random.Random(0)
    arguments = [str(folder), *settings, "--output", str(parts)]
    for kill in range(KILLS):
        # 2: the kill before hit a run that had ended but for its report
        assert start(chance.uniform(0, 0.15), *arguments) in ((-signal.SIGKILL, 2) if kill else (-signal.SIGKILL,))
        arguments = ["--resume", str(parts)]
    assert start(-1, *arguments) in (0, 2)
    assert_equal_weights(parts, whole)


def test_full_disk_keeps_the_previous_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last" / "state.pt"
    write_training_state(path, {"step": 1})
    whole = path.read_bytes()

    def no_space(_state: object, place: Path) -> None:
        place.write_bytes(whole[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", no_space)
    with pytest.raises(ConfigError, match=r"state\.pt: cannot be written .*No space left.*then resume the run"):
        write_training_state(path, {"step": 2})
    assert path.read_bytes() == whole
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("content", [b"", b"nothing", "cut", "evil"])
def test_damaged_state_is_rejected(content: bytes | str, tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    write_training_state(path, {"numbers": torch.zeros(100)})
    if content == "cut":
        path.write_bytes(path.read_bytes()[:200])
    elif content == "evil":
        torch.save({"format": 1, "call": os.system}, path)
    else:
        path.write_bytes(content if isinstance(content, bytes) else b"")
    with pytest.raises(CheckpointError, match=r"state\.pt"):
        read_training_state(path)


def test_state_of_another_config_is_rejected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_coco(tmp_path / "shapes", num_train=4, num_val=2)
    output = tmp_path / "run"
    assert run(["train", str(folder), *SHORT, "--epochs", "1", "--output", str(output)]) == 0
    config, state = output / "config.yaml", read_training_state(output / "last" / "state.pt")
    text = config.read_text()
    assert text.count("num_queries: 25\n") == 1
    config.write_text(text.replace("num_queries: 25\n", "num_queries: 24\n"))
    capsys.readouterr()
    assert run(["train", "--resume", str(output)]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "config.yaml has model.num_queries: 24, but the run was started with 25" in said
    config.write_text(text)
    for key in ("progress", "num_steps", "run"):
        write_training_state(
            output / "last" / "state.pt", {name: value for name, value in state.items() if name != key}
        )
        assert run(["train", "--resume", str(output)]) == 2
        assert f"does not belong to the run that config.yaml describes ('{key}')" in " ".join(
            capsys.readouterr().err.split()
        )
    wrong: list[tuple[str, object]] = [("run", {**state["run"], "train": [1.5]}), ("progress", 5), ("train_step", [])]
    wrong += [("progress", {**state["progress"], "epoch": "x"}), ("closing_from", 5), ("random", [])]
    wrong += [("train_step", {**state["train_step"], name: 5}) for name in ("optimizer", "schedule", "model")]
    wrong += [("train_step", {**state["train_step"], "step_number": float("inf")})]
    wrong += [("num_batches", torch.ones(2)), ("num_steps", torch.ones(2)), ("num_batches", None)]
    for key, value in wrong:
        write_training_state(output / "last" / "state.pt", {**state, key: value})
        assert run(["train", "--resume", str(output)]) == 2
        assert "does not belong to the run that config.yaml describes" in " ".join(capsys.readouterr().err.split())


def test_changed_dataset_is_rejected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, output = write_coco(tmp_path / "shapes"), tmp_path / "run"
    assert run(["train", str(folder), *SHORT, "--epochs", "1", "--output", str(output)]) == 0
    path = folder / "annotations" / "instances_train2017.json"
    document = json.loads(path.read_text())
    document["images"] = document["images"][:2]
    kept = {image["id"] for image in document["images"]}
    document["annotations"] = [one for one in document["annotations"] if one["image_id"] in kept]
    path.write_text(json.dumps(document))
    assert run(["train", "--resume", str(output)]) == 2
    assert "has changed since the run was started: it has 2 training images, but had 4" in capsys.readouterr().err
    folder.rename(tmp_path / "moved")
    assert run(["train", "--resume", str(output)]) == 2
    assert "is not there any more; pass its new place as DATA" in " ".join(capsys.readouterr().err.split())
    assert run(["train", str(tmp_path / "nowhere"), "--resume", str(output)]) == 2
    assert "nowhere: no such file or folder" in capsys.readouterr().err
    folder = tmp_path / "moved"
    for place in (tmp_path, folder):
        assert run(["train", "--resume", str(place)]) == 2
        assert "there is no config.yaml" in capsys.readouterr().err


def test_run_whose_dataset_was_moved_is_resumed_bit_for_bit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class StopEveryThreeSteps(ConsoleProgress):
        def on_step_end(self, state: TrainingState) -> None:
            super().on_step_end(state)
            if state.step % 3 == 0:
                state.request_stop()

    folder, moved, again = write_coco(tmp_path / "shapes"), tmp_path / "disk 2" / "photos", tmp_path / "photos"
    whole, output = tmp_path / "whole", tmp_path / "run"
    arguments = ["train", str(folder), *SHORT, "--epochs", "4", "--dropout", "0.1", "--horizontal-flip", "0.5"]
    assert run([*arguments, "--output", str(whole)]) == 0
    monkeypatch.setattr(training_console, "ConsoleProgress", StopEveryThreeSteps)
    assert run([*arguments, "--output", str(output)]) == 0
    moved.parent.mkdir()
    folder.rename(moved)
    capsys.readouterr()
    assert run(["train", "--resume", str(output)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"the dataset of the run, {folder}, is not there any more; pass its new place as DATA" in error
    assert run(["train", str(moved), "--resume", str(output)]) == 0
    moved.rename(again)
    assert run(["train", str(again), "--resume", str(output)]) == 0
    assert str(again) in (output / "config.yaml").read_text()
    monkeypatch.undo()
    capsys.readouterr()
    assert run(["train", "--resume", str(output)]) == 2  # found at its last place: the run has ended
    assert "the run has ended" in capsys.readouterr().err
    assert_equal_weights(output, whole)


def test_edited_number_of_steps_is_rejected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, output = write_coco(tmp_path / "shapes"), tmp_path / "run"
    assert run(["train", str(folder), *SHORT, "--epochs", "1", "--output", str(output)]) == 0
    config = output / "config.yaml"
    config.write_text(config.read_text().replace("epochs: 1\n", "epochs: 4\n"))
    assert run(["train", "--resume", str(output)]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "config.yaml gives 8 steps, but the run was" in said
    assert "restore its minutes, steps, epochs" in said


def test_sigterm_saves_the_run_and_exits(tmp_path: Path) -> None:
    folder, output = write_coco(tmp_path / "shapes"), tmp_path / "run"
    command = [
        sys.executable,
        "-m",
        "detrkit",
        "train",
        str(folder),
        *SHORT,
        "--epochs",
        "5000",
        "--output",
        str(output),
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    metrics = output / "metrics.jsonl"
    wait_until(lambda: process.poll() is not None or (metrics.exists() and metrics.stat().st_size > 0))
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 128 + signal.SIGTERM
    assert "Traceback" not in said
    assert read_training_state(output / "last" / "state.pt")["train_step"]["step_number"] >= 1
