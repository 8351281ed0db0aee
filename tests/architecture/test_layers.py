"""The house: who may import whom, and what must stay light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "detrkit"

LAYER = {
    "_version": 0, "ops": 0, "config": 0, "errors": 0, "_internal": 0,
    "structures": 1, "distributed": 1,
    "data": 2, "models": 2, "losses": 2, "postprocess": 2,
    "checkpoints": 3, "visualization": 3,
    "inference": 4,
    "evaluation": 5,
    "training": 6,
    "export": 7, "explain": 7,
    "benchmark": 8, "serve": 8, "demo": 8,
    "cli": 9, "__main__": 9,
}  # fmt: skip
ALLOWED: set[tuple[str, str]] = set()


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def imports() -> list[tuple[str, str, Path]]:
    found = []
    for path in SOURCE.rglob("*.py"):
        own = path.relative_to(SOURCE).parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(path.read_text())):
            modules = []
            if isinstance(node, ast.ImportFrom) and node.module:
                modules = [node.module]
            elif isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            found += [(own, room(module), path) for module in modules if module.startswith("detrkit.")]
    return found


def test_every_room_has_a_layer() -> None:
    rooms = {path.relative_to(SOURCE).parts[0].removesuffix(".py") for path in SOURCE.rglob("*.py")} - {"__init__"}
    assert rooms == set(LAYER)


def test_imports_only_point_down() -> None:
    wrong = [
        f"{path.name}: {own} imports {other}"
        for own, other, path in imports()
        if own not in ("__init__", other) and (own, other) not in ALLOWED and LAYER[own] < LAYER[other]
    ]
    assert not wrong


def test_rooms_that_make_the_model_never_import_each_other() -> None:
    apart = {"data", "models", "losses", "postprocess"}
    wrong = [
        f"{path}: {own} imports {other}" for own, other, path in imports() if {own, other} <= apart and own != other
    ]
    assert not wrong


@pytest.mark.parametrize("statement", ["import detrkit", "from detrkit.cli import build_app; build_app()"])
def test_torch_is_not_loaded_before_it_is_needed(statement: str) -> None:
    code = f"{statement}; import sys; print([m for m in ('torch', 'matplotlib', 'scipy') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_every_public_name_can_be_loaded() -> None:
    import detrkit

    assert all(getattr(detrkit, name) is not None for name in detrkit.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = detrkit.nothing
