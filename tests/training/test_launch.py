"""What is said when one of several processes fails."""

from pathlib import Path

import pytest

from detrkit.errors import DetrkitError
from detrkit.training.launch import _failure


@pytest.mark.parametrize(
    ("said", "kind", "expected"),
    [
        ({"1-0": "Traceback\nKeyError", "0-1": "5.png: cannot be read"}, DetrkitError, "5.png: cannot be read"),
        ({"1-1": "Traceback\nKeyError"}, RuntimeError, "in a training process:\nTraceback\nKeyError"),
        ({}, DetrkitError, "--devices: killed"),
    ],
    ids=["a user's mistake is a sentence", "a fault of ours is a trace", "a silent end"],
)
def test_a_failure_is_told(tmp_path: Path, said: dict[str, str], kind: type[Exception], expected: str) -> None:
    for name, message in said.items():
        (tmp_path / name).write_text(message)
    failure = _failure(tmp_path, "killed")
    assert type(failure) is kind
    assert str(failure) == expected
