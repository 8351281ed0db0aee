"""First contact: the program without arguments, what to run next, and shell completion."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from detrkit.cli import COMMANDS, main
from detrkit.cli.next_commands import names_the_next_command
from detrkit.config.run import RunConfig, load_run_config, write_config
from detrkit.errors import ConfigError, DatasetError, NonFiniteError
from tests.datasets import write_coco


def run(*arguments: str) -> object:
    with pytest.raises(SystemExit) as left:
        main(list(arguments))
    return left.value.code


@pytest.fixture(autouse=True)
def started_as_detrkit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["detrkit"])


@pytest.mark.parametrize(
    ("program", "environment", "name"),
    [
        ("/bin/detrkit", {}, "detrkit"),
        ("/lib/detrkit/__main__.py", {}, "python -m detrkit"),
        ("/bin/detrkit", {"UV_RUN_RECURSION_DEPTH": "1"}, "uv run --no-dev detrkit"),
    ],
)
def test_without_arguments_five_lines_say_what_to_do_first(
    program: str,
    environment: dict[str, str],
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.argv", [program])
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    assert run() == 0
    about, *steps = capsys.readouterr().out.splitlines()
    assert len(steps) == 4
    assert max(map(len, (about, *steps))) <= 80
    assert [step.split("  ")[1].removeprefix(name).split()[0] for step in steps] == [
        "demo",
        "doctor",
        "train",
        "--help",
    ]


def test_doctor_and_dry_run_name_each_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shapes = write_coco(tmp_path / "my shapes", 4, 2)
    assert not run("doctor", str(shapes), "--workers", "0", "--model", "detr-tiny")
    line = capsys.readouterr().out.splitlines()[-1]
    assert line == f"see settings and duration with: detrkit train '{shapes}' --model detr-tiny --dry-run"
    (shapes / "train2017" / "1.png").write_bytes(b"no image")
    assert run("doctor", str(shapes), "--workers", "0", "--no-cache") == 1
    line = capsys.readouterr().out.splitlines()[-1]
    assert line == f"make a copy without these errors with: detrkit doctor '{shapes}' --fix '{shapes}-fixed'"


def failed_run(error: Exception, folder: Path, *, saved: bool) -> list[str]:
    """Return the notes of an error of a run that has started."""
    config = RunConfig.model_validate(
        {"data": "photos", "training": {"lr": 1e-3, "backbone_lr": 0.0, "batch_size": 6, "gradient_accumulation": 2}}
    )
    with pytest.raises(type(error)) as failed, names_the_next_command(folder, None):  # noqa: PT012
        folder.mkdir()
        write_config(folder / "config.yaml", config, {})
        if saved:
            (folder / "last").mkdir()
            (folder / "last" / "state.pt").touch()
        raise error
    return getattr(failed.value, "__notes__", [])


def test_error_of_a_run_names_the_next_command(tmp_path: Path) -> None:
    resume = "continue with: detrkit train --resume"
    again = "start again with: detrkit train --config"
    a, b, c, d, e = (tmp_path / name for name in "abcde")
    doctor = "check the dataset with: detrkit doctor photos"
    assert failed_run(DatasetError("unreadable"), a, saved=True) == [doctor, f"{resume} {a}"]
    assert failed_run(DatasetError("unreadable"), b, saved=False) == [doctor]
    assert failed_run(OSError("disk full"), c, saved=True) == [f"{resume} {c}"]
    assert failed_run(NonFiniteError("nan"), d, saved=True) == [f"{again} {d}/config.yaml --lr 0.0005 --output {d}-2"]
    memory = f"{again} {e}/config.yaml --batch-size 3 --gradient-accumulation 4 --output {e}"
    assert failed_run(torch.OutOfMemoryError("CUDA out of memory"), e, saved=False) == [memory]
    changed = load_run_config(d / "config.yaml").training
    assert (changed.batch_size, changed.optimizer.lr) == (6, 1e-3), "the file that the commands name has all settings"


def test_error_before_a_run_starts_has_no_note(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as failed, names_the_next_command(tmp_path, "photos"):
        raise ConfigError("wrong")
    assert not hasattr(failed.value, "__notes__")


@pytest.mark.slow
def test_next_command_is_the_last_line_of_a_failed_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shapes, folder = write_coco(tmp_path / "shapes", 4, 2), tmp_path / "run"

    def out_of_memory(config: RunConfig, output: Path, **_others: object) -> None:
        output.mkdir()
        write_config(output / "config.yaml", config, {})
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr("detrkit.training.train.train_from_config", out_of_memory)
    assert run("train", str(shapes), "--batch-size", "1", "--output", str(folder)) == 2
    error, command = capsys.readouterr().err.splitlines()
    assert error == "error: out of memory; use smaller batches or images, or another device"
    assert command.endswith(f"train --config {folder}/config.yaml --activation-checkpointing --output {folder}")


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_installed_completion_completes_commands_options_and_values_in_bash(tmp_path: Path) -> None:
    environment = {**os.environ, "HOME": str(tmp_path), "SHELL": "/bin/bash"}
    code = """import atexit, sys; from detrkit.cli import main
atexit.register(lambda: print([name for name in ("torch", "numpy") if name in sys.modules]))
main(["--install-completion", "--shell", "bash"])"""
    for _ in range(2):  # a second time changes nothing
        command = [sys.executable, "-c", code]
        out = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
        assert out.splitlines()[-1] == "[]"
    assert (tmp_path / ".bashrc").read_text().count("completions/detrkit") == 2  # of one line
    script = """. ~/.bashrc
    complete -p detrkit
    ask() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=(); _detrkit; echo "${COMPREPLY[*]}"; }
    ask detrkit ''
    ask detrkit evaluate --split ''
    ask detrkit predict --thre
    ask detrkit doctor ''"""
    shell = subprocess.run(
        ["bash", "--norc", "-c", script], env=environment, check=True, capture_output=True, text=True
    )
    registered, commands, splits, options, files = shell.stdout.split("\n")[:5]
    assert registered == "complete -o default -F _detrkit detrkit"
    assert commands.split() == list(COMMANDS)
    assert set(splits.split()) == {"train", "val", "test"}
    assert options == "--threshold"
    assert not files, "bash completes file names, quoted and with the slashes of folders"


def test_unknown_shell_and_missing_home_are_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("detrkit._internal.home.has_home", lambda: False)
    assert run("--install-completion", "--shell", "bash") == 2
    assert "set HOME to a folder" in capsys.readouterr().err
    monkeypatch.setattr("detrkit._internal.home.has_home", lambda: True)
    for variable in ("BASH_VERSION", "ZSH_VERSION", "FISH_VERSION", "SHELL"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr("cyclopts.completion.detect.subprocess.run", lambda *_, **__: (_ for _ in ()).throw(OSError))
    assert run("--install-completion") == 2
    assert "pass --shell bash, zsh, fish or powershell" in capsys.readouterr().err
