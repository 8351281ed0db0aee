"""Classes as callers write them: names of a model's classes, and selections among them."""

import numbers
from collections.abc import Iterable, Mapping, Set
from typing import Any, TypeAlias

from detrkit.data.categories import Categories, default_categories
from detrkit.errors import ConfigError, arg, did_you_mean, short

ClassFilter: TypeAlias = Any  # str | int | Iterable[str | int] | None; anything else is refused with a sentence
_EXPECTED = "expected one name per class in a list, or a dict {id: name}"


def as_categories(categories: Any, num_classes: int) -> Categories:
    """Return the categories of a model.

    Args:
        categories: None for numbers; `Categories`; names in the order of the labels; {id: name}, ordered by id; COCO's list
            of categories. A dict whose ids are all labels may leave some out, which are numbered.
        num_classes: of the model.

    Raises:
        ConfigError: it is something else, or has another number of classes.
    """
    if categories is None:
        return default_categories(num_classes)
    if isinstance(categories, Mapping):
        result = _of_mapping(categories, num_classes)
    elif isinstance(categories, Categories):
        result = categories
    else:
        result = _of_iterable(categories)
    if len(result) != num_classes:
        raise ConfigError(
            f"{arg('categories')}: found {len(result)} categories for a model with {num_classes} classes; pass one "
            "category per class"
        )
    return result


def _of_mapping(categories: Mapping[Any, Any], num_classes: int) -> Categories:
    pairs = list(categories.items())
    if pairs and all(isinstance(key, str) and _integer(value) is not None for key, value in pairs):
        pairs = [(value, key) for key, value in pairs]  # {name: id}
    name_of_id: dict[int, str] = {}
    for key, name in pairs:
        number = _integer(key)
        if number is None or not isinstance(name, str) or number in name_of_id:
            raise ConfigError(f"{arg('categories')}: found the entry {short(key)}: {short(name)}, {_EXPECTED}")
        name_of_id[number] = name
    labels = range(num_classes)
    if len(name_of_id) < num_classes and all(number in labels for number in name_of_id):
        numbered = zip(labels, default_categories(num_classes).names, strict=True)
        name_of_id = {label: name_of_id.get(label, name) for label, name in numbered}
    return Categories(tuple(sorted(name_of_id)), tuple(name_of_id[number] for number in sorted(name_of_id)))


def _of_iterable(categories: Any) -> Categories:
    if isinstance(categories, str | bytes) or not isinstance(categories, Iterable) or isinstance(categories, Set):
        raise ConfigError(f"{arg('categories', categories)} are not the names of classes; {_EXPECTED}")
    entries = list(categories)
    if entries and all(isinstance(entry, Mapping) for entry in entries):
        try:
            return Categories.from_json(entries)
        except ValueError as error:
            raise ConfigError(f"{arg('categories')}: {error}; {_EXPECTED}") from None
    for entry in entries:
        if not isinstance(entry, str):
            raise ConfigError(f"{arg('categories')}: found {short(entry)} ({type(entry).__name__}), {_EXPECTED}")
    return Categories(tuple(range(len(entries))), tuple(map(str, entries)))


def select_labels(classes: Any, categories: Categories) -> frozenset[int] | None:
    """Return the labels of some classes; None (all classes) stays None.

    Args:
        classes: a name, several separated by commas, a category id, or any iterable of names and category ids.
        categories: of the model.

    Raises:
        ConfigError: there is no such class, or none is selected.
    """
    if classes is None:
        return None
    if isinstance(classes, str):
        chosen: list[Any] = split_names(classes, categories.names)
    elif _integer(classes) is not None:
        chosen = [classes]
    elif isinstance(classes, Iterable) and not isinstance(classes, Mapping | bytes):
        chosen = list(classes)
    else:
        raise ConfigError(
            f"{arg('classes', classes)} selects no classes; pass names or category ids, as ['cat', 'dog']"
        )
    if not chosen:
        raise ConfigError(f"{arg('classes', classes)} selects no class; omit it for all classes")
    return frozenset(label for one in chosen for label in _labels_of(one, categories))


def split_names(text: str, known: tuple[str, ...]) -> list[str]:
    """Split names that are separated by commas; a name that contains a comma is recognised among the known ones."""
    if text in known:
        return [text]
    return [name.strip() for name in text.split(",") if name.strip()]


def _labels_of(one: Any, categories: Categories) -> list[int]:
    """Return the labels of one name, which several classes may have, or of one category id."""
    number = None if isinstance(one, str) else _integer(one)
    known: tuple[object, ...] = categories.names if isinstance(one, str) else categories.ids
    target = str(one) if isinstance(one, str) else number
    labels = [label for label, other in enumerate(known) if other == target]
    if labels:
        return labels
    if isinstance(one, str):
        advice = did_you_mean(one, categories.names)
    else:
        advice = f"its category ids are {short(list(categories.ids))}"
    raise ConfigError(f"{arg('classes', one)} is not a class of this model; {advice}")


def _integer(value: Any) -> int | None:
    """Return a whole number, which JSON and arrays hold in several types; None for anything else."""
    if isinstance(value, str) and value.strip().isdecimal():
        return int(value)
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        return None
    return int(value)
