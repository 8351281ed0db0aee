"""Escaping of control characters, and plurals."""

import pytest
from rich.table import Table

from detrkit._internal.text import plural, printable
from detrkit.cli import main
from detrkit.cli.console import get_console


def test_control_characters_are_escaped() -> None:
    assert printable("ab\x1b[2J\x07\x9b\r\n[red]é\t") == "ab\\x1b[2J\\x07\\x9b\\x0d\\n[red]é\t"


def test_console_escapes_control_characters_in_lines_and_tables(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("class")
    table.add_row("[b]\x1b[8mcell")
    console = get_console()
    console.print("first\nsecond \x1b]0;title\x07")
    console.print(table)
    text = capsys.readouterr().out
    assert "first\nsecond \\x1b]0;title\\x07\n" in text
    assert "[b]\\x1b[8mcell" in text


def test_error_messages_escape_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["doctor", "no\x1b[2Jwhere"])
    assert "error: no\\x1b[2Jwhere: no such file or folder" in capsys.readouterr().err


@pytest.mark.parametrize(("number", "text"), [(0, "0 images"), (1, "1 image"), (2, "2 images"), (1000, "1000 images")])
def test_plural_follows_the_number(number: int, text: str) -> None:
    assert plural(number, "image") == text


def test_irregular_plural_is_an_argument() -> None:
    assert [plural(number, "class", "classes") for number in (1, 2)] == ["1 class", "2 classes"]
