"""Dependency rules of the packages, and what must not be imported early."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from detrkit.cli import COMMANDS

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
# Detections.draw() is part of the public contract; it imports the drawing code when it is called
ALLOWED = {("structures", "visualization")}


def package_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def imports(path: Path) -> Iterator[str]:
    """Names of detrkit's modules that a file imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "detrkit":
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("detrkit."))


def package_imports() -> set[tuple[str, str, str]]:
    found = set()
    for path in SOURCE.rglob("*.py"):
        package = path.relative_to(SOURCE).parts[0].removesuffix(".py")
        if package == "__init__":
            continue  # lists the public names of all packages, which are imported on first use
        for module in imports(path):
            if (other := package_of(module)) in LAYER and other != package:
                found.add((package, other, path.relative_to(SOURCE).as_posix()))
    return found


def test_every_package_has_a_layer() -> None:
    packages = {path.relative_to(SOURCE).parts[0].removesuffix(".py") for path in SOURCE.rglob("*.py")} - {"__init__"}
    assert packages == set(LAYER)


def test_imports_only_point_down() -> None:
    upward = [
        f"{path}: {package} imports {other}"
        for package, other, path in sorted(package_imports())
        if (package, other) not in ALLOWED and LAYER[package] < LAYER[other]
    ]
    assert not upward


def test_data_models_losses_and_postprocess_never_import_each_other() -> None:
    separate = {"data", "models", "losses", "postprocess"}
    wrong = [
        f"{path}: {package} imports {other}"
        for package, other, path in package_imports()
        if {package, other} <= separate
    ]
    assert not wrong


def test_packages_import_each_other_without_cycles() -> None:
    graph: dict[str, set[str]] = {}
    for package, other, _ in package_imports():
        if (package, other) not in ALLOWED:
            graph.setdefault(package, set()).add(other)
    assert list(TopologicalSorter(graph).static_order())  # raises CycleError if there is one


def test_modules_import_each_other_without_cycles() -> None:
    modules = {}
    for path in SOURCE.rglob("*.py"):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        modules[".".join(("detrkit", *(parts[:-1] if parts[-1] == "__init__" else parts)))] = path
    graph = {}
    for name, path in modules.items():
        tree = ast.parse(path.read_text())
        at_top = ast.Module([node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)], [])
        targets = set()
        for node in at_top.body:
            if isinstance(node, ast.ImportFrom) and node.module:
                names = {f"{node.module}.{alias.name}" for alias in node.names} & modules.keys()
                targets |= names or ({node.module} & modules.keys())
            elif isinstance(node, ast.Import):
                targets |= {alias.name for alias in node.names} & modules.keys()
        graph[name] = targets - {name}
    assert list(TopologicalSorter(graph).static_order())


def loaded_by(code: str, *arguments: str) -> list[str]:
    """Heavy modules that are imported after some code has run in a fresh interpreter."""
    heavy = ("torch", "torchvision", "matplotlib", "scipy", "transformers", "onnxruntime", "openvino")
    report = f"import sys; print('LOADED', *(name for name in {heavy} if name in sys.modules))"
    program = f"try:\n    {code}\nexcept SystemExit:\n    pass\n{report}"
    result = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True)
    return result.stdout.rpartition("LOADED")[2].split()


def test_importing_detrkit_loads_nothing_heavy() -> None:
    assert loaded_by("import detrkit") == []


def test_help_loads_nothing_heavy() -> None:
    assert loaded_by("from detrkit.cli import main; main(['--help'])") == []


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_loads_nothing_heavy(command: str) -> None:
    assert loaded_by(f"from detrkit.cli import main; main(['{command}', '--help'])") == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("train", "nowhere"),
        ("evaluate", "nowhere.safetensors", "nowhere"),
        ("predict", "nowhere.safetensors", "nowhere.jpg"),
        ("explain", "nowhere.safetensors", "nowhere.jpg"),
        ("serve", "nowhere.safetensors"),
        ("doctor", "nowhere"),
        ("export", "nowhere.safetensors", "--format", "onnx"),
        ("convert", "nowhere.pth", "out", "--to", "huggingface"),
        ("convert-data", "nowhere", "out", "--to", "yolo"),
        ("shard", "nowhere", "out"),
        ("benchmark", "nowhere.safetensors"),
        ("describe", "nowhere.safetensors"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_wrong_paths_are_reported_before_anything_heavy_is_loaded(arguments: tuple[str, ...]) -> None:
    assert loaded_by("import sys; from detrkit.cli import main; main(sys.argv[1:])", *arguments) == []


LOAD_AND_PREDICT = """
import sys, torch, detrkit
from detrkit.checkpoints.native import Checkpoint, Preprocessing, save_checkpoint
from detrkit.data.synthetic import SHAPES
from pathlib import Path

for name in ("detr-tiny", "detrkit-s", "detrkit-m"):
    model = detrkit.build_model(name, num_classes=len(SHAPES))
    path = Path(sys.argv[1], f"{name}.safetensors")
    save_checkpoint(path, Checkpoint(model.state_dict(), model.config, SHAPES, Preprocessing(image_size=64)))
    detrkit.Detector.load(path).predict(torch.zeros(3, 64, 64, dtype=torch.uint8))
print("LOADED", *(name for name in ("torchvision", "torch._dynamo", "matplotlib", "transformers") if name in sys.modules))
"""


@pytest.mark.slow
def test_loading_a_model_and_predicting_loads_neither_torchvision_nor_the_compiler(tmp_path: Path) -> None:
    # torchvision and torch._dynamo, which it imports, take several seconds
    program = [sys.executable, "-c", LOAD_AND_PREDICT, str(tmp_path)]
    result = subprocess.run(program, capture_output=True, text=True, check=True)
    assert result.stdout.rpartition("LOADED")[2].split() == []


def test_every_public_name_can_be_loaded() -> None:
    import detrkit

    assert all(getattr(detrkit, name) is not None for name in detrkit.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = detrkit.nothing
