"""The library returns results: printing and the names of flags belong to the command line alone."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "src" / "detrkit"
FLAG = re.compile(r"(?<![\w\-!<(])--[a-z][a-z0-9-]*(?![\w-]*\s*:)")  # not CSS variables or HTML comments


def library_files() -> list[Path]:
    return [
        path for path in sorted(SOURCE.rglob("*.py")) if path.relative_to(SOURCE).parts[0] not in ("cli", "__main__.py")
    ]


def imported_packages(node: ast.AST) -> list[str]:
    if isinstance(node, ast.ImportFrom):
        return [(node.module or "").split(".")[0]]
    return [alias.name.split(".")[0] for alias in node.names] if isinstance(node, ast.Import) else []


def prints(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            yield f"{node.lineno}: calls print"
        elif "rich" in imported_packages(node):
            yield f"{node.lineno}: imports rich"
        elif isinstance(node, ast.Attribute) and ast.unparse(node) in ("sys.stdout", "sys.stderr"):
            yield f"{node.lineno}: uses {ast.unparse(node)}"


def flags(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from (f"{node.lineno}: names {flag}" for flag in FLAG.findall(node.value))


def test_the_search_finds_what_it_looks_for() -> None:
    tree = ast.parse('import sys\nfrom rich.console import Console\nprint("give --weights", file=sys.stderr)\n')
    assert len(list(prints(tree))) == 3
    assert list(flags(tree)) == ["3: names --weights"]
    assert list(flags(ast.parse('"color: var(--ink); --ink: black; <!-- note -->"'))) == []


def test_library_prints_nothing() -> None:
    wrong = [
        f"{path.relative_to(SOURCE)}:{line}" for path in library_files() for line in prints(ast.parse(path.read_text()))
    ]
    assert not wrong, "\n".join(wrong)


def test_library_names_no_command_line_flags() -> None:
    wrong = [
        f"{path.relative_to(SOURCE)}:{line}" for path in library_files() for line in flags(ast.parse(path.read_text()))
    ]
    assert not wrong, "\n".join(wrong)
