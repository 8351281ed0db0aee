"""Messages of errors are one line of a bounded length, whatever the values in them."""

import time

import pytest

from detrkit.cli.flags import style_of_command
from detrkit.errors import ConfigError, DatasetError, arg


@pytest.mark.parametrize("separator", ["\n", "\r\n", "\v", "\f", "\x1c", "\x85", "\u2028", "\u2029"])
def test_message_has_no_line_breaks(separator: str) -> None:
    error = ConfigError(f"a.json: found{separator}b, {arg('lr', f'x{separator}y')}")
    for text in (str(error), error.render(style_of_command(None))):
        assert len(text.splitlines()) == 1


def test_control_characters_are_escaped() -> None:
    assert str(ConfigError("a\x1b[31m.json: \x07 is red")) == "a\\x1b[31m.json: \\x07 is red"


def test_long_message_keeps_its_start_and_end() -> None:
    text = str(ConfigError(f"a.json: found {'9' * 100_000}; write it again"))
    assert text.startswith("a.json: found 999")
    assert text.endswith("999; write it again")
    assert len(text) < 2100


def test_marks_of_arguments_in_a_name_take_no_time_and_end_no_argument() -> None:
    hostile = "\ue000a\ue001b" * 20_000  # a search for arguments that allows marks in them would take hours
    start = time.process_time()
    assert len(str(DatasetError(f"{hostile}: cannot be read"))) < 5000
    assert time.process_time() - start < 5
    value = "a\ue001b\ue002"
    rendered = ConfigError(f"{arg('lr', value)} is wrong").render(lambda name, _, text: f"--{name} {text}")
    assert rendered == "--lr a\ufffdb\ufffd is wrong"
