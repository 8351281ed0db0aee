"""What people read."""

import pytest

from detrkit.terminal import plural


@pytest.mark.parametrize(("number", "said"), [(0, "0 photos"), (1, "1 photo"), (2, "2 photos"), (1000, "1000 photos")])
def test_numbers_fit_their_nouns(number: int, said: str) -> None:
    assert plural(number, "photo") == said


def test_nouns_that_end_otherwise_are_given() -> None:
    assert [plural(number, "class", "classes") for number in (1, 2)] == ["1 class", "2 classes"]
