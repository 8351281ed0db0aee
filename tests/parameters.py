"""Parameters of tests of which few are in the quick run."""

from collections.abc import Container, Iterable
from typing import Any

import pytest


def slow_except(fast: Container[Any], values: Iterable[Any]) -> list[Any]:
    """Mark all values as slow that are not among the fast ones."""
    return [value if value in fast else pytest.param(value, marks=pytest.mark.slow) for value in values]
