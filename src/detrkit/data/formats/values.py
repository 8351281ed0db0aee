"""Values as the field's tools write them: numbers and flags as text, floats where integers are meant, missing values.

One rule for all formats: what can be meant in only one way is read as meant, everything else is an error.
"""

import math
import re
from typing import Any

from detrkit.errors import DatasetError, short

_INTEGER = re.compile(r"\s*[+-]?\d{1,40}(\.0*)?\s*", re.ASCII)
_MAX_NUMBER = 1e9  # pixels
_TRUE = frozenset({"1", "true", "yes", "y", "t", "1.0"})
_FALSE = frozenset({"0", "false", "no", "n", "f", "0.0", "", "none", "null"})
_UNKNOWN = frozenset({"nan", "unspecified", "undefined"})


def is_integer(value: Any) -> bool:
    """Return whether a value is an integer, also as text or as a float: 3, "3", 3.0, "3.0"."""
    if isinstance(value, bool):
        return False
    if isinstance(value, float):
        return value.is_integer()
    return isinstance(value, int) or (isinstance(value, str) and _INTEGER.fullmatch(value) is not None)


def integer(value: Any, where: str) -> int:
    """Read an integer of at most 64 bits, also as text or as a float.

    Raises:
        DatasetError: it is not one.
    """
    if not is_integer(value):
        raise DatasetError(f"{where}: found {short(value)}, expected an integer")
    number = int(value.split(".")[0]) if isinstance(value, str) else int(value)
    if not -(2**63) <= number < 2**63:
        raise DatasetError(f"{where}: found {short(value)}, expected an integer of at most 64 bits")
    return number


def number(value: Any) -> float | None:
    """Read a finite number below 1e9, also as text; None if it is not one."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    # compared before it is converted: an integer may have more digits than a float can hold
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and -_MAX_NUMBER < value < _MAX_NUMBER
    return value if is_number else None


def flag(value: Any, where: str) -> bool | None:
    """Read a flag such as `iscrowd` or `difficult`: 0 and 1, true and false, also as text.

    Returns:
        The flag; None if the value says that it is unknown, as NaN does.

    Raises:
        DatasetError: it is neither true nor false.
    """
    if value is None or isinstance(value, bool):
        return bool(value)
    if isinstance(value, float) and math.isnan(value):
        return None
    text = value.strip().lower() if isinstance(value, str) else str(value)
    if text in _UNKNOWN:
        return None
    if text not in _TRUE | _FALSE:
        raise DatasetError(f"{where}: found {short(value)}, expected 0 or 1")
    return text in _TRUE
