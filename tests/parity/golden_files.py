"""Files of golden numbers in ../shared/golden/modern, and the modules that draw their weights and images."""

import importlib.util
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np


@cache
def load_formula(shared: Path, name: str) -> ModuleType:
    """Return a module that draws weights, images and targets by their names, such as "formula_modern"."""
    spec = importlib.util.spec_from_file_location(name, shared / f"golden/modern/{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read_golden(shared: Path, name: str) -> Mapping[str, Any]:
    """Return the arrays of a golden file."""
    content: Mapping[str, Any] = np.load(shared / f"golden/modern/{name}.npz")
    return content
