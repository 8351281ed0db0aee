"""All benchmark scripts can be imported: the names that they use exist."""

from importlib import import_module
from pathlib import Path

import pytest

import benchmarks

SCRIPTS = sorted(path.stem for path in Path(benchmarks.__path__[0]).glob("*.py"))


@pytest.mark.parametrize("name", SCRIPTS)
def test_script_has_a_main_function_and_a_command_in_its_docstring(name: str) -> None:
    script = import_module(f"benchmarks.{name}")
    assert callable(script.main)
    assert f"python -m benchmarks.{name}" in str(script.__doc__)
