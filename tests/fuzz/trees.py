"""Random changes to documents: trees of dicts and lists, as JSON and YAML files hold them."""

import copy
from collections.abc import Iterator
from random import Random
from typing import Any

from tests.fuzz.values import TEXTS, leaf, tweak

_MAX_PLACES = 20_000
_MAX_REPEATS = 40

# the container and the key or index in it
Place = tuple[Any, Any]


def places(document: Any) -> list[Place]:
    """List all places in a document, nearest to the root first."""
    found: list[Place] = []
    waiting = [document]
    for container in waiting:
        for key, value in _entries(container):
            if len(found) >= _MAX_PLACES:
                return found
            found.append((container, key))
            if isinstance(value, dict | list):
                waiting.append(value)
    return found


def _entries(container: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(container, dict):
        yield from container.items()
    elif isinstance(container, list):
        yield from enumerate(container)


def mutate_tree(document: Any, random: Random, other: Any = None) -> Any:
    """Change a document in a few places.

    Args:
        document: is not changed.
        random: of the changes.
        other: a document of the same kind, of which parts are taken.
    """
    root = {"": copy.deepcopy(document)}
    for _ in range(random.choice([1, 1, 1, 2, 3, 6])):
        known = places(root)
        if not known:
            return None
        container, key = _choose(known, random)
        if key in container if isinstance(container, dict) else key < len(container):
            _CHANGES[random.randrange(len(_CHANGES))](container, key, random, known, other)
    return root.get("")


def _choose(known: list[Place], random: Random) -> Place:
    """Choose a place: as often near the root as at a leaf."""
    return (
        known[random.randrange(len(known))] if random.random() < 0.6 else known[random.randrange(min(len(known), 12))]
    )


def _replace(container: Any, key: Any, random: Random, _known: list[Place], _other: Any) -> None:
    container[key] = leaf(random)


def _tweak(container: Any, key: Any, random: Random, _known: list[Place], _other: Any) -> None:
    container[key] = tweak(container[key], random)


def _delete(container: Any, key: Any, _random: Random, _known: list[Place], _other: Any) -> None:
    del container[key]


def _repeat(container: Any, key: Any, random: Random, _known: list[Place], _other: Any) -> None:
    value = container[key]
    copies = [copy.deepcopy(value) for _ in range(random.choice([1, 1, 2, _MAX_REPEATS]))]
    if isinstance(container, list):
        container[key:key] = copies
    else:
        container[str(random.choice(TEXTS))] = copies[0]


def _wrap(container: Any, key: Any, random: Random, _known: list[Place], _other: Any) -> None:
    value = container[key]
    container[key] = random.choice([[value], {"0": value}, [value, value], {"a": {"b": value}}])


def _unwrap(container: Any, key: Any, random: Random, _known: list[Place], _other: Any) -> None:
    inner = [value for _, value in _entries(container[key])]
    container[key] = random.choice(inner) if inner else leaf(random)


def _copy_here(container: Any, key: Any, random: Random, known: list[Place], other: Any) -> None:
    source = places({"": other}) if other is not None and random.random() < 0.5 else known
    taken, name = random.choice(source)
    try:
        container[key] = copy.deepcopy(taken[name])
    except (KeyError, IndexError):
        container[key] = leaf(random)


def _rename(container: Any, key: Any, random: Random, known: list[Place], _other: Any) -> None:
    if isinstance(container, dict):
        names = [name for place, name in known if isinstance(place, dict)]
        container[random.choice([*TEXTS, *names[:200]])] = container.pop(key)
    else:
        random.shuffle(container)


def _numbers(container: Any, key: Any, random: Random, _known: list[Place], _other: Any) -> None:
    """Make a list of numbers longer, shorter, or of other values."""
    length = random.choice([0, 1, 2, 3, 4, 5, 7, 8, 100])
    container[key] = [random.choice([0, 1, -1, 3, 0.5, 63, 64, 1000, 1e9]) for _ in range(length)]


_CHANGES = [_replace, _replace, _tweak, _tweak, _tweak, _delete, _repeat, _wrap, _unwrap, _copy_here, _rename, _numbers]
