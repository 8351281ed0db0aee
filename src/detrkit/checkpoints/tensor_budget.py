"""Limits on the tensors of a file: how many, with which names, and how much memory they take when they are copied.

A file can name a byte many times: tensors may share a storage, or repeat it with strides of 0. Weights do so within bounds
(tied heads, a model and the same model in a wrapper), so the copies of all tensors may take `SHARING` times what is stored,
and a fixed amount more, for small files.
"""

import argparse
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from detrkit.checkpoints.inert_types import Inert
from detrkit.errors import CheckpointError

SHARING = 4
ALLOWANCE = 32 * 2**20  # bytes
MAX_NAME = 1000  # characters
_MAX_DEPTH = 64  # of containers in containers


def budget(stored: int) -> int:
    """Return the bytes that the tensors of a file may take when each is copied.

    Args:
        stored: bytes of the file.
    """
    return SHARING * stored + ALLOWANCE


def check_content(content: Any, stored: int, where: object) -> None:
    """Check the content of a file.

    Args:
        content: any nesting of containers, which may contain each other.
        stored: bytes of the file.
        where: the file, for messages.

    Raises:
        CheckpointError: containers are too deep, a name is too long, or copies of the tensors would take too much memory.
    """
    seen: set[int] = set()
    needed = 0
    waiting: list[tuple[Any, int]] = [(content, 0)]
    while waiting:
        value, depth = waiting.pop()
        if isinstance(value, Tensor):
            needed += _bytes_of(value, where)
            continue
        items = _items(value, where)
        if items is None or id(value) in seen:
            continue
        if depth > _MAX_DEPTH:
            raise CheckpointError(
                f"{where}: holds containers in more than {_MAX_DEPTH} levels; save the weights alone: "
                "torch.save(model.state_dict(), 'weights.pth')"
            )
        seen.add(id(value))
        waiting.extend((item, depth + 1) for item in items)
    if needed > budget(stored):
        raise CheckpointError(
            f"{where}: its tensors repeat what is stored and would take {needed:,} bytes, for a file of {stored:,}; save "
            "copies: {name: tensor.clone() for name, tensor in model.state_dict().items()}"
        )


def check_names(names: Iterable[str], where: object) -> None:
    """Check the lengths of names.

    Raises:
        CheckpointError: one is too long.
    """
    longest = max(names, key=len, default="")
    if len(longest) > MAX_NAME:
        raise CheckpointError(
            f"{where}: the name {longest[:40]!r}... has {len(longest):,} characters, expected at most {MAX_NAME:,}"
        )


def _items(value: Any, where: object) -> Iterable[Any] | None:
    """Return what a container holds, or None for other values."""
    if isinstance(value, Mapping):
        check_names((name for name in value if isinstance(name, str)), where)
        return value.values()
    if isinstance(value, list | tuple | set | frozenset):
        return value
    if isinstance(value, argparse.Namespace | Inert):
        return list(vars(value).values())
    return None


def _bytes_of(tensor: Tensor, where: object) -> int:
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_nested or tensor.device.type != "cpu":
        raise CheckpointError(f"{where}: holds a sparse, quantized, nested or meta tensor, expected ordinary ones")
    return tensor.numel() * tensor.element_size()
