"""Renaming of state-dict entries by rules that work in both directions.

A rule pairs a prefix of detrkit's name with a prefix of the other name; ``{n}`` stands for a number that both share. The
rest of the name is kept. The first rule that matches is used, so that special rules come before general ones.
"""

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from detrkit.errors import CheckpointError

Rule = tuple[str, str]  # (prefix in detrkit, prefix in the other format)
_NUMBER = "{n}"
_IN_PROJECTIONS = ("query_projection", "key_projection", "value_projection")


def mlp_rules(detrkit: str, other: str, num_layers: int = 2) -> list[Rule]:
    """Return rules for an MLP, whose linear layers are numbered 0, 2, 4 in detrkit and 0, 1, 2 elsewhere."""
    return [(f"{detrkit}{2 * layer}.", f"{other}layers.{layer}.") for layer in range(num_layers)]


def rename_from_detrkit(state: Mapping[str, Tensor], rules: Iterable[Rule]) -> dict[str, Tensor]:
    """Rename detrkit's entries to the other format's.

    Raises:
        CheckpointError: an entry has no counterpart there.
    """
    compiled = [(_compile(detrkit), other) for detrkit, other in rules]
    renamed, unmatched = _rename_all(state, compiled)
    if unmatched:
        raise CheckpointError(
            f"model: {len(unmatched)} of {len(state)} entries have no name in this format, first {unmatched[0]!r}; "
            "convert it to detrkit's own format"
        )
    return renamed


def rename_to_detrkit(state: Mapping[str, Tensor], rules: Iterable[Rule]) -> dict[str, Tensor]:
    """Rename the other format's entries to detrkit's.

    Raises:
        CheckpointError: an entry has no counterpart in detrkit.
    """
    compiled = [(_compile(other), detrkit) for detrkit, other in rules]
    renamed, unmatched = _rename_all(state, compiled)
    if unmatched:
        raise CheckpointError(
            f"checkpoint: {len(unmatched)} of {len(state)} entries belong to no part of a DETR, "
            f"first {unmatched[0]!r}; is it a checkpoint of another model?"
        )
    return renamed


def rename_known_to_detrkit(state: Mapping[str, Tensor], rules: Iterable[Rule]) -> dict[str, Tensor]:
    """Rename the other format's entries to detrkit's, and leave out those without a counterpart."""
    return _rename_all(state, [(_compile(other), detrkit) for detrkit, other in rules])[0]


def without_step_counters(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Drop the step counters of batch norm, which are not used."""
    return {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}


def split_in_proj(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Split `torch.nn.MultiheadAttention`'s ``in_proj_*`` into the query, key and value projections of detrkit."""
    split: dict[str, Tensor] = {}
    for name, tensor in state.items():
        prefix, packed, kind = name.partition("in_proj_")
        if packed:
            thirds = zip(_IN_PROJECTIONS, tensor.chunk(3), strict=True)
            split |= {f"{prefix}{projection}.{kind}": rows for projection, rows in thirds}
        else:
            split[name] = tensor
    return split


def merge_in_proj(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Concatenate query, key and value projections to ``in_proj_*``; the inverse of `split_in_proj`."""
    merged: dict[str, Tensor] = {}
    for name, tensor in state.items():
        attention, _, rest = name.rpartition("attn.")
        projection, _, kind = rest.partition(".")
        if not attention or projection not in _IN_PROJECTIONS:
            merged[name] = tensor
        elif projection == _IN_PROJECTIONS[0]:
            rows = [state[f"{attention}attn.{each}.{kind}"] for each in _IN_PROJECTIONS]
            merged[f"{attention}attn.in_proj_{kind}"] = torch.cat(rows)
    return merged


def _compile(prefix: str) -> re.Pattern[str]:
    return re.compile(re.escape(prefix).replace(re.escape(_NUMBER), r"(\d+)"))


def _rename_all(
    state: Mapping[str, Tensor], rules: list[tuple[re.Pattern[str], str]]
) -> tuple[dict[str, Tensor], list[str]]:
    renamed = {name: _rename(name, rules) for name in state}
    unmatched = [name for name, new in renamed.items() if new is None]
    return {new: state[name] for name, new in renamed.items() if new is not None}, unmatched


def _rename(name: str, rules: list[tuple[re.Pattern[str], str]]) -> str | None:
    for pattern, prefix in rules:
        if match := pattern.match(name):
            for number in match.groups():
                prefix = prefix.replace(_NUMBER, number, 1)
            return prefix + name[match.end() :]
    return None
