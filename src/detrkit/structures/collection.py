"""Indexing and summary of collections."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

Position: TypeAlias = int | np.integer  # of one element
Selection: TypeAlias = slice | Sequence[int] | Sequence[bool] | np.ndarray | Tensor  # of several

_MAX_CLASSES = 5  # class names in a summary


def resolve_index(index: Position | Selection, count: int) -> int | Int64[Tensor, "n"]:
    """Convert what stands in square brackets to the index of one element or the indices of several, in 0 .. count - 1.

    Args:
        index: an integer (also as array or tensor without dimensions) for one element; a slice, a boolean mask of length
            `count`, or indices in the desired order for several. Negative indices count from the end.
        count: number of elements.

    Raises:
        IndexError: an index is out of range, or a mask has another length.
        TypeError: indices are not integers.
    """
    if isinstance(index, slice):
        return torch.tensor(range(count)[index], dtype=torch.int64)
    given = torch.as_tensor(index, device="cpu")
    if given.ndim > 1 or (given.is_floating_point() and given.numel()):
        raise TypeError(f"found an index of shape {tuple(given.shape)} and {given.dtype}, expected integers or a mask")
    if given.dtype == torch.bool and given.ndim == 1:
        if len(given) != count:
            raise IndexError(f"found a boolean mask of length {len(given)} for {count} elements")
        return given.nonzero()[:, 0]
    given = given.to(torch.int64)
    if given.numel() and not -count <= int(given.min()) <= int(given.max()) < count:
        raise IndexError(f"found an index from {int(given.min())} to {int(given.max())} for {count} elements")
    given = given % max(count, 1)
    return int(given) if given.ndim == 0 else given


def summary(noun: str, class_names: Iterable[str], size: tuple[int, int] | None) -> str:
    """Summarise a collection, for example ``3 objects: 2 cat, 1 dog; image 480x640``.

    Args:
        noun: singular noun of one element.
        class_names: class of each element.
        size: (height, width) of the image in pixels.
    """
    names = list(class_names)
    total, counts = len(names), Counter(filter(None, names))
    most_common = counts.most_common(_MAX_CLASSES)
    text = f"{total} {noun}{'' if total == 1 else 's'}"
    if most_common:
        text += ": " + ", ".join(f"{number} {name}" for name, number in most_common)
    if len(counts) > _MAX_CLASSES:
        others = counts.total() - sum(number for _, number in most_common)
        text += f", {others} of {len(counts) - _MAX_CLASSES} other classes"
    return text if size is None else f"{text}; image {size[0]}x{size[1]}"
