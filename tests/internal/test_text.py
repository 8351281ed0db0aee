"""What people read: names as they are, none of which commands the terminal, and numbers that fit their nouns."""

import pytest
from rich.table import Table

from detrkit._internal.text import plain_console, plural, printable
from detrkit.cli import main


def test_control_characters_are_written_out() -> None:
    assert printable("ab\x1b[2J\x07\x9b\r\n[red]é\t") == "ab\\x1b[2J\\x07\\x9b\\x0d\\n[red]é\t"


def test_a_console_hands_none_on_in_lines_and_in_tables(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("class")
    table.add_row("[b]\x1b[8mcell")
    console = plain_console()
    console.print("first\nsecond \x1b]0;title\x07")
    console.print(table)
    said = capsys.readouterr().out
    assert "first\nsecond \\x1b]0;title\\x07\n" in said
    assert "[b]\\x1b[8mcell" in said


def test_a_mistake_hands_none_on(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["doctor", "no\x1b[2Jwhere"])
    assert "error: no\\x1b[2Jwhere: found nothing" in capsys.readouterr().err


@pytest.mark.parametrize(("number", "said"), [(0, "0 photos"), (1, "1 photo"), (2, "2 photos"), (1000, "1000 photos")])
def test_numbers_fit_their_nouns(number: int, said: str) -> None:
    assert plural(number, "photo") == said


def test_nouns_that_end_otherwise_are_given() -> None:
    assert [plural(number, "class", "classes") for number in (1, 2)] == ["1 class", "2 classes"]
