"""Text files are opened with an encoding: the default of Windows is that of the country."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = [path for folder in ("src", "benchmarks", "examples") for path in sorted((ROOT / folder).rglob("*.py"))]


def faults(source: str) -> list[int]:
    """Return the lines of calls that open a text file, or read a process's output as text, without an encoding."""
    return [node.lineno for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call) and lacks_encoding(node)]


def lacks_encoding(call: ast.Call) -> bool:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    owner = call.func.value.id if isinstance(call.func, ast.Attribute) and isinstance(call.func.value, ast.Name) else ""
    keywords = {keyword.arg: keyword.value for keyword in call.keywords}
    if "encoding" in keywords or None in keywords:
        return False
    if name in ("run", "Popen", "check_output") and owner == "subprocess":
        return "text" in keywords or "universal_newlines" in keywords
    if name in ("read_text", "write_text"):  # methods; `_internal.files.write_text` writes UTF-8
        return isinstance(call.func, ast.Attribute) and len(call.args) <= (name == "write_text")
    return name in ("open", "fdopen") and opens_text(call, name, owner, keywords)


def opens_text(call: ast.Call, name: str, owner: str, keywords: dict[str | None, ast.expr]) -> bool:
    if owner == "os" and name == "open":
        return False
    is_function = isinstance(call.func, ast.Name) or name == "fdopen"
    mode = keywords.get("mode", call.args[is_function] if len(call.args) > is_function else None)
    if mode is None:  # `open` of other classes takes what it opens first
        return is_function or not (call.args or call.keywords)
    return isinstance(mode, ast.Constant) and "b" not in str(mode.value)


@pytest.mark.parametrize(
    ("code", "is_fault"),
    [
        ("open('a')", True),
        ("open('a', 'w')", True),
        ("open('a', 'rb')", False),
        ("open('a', encoding='utf-8')", False),
        ("path.open()", True),
        ("path.open('rb')", False),
        ("path.read_text()", True),
        ("path.write_text('x')", True),
        ("path.write_text('x', encoding='utf-8')", False),
        ("write_text(path, 'x')", False),
        ("subprocess.run(['a'], text=True)", True),
        ("subprocess.run(['a'])", False),
        ("os.fdopen(1)", True),
        ("os.fdopen(1, 'wb')", False),
        ("os.open('a', os.O_RDONLY)", False),
        ("Image.open(file)", False),
        ("package.joinpath('a').read_text('utf-8')", False),
    ],
)
def test_calls_without_an_encoding_are_found(code: str, is_fault: bool) -> None:
    assert bool(faults(code)) == is_fault


def test_every_text_file_is_opened_with_an_encoding() -> None:
    found = [f"{path.relative_to(ROOT)}:{line}" for path in FILES for line in faults(path.read_text(encoding="utf-8"))]
    assert found == []
