"""Classes of a model found in a dataset: by name, and by id only where a name is missing.

Tools number the same classes differently: from 0 or from 1, alphabetically, or only those that occur in a folder.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from detrkit.data.categories import Categories
from detrkit.data.dataset import Split
from detrkit.errors import DatasetError, did_you_mean

# names that stand for a number: of a checkpoint without names, of Hugging Face, of unused ids, of a bare YOLO folder
_PLACEHOLDER = re.compile(r"((class|label|category|id)?[\s_-]*\d+)?|n/?a", re.IGNORECASE)


@dataclass(frozen=True)
class ClassMatch:
    """Labels of a dataset in terms of a model.

    Attributes:
        categories: the model's labels with the dataset's ids; classes that the dataset does not have keep their own id,
            or get an unused one.
        labels: model label of every label of the dataset; -1 for classes without objects that the model does not have.
    """

    categories: Categories
    labels: tuple[int, ...]

    def model_ids(self, model: Categories) -> dict[int, int]:
        """Map the ids in `categories` to those of the model."""
        return dict(zip(self.categories.ids, model.ids, strict=True))


def match_classes(
    model: Categories,
    data: Categories,
    source: Path,
    verb: str = "evaluate",
    used: Collection[int] | None = None,
) -> ClassMatch:
    """Find the classes of a dataset among those of a model.

    Names are compared as they are, then without regard to capitals, spaces, hyphens and underscores. A class whose name is
    missing in the dataset or in the model is identified by its id.

    Args:
        model: categories of the model.
        data: categories of the dataset.
        source: of the dataset, for messages.
        verb: what is done with the data, for messages.
        used: labels of the dataset that have objects; None if all may have.

    Raises:
        DatasetError: the model does not have a class with objects, or two classes are one of the model's.
    """
    label_of_id = {number: label for label, number in enumerate(model.ids)}
    exact, similar = _by_name(model, str), _by_name(model, _normalized)
    labels: list[int] = []
    for label, (number, name) in enumerate(zip(data.ids, data.names, strict=True)):
        own = label_of_id.get(number, -1)
        candidates = exact.get(name) or similar.get(_normalized(name)) or []
        if own in candidates or len(candidates) == 1:
            found = own if own in candidates else candidates[0]
        else:
            is_by_id = own >= 0 and (is_placeholder(name) or is_placeholder(model.names[own]))
            found = own if is_by_id else -1
        if found < 0 and (used is None or label in used):
            raise DatasetError(_unknown_class(model, number, name, source, verb))
        labels.append(found)
    _check_distinct(labels, model, data, source)
    return ClassMatch(_with_ids_of(model, data, labels), tuple(labels))


def match_split(model: Categories, split: Split, verb: str = "evaluate") -> ClassMatch:
    """Find the classes of a split among those of a model; classes without objects may be missing there.

    Raises:
        DatasetError: as `match_classes`.
    """
    used = frozenset(np.unique(split.records.arrays.labels.numpy()).tolist())
    return match_classes(model, split.categories, split.source, verb, used)


def is_placeholder(name: str) -> bool:
    """Return whether a class name says no more than its number: empty, "7", "class 7", "LABEL_7", "N/A"."""
    return _PLACEHOLDER.fullmatch(name.strip()) is not None


def _normalized(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()


def _by_name(model: Categories, key: Callable[[str], str]) -> dict[str, list[int]]:
    labels: dict[str, list[int]] = defaultdict(list)
    for label, name in enumerate(model.names):
        labels[key(name)].append(label)
    return labels


def _unknown_class(model: Categories, number: int, name: str, source: Path, verb: str) -> str:
    named = [one for one in model.names if not is_placeholder(one)]
    if is_placeholder(name) or not named:
        return (
            f"{source}: category {number} ({name}) is not one of the model's {len(model)} categories; {verb} on data with "
            "the categories of the training data"
        )
    return (
        f"{source}: class {name!r} (id {number}) is not one of the model's {len(model)} classes; "
        f"{did_you_mean(name, named)} rename it, or {verb} on data with the classes of the training data"
    )


def _check_distinct(labels: list[int], model: Categories, data: Categories, source: Path) -> None:
    first: dict[int, int] = {}
    for label, found in enumerate(labels):
        if found >= 0 and first.setdefault(found, label) != label:
            one, other = data.names[first[found]], data.names[label]
            raise DatasetError(
                f"{source}: classes {one!r} and {other!r} are both the model's class {model.names[found]!r}; merge them"
            )


def _with_ids_of(model: Categories, data: Categories, labels: list[int]) -> Categories:
    """Return the model's categories with the ids of the data."""
    id_of_label = {found: number for number, found in zip(data.ids, labels, strict=True) if found >= 0}
    taken = {*data.ids}
    unused = _unused_ids({*data.ids, *model.ids})
    ids = (
        id_of_label[label] if label in id_of_label else own if own not in taken else next(unused)
        for label, own in enumerate(model.ids)
    )
    return Categories(tuple(ids), model.names, model.is_thing)


def _unused_ids(known: set[int]) -> Iterator[int]:
    number = max(known, default=0)
    while True:
        number += 1
        yield number
