"""Values that readers get wrong: limits of number types, text instead of numbers, paths, nesting."""

import json
from random import Random
from typing import Any

INTEGERS = [
    0, 1, -1, 2, 7, 255, 256, 2**15, 2**16, 2**24 - 1, 2**24, 2**31 - 1, 2**31, -(2**31) - 1, 2**32, 2**53 + 1, 2**62,
    2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 2**64, 10**30, 10**400,
]  # fmt: skip
FLOATS = [0.0, -0.0, 0.5, 1.0, 1.5, -0.001, 1e-320, 1e9, 3.5e38, 1e308, float("nan"), float("inf"), float("-inf")]
TEXTS = [
    "", " ", "0", "1", "-1", "1.0", "1e5", "1e400", "nan", "inf", "true", "no", "null", "~", "N/A", "a", "A", "é",
    "\ud800", "\0", "\n",
    "a\nb", "a\x1b[31m", "\u2028", "..", "../x", "../../etc/passwd", "/etc/passwd", "/dev/zero", "C:\\x", "a/b/c",
    "http://x/1.png",
    "%2e%2e", "~root", "$x_{$", "{0}", "%s", "<b>", "__class__", "x" * 300, "9" * 50, "9" * 5000,
    "\ue000a\ue001b\ue002",
    "1.jpg", "1.png", "train", "val", "images", "bbox", "relu", "auto",
]  # fmt: skip
# written into a document as they are
RAW_JSON = [
    "1e999",
    "-0",
    "NaN",
    "Infinity",
    '"\\ud800"',
    "9" * 5000,
    "0." + "1" * 400,
    "[" * 3000,
    '{"a":' * 1500,
    "",
    "'a'",
]
# a list of 4 to the power of 20 numbers, if its aliases are expanded
YAML_BOMB = (
    b"[&a0 [1, 1, 1, 1]"
    + b"".join(b", &a%d [%s]" % (n, b", ".join([b"*a%d" % (n - 1)] * 4)) for n in range(1, 20))
    + b"]"
)
_MARK = "\u0001RAW"


def leaf(random: Random) -> Any:
    """Return a value without parts, or an empty one."""
    choice = random.randrange(10)
    if choice < 3:
        return random.choice(INTEGERS)
    if choice < 5:
        return random.choice(FLOATS)
    if choice < 8:
        return random.choice(TEXTS)
    return random.choice(
        [
            None,
            True,
            False,
            [],
            {},
            [[]],
            [None],
            {"": None},
            [[[[[[1]]]]]],
            f"{_MARK}{random.randrange(len(RAW_JSON))}",
        ]
    )


def tweak(value: Any, random: Random) -> Any:
    """Return a value close to another one, or of another type."""
    if isinstance(value, bool) or value is None:
        return random.choice([not value, int(bool(value)), str(value).lower(), leaf(random)])
    if isinstance(value, int | float):
        try:
            changed = [
                value + 1,
                value - 1,
                -value,
                value * 10,
                value / 10,
                float(value),
                str(value),
                int(value),
                [value],
                leaf(random),
            ]
            return random.choice(changed)
        except (OverflowError, ValueError):
            return leaf(random)
    if isinstance(value, str):
        at = random.randint(0, len(value))
        changed_text = [
            value[:at],
            value[at:],
            value * 2,
            value.upper(),
            value[:at] + str(random.choice(TEXTS)) + value[at:],
            [value],
        ]
        return random.choice([*changed_text, leaf(random)])
    return leaf(random)


def to_json(content: Any, random: Random) -> bytes:
    """Serialise JSON with the raw pieces that `leaf` stands for, in one of the usual forms."""
    try:
        text = json.dumps(
            content, ensure_ascii=random.random() < 0.8, separators=random.choice([(",", ":"), (", ", ": ")])
        )
    except (ValueError, RecursionError, TypeError):
        return b"{}"
    for number, raw in enumerate(RAW_JSON):
        text = text.replace(json.dumps(f"{_MARK}{number}"), raw)
    return text.encode("utf-8", "surrogatepass")
