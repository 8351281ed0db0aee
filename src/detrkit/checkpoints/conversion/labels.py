"""Class names of Hugging Face's ``config.json``, as people write them.

``id2label`` may start from 1, have gaps, repeat names, hold placeholders such as "LABEL_0", or be written the wrong way
round. A name belongs to the row of the class head with its id; rows without a name are numbered.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from detrkit.data.categories import COCO_NAMES, Categories

_PLACEHOLDER = re.compile(r"LABEL_\d+", re.IGNORECASE)
_UNUSED = "N/A"  # name of the unused rows of models trained on COCO's category ids


def read_categories(content: Mapping[str, Any], num_classes: int, where: object) -> tuple[Categories | None, list[str]]:
    """Read the categories of a model.

    Args:
        content: of ``config.json``.
        num_classes: rows of the class head, without "no object".
        where: the file, for notes.

    Returns:
        The categories, None if no row has a name; and what a user should know of them.
    """
    given = _names_by_id(content)
    names = {label: name for label, name in given.items() if 0 <= label < num_classes}
    if not names:
        return None, list(_note_outside(given, names, num_classes, where))
    numbered = [label for label in range(num_classes) if label not in names]
    complete = tuple(names.get(label, f"class {label}") for label in range(num_classes))
    notes = list(_note_outside(given, names, num_classes, where))
    if numbered:
        notes.append(
            f"{where}: id2label has no name for {_listed(numbered)} of {num_classes} classes, which "
            f"{'is' if len(numbered) == 1 else 'are'} called by number"
        )
    counts = Counter(complete)
    repeated = sorted({name for name in names.values() if counts[name] > 1 and name != _UNUSED})
    if repeated:
        notes.append(f"{where}: id2label gives the name {repeated[0]!r} to several classes; only their ids differ")
    return Categories(_category_ids(content, num_classes, complete), complete), notes


def _names_by_id(content: Mapping[str, Any]) -> dict[int, str]:
    for key in ("id2label", "label2id"):
        entries = content.get(key)
        if isinstance(entries, list):
            entries = dict(enumerate(entries))
        if not isinstance(entries, dict) or not entries:
            continue
        named = dict(_pairs(entries))
        if not named:  # names and ids the wrong way round, or label2id
            named = dict(_pairs({value: name for name, value in entries.items() if isinstance(value, int | str)}))
        if named:
            return {label: name for label, name in named.items() if not _PLACEHOLDER.fullmatch(name)}
    return {}


def _pairs(entries: Mapping[Any, Any]) -> Iterator[tuple[int, str]]:
    for label, name in entries.items():
        if re.fullmatch(r"\s*\d{1,9}\s*", str(label)) and name is not None and str(name).strip():
            yield int(label), str(name)


def _category_ids(content: Mapping[str, Any], num_classes: int, names: tuple[str, ...]) -> tuple[int, ...]:
    """Return the ids of the dataset, which detrkit writes in addition, those of COCO by the names, or the rows."""
    ids = content.get("detrkit_category_ids")
    if ids is None and names == tuple(COCO_NAMES.values()):  # annotations of COCO have its own ids
        return tuple(COCO_NAMES)
    if not isinstance(ids, list) or len(set(map(str, ids))) != num_classes or not all(type(one) is int for one in ids):
        return tuple(range(num_classes))
    return tuple(ids)


def _note_outside(given: Mapping[int, str], names: Mapping[int, str], count: int, where: object) -> Iterator[str]:
    outside = [label for label in given if label not in names]
    if outside:
        listed = ", ".join(f"{label} ({given[label]})" for label in outside[:5]) + (", ..." if len(outside) > 5 else "")
        yield f"{where}: id2label names ids that the model does not have, as it has 0 to {count - 1}: {listed}"


def _listed(labels: list[int]) -> str:
    return ", ".join(map(str, labels[:10])) + (f" and {len(labels) - 10} more" if len(labels) > 10 else "")
