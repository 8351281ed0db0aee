"""Parsing of JSON and YAML from untrusted files: whatever is wrong with them is a `ValueError`."""

import json
from typing import Any

import yaml

_MAX_NODES = 1_000_000  # of a YAML document, in which a kilobyte of aliases can stand for any number
_MAX_BITS = 4096  # of an integer; Python writes at most 4300 digits


def parse_json(text: str | bytes) -> Any:
    """Parse JSON.

    Raises:
        ValueError: it is malformed, is not UTF-8, or is nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def parse_yaml(text: str, loader: type[yaml.SafeLoader] = yaml.SafeLoader) -> Any:
    """Parse YAML; tags that would create objects are refused.

    Args:
        text: one document.
        loader: PyYAML's, or one derived from it.

    Raises:
        ValueError: it is malformed, nested too deeply, or too large when its aliases are expanded; the message is one line.
    """
    try:
        content = yaml.load(text, Loader=loader)  # noqa: S506  (a SafeLoader)
        _count_nodes(content, {})
        return content
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    # PyYAML's own errors, and those of its constructors on malformed scalars with a tag: !!bool x, !!int '', !!timestamp x
    except (yaml.YAMLError, ValueError, KeyError, IndexError, AttributeError, TypeError, OverflowError) as error:
        reason = (
            " ".join(str(error).split())
            if isinstance(error, yaml.YAMLError | ValueError)
            else "a value does not fit its tag"
        )
        raise ValueError(reason[:200]) from None


def _count_nodes(content: Any, counts: dict[int, int]) -> int:
    """Count the values of a document as if nothing was shared.

    Args:
        content: the document.
        counts: numbers of values by the ids of the containers that were seen; 0 in one that is being counted.

    Raises:
        ValueError: there are too many, it contains itself, or an integer is too large.
    """
    if isinstance(content, int) and content.bit_length() > _MAX_BITS:
        raise ValueError("a number has too many digits")
    if not isinstance(content, dict | list | tuple | set):
        return 1
    if id(content) not in counts:
        counts[id(content)] = 0
        parts = [*content, *content.values()] if isinstance(content, dict) else content
        counts[id(content)] = 1 + sum(_count_nodes(part, counts) for part in parts)
    count = counts[id(content)]
    if not count:
        raise ValueError("it contains itself")
    if count > _MAX_NODES:
        raise ValueError("its aliases stand for too many values")
    return count
