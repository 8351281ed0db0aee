"""Audit of the docstrings of the public API: what it takes and what it returns is described."""

import importlib
import inspect
import re
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import detrkit

NAMES = [name for name in detrkit.__all__ if name != "__version__"]
# a summary that says what is returned needs no section of its own
_SAYS_WHAT = re.compile(
    r"(Return|Convert|Compute|List|Select|Sum|Split|Wrap|Load|Make|Copy|Move|Multiply|Add|Resize|Detect|Predict|Upload|"
    r"Collect|Match|Draw|Tell|Describe)\b|True if|.* otherwise"
)


def public_object(name: str) -> Any:
    """Return what a public name means; packages that can be called are their function."""
    if inspect.ismodule(value := getattr(detrkit, name)):
        return getattr(importlib.import_module(f"detrkit.{name}.{name}"), name)
    return value


def functions() -> Iterator[tuple[str, Any]]:
    """Iterate over the public functions, and the public methods and properties of the public classes."""
    for name in NAMES:
        value = public_object(name)
        if not inspect.isclass(value):
            yield name, value
            continue
        for attribute, member in vars(value).items():
            if attribute.startswith("_") or attribute in ("model_config", "model_post_init"):
                continue
            if isinstance(member, property | cached_property):
                yield f"{name}.{attribute}", member
            elif inspect.isroutine(member) or isinstance(member, classmethod | staticmethod):
                yield f"{name}.{attribute}", getattr(member, "__func__", member)


def complaints(name: str, function: Any) -> Iterator[str]:
    """Say what a docstring leaves open."""
    text = inspect.getdoc(function)
    if not text:
        yield f"{name}: no docstring"
        return
    if isinstance(function, property | cached_property):
        return
    function = inspect.unwrap(function)
    section = re.search(r"^Args:\n((?:    .*\n?|\n)*)", text, re.MULTILINE)
    described = set(re.findall(r"^    \*{0,2}(\w+(?:, \w+)*):", section[1], re.MULTILINE)) if section else set()
    described = {one for group in described for one in group.split(", ")} | set(re.findall(r"`(\w+)`", text))
    if name.startswith("Callback."):
        described |= set(re.findall(r"`(\w+)`", inspect.getdoc(detrkit.Callback) or ""))  # once, for all events
    signature = inspect.signature(function)
    taken = [one for one in signature.parameters if one not in ("self", "cls")]
    yield from (f"{name}: {one} is not described" for one in taken if one not in described)
    returns = str(signature.return_annotation).strip("'\"")
    returns_nothing = returns in ("None", "NoReturn", "typing.NoReturn", str(inspect.Signature.empty))
    has_section = re.search(r"^(Returns|Yields):$", text, re.MULTILINE)
    is_method = "." in name
    if not returns_nothing and not has_section and not (is_method and _SAYS_WHAT.match(text)):
        yield f"{name}: what it returns is not described"
