"""Errors of training processes, as the launching process raises them."""

from pathlib import Path

import pytest

from detrkit.errors import DetrkitError
from detrkit.training.launch import _failure


@pytest.mark.parametrize(
    ("messages", "kind", "expected"),
    [
        ({"1-0": "Traceback\nKeyError", "0-1": "5.png: cannot be read"}, DetrkitError, "5.png: cannot be read"),
        ({"1-1": "Traceback\nKeyError"}, RuntimeError, "training process:\nTraceback\nKeyError"),
        ({}, DetrkitError, "devices=: killed"),
    ],
    ids=["user error", "failure with a stack trace", "no message"],
)
def test_failure_of_a_process_is_raised(
    tmp_path: Path, messages: dict[str, str], kind: type[Exception], expected: str
) -> None:
    for name, message in messages.items():
        (tmp_path / name).write_text(message)
    failure = _failure(tmp_path, "killed")
    assert type(failure) is kind
    assert str(failure) == expected
