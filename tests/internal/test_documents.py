"""Parsing of JSON and YAML: whatever is wrong is a ValueError of one line."""

import pytest

from detrkit._internal.documents import parse_json, parse_yaml

BOMB = "- &a0 [1, 1, 1, 1]\n" + "".join(f"- &a{n} [{', '.join([f'*a{n - 1}'] * 4)}]\n" for n in range(1, 30))


@pytest.mark.parametrize(
    "text",
    [
        "a: [1,", "a: !!bool x", "a: !!int ''", "a: !!float x", "a: !!timestamp x", "!!timestamp 1x: 2",
        "? [a]\n: {b: 1}\n? {c: 1}\n: 2", "a: !!python/object/apply:os.system [x]", "\0", "[" * 3000, "a: *missing",
        "a: 2001-99-99", "a: 0x" + "f" * 5000, "a: " + "9" * 5000, "&a [*a]", "a: &a {b: *a}", BOMB,
    ],
)  # fmt: skip
def test_malformed_yaml_is_a_value_error_of_one_line(text: str) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]{1,200}\Z") as caught:
        parse_yaml(text)
    assert type(caught.value) is ValueError


def test_shared_parts_of_yaml_are_kept() -> None:
    assert parse_yaml("- &a {x: 1}\n- *a\n- <<: *a\n  y: 2\n") == [{"x": 1}, {"x": 1}, {"x": 1, "y": 2}]


@pytest.mark.parametrize("text", ["", "[1,", "[" * 100_000, '{"a":' * 10_000, b"\xff\xfe\xfd", "9" * 5000])
def test_malformed_json_is_a_value_error(text: str | bytes) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]+\Z"):
        parse_json(text)
