"""Errors of training processes, as the launching process raises them."""

import os
import pickle
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch.multiprocessing.spawn import ProcessExitedException

from detrkit.cli.flags import flag_style
from detrkit.config.run import run_config
from detrkit.errors import DatasetError, DetrkitError, arg
from detrkit.training import launch as launch_module
from detrkit.training.launch import _failure, launch


@pytest.mark.parametrize(
    ("messages", "kind", "expected"),
    [
        (
            {"1-0": b"Traceback\nKeyError", "0-1": pickle.dumps(DatasetError(f"5.png: lower {arg('lr', 2)}"))},
            DatasetError,
            "5.png: lower lr=2",
        ),
        ({"1-1": b"Traceback\nKeyError"}, RuntimeError, "training process:\nTraceback\nKeyError"),
        ({}, DetrkitError, "devices: killed"),
    ],
    ids=["user error", "failure with a stack trace", "no message"],
)
def test_failure_of_a_process_is_raised(
    tmp_path: Path, messages: dict[str, bytes], kind: type[Exception], expected: str
) -> None:
    for name, message in messages.items():
        (tmp_path / name).write_bytes(message)
    failure = _failure(tmp_path, "killed")
    assert type(failure) is kind
    assert str(failure) == expected
    assert kind is not DatasetError or failure.render(flag_style) == "5.png: lower --lr 2"


@pytest.mark.parametrize(
    ("number", "exit_codes", "expected"),
    [
        (signal.SIGTERM, (-signal.SIGTERM, -signal.SIGTERM), SystemExit),
        (signal.SIGTERM, (1, -signal.SIGTERM), SystemExit),  # the first lost its connection to the second
        (signal.SIGINT, (130, 130), KeyboardInterrupt),
        (None, (-signal.SIGTERM, 0), DetrkitError),  # somebody else killed it
    ],
    ids=["SIGTERM", "SIGTERM and its consequence", "SIGINT", "no signal here"],
)
def test_signal_before_training_starts_ends_the_run_as_it_ends_one_process(
    number: int | None,
    exit_codes: tuple[int, int],
    expected: type[BaseException],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def start(_work: object, arguments: tuple[Any, ...], *_rest: object, **_options: object) -> object:
        def join(**_times: float) -> bool:
            if 1 in exit_codes:
                (arguments[2] / "1-0").write_text("Traceback: connection closed by peer")
            raise ProcessExitedException("process 1 ended", error_index=1, error_pid=1, exit_code=exit_codes[1])

        if number is not None:
            os.kill(os.getpid(), number)
        return SimpleNamespace(processes=[SimpleNamespace(exitcode=code) for code in exit_codes], join=join)

    monkeypatch.setattr(launch_module, "start_processes", start)
    config = run_config({"data": str(tmp_path), "devices": 2, "device": "cpu"})
    with pytest.raises(expected) as raised:
        launch(config, tmp_path / "run", dataset=None, resume=False)
    if expected is SystemExit:
        assert raised.value.code == 143  # type: ignore[attr-defined]


def test_message_of_the_user_outlasts_a_signal(tmp_path: Path) -> None:
    (tmp_path / "0-1").write_bytes(pickle.dumps(DatasetError("5.png: cannot be read")))
    assert str(_failure(tmp_path, "killed", signal.SIGTERM)) == "5.png: cannot be read"
