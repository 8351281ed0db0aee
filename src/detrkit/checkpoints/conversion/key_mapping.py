"""Renaming of state-dict entries, from one list of rules in both directions.

A rule pairs the beginning of our name with the beginning of theirs; `{n}` stands for a number that both share. What
follows the beginning is kept.
"""

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

from detrkit.errors import CheckpointError

Rule = tuple[str, str]  # (ours, theirs)
_NUMBER = "{n}"


def to_theirs(state: Mapping[str, Tensor], rules: Iterable[Rule]) -> dict[str, Tensor]:
    """Rename our entries to theirs; every entry must have a rule."""
    compiled = [(_compile(ours), theirs) for ours, theirs in rules]
    renamed = {name: _rename(name, compiled) for name in state}
    without_rule = [name for name, new in renamed.items() if new is None]
    assert not without_rule, f"no rule for {without_rule}"
    return {str(renamed[name]): tensor for name, tensor in state.items()}


def to_ours(state: Mapping[str, Tensor], rules: Iterable[Rule]) -> dict[str, Tensor]:
    """Rename their entries to ours.

    Raises:
        CheckpointError: an entry has no counterpart.
    """
    compiled = [(_compile(theirs), ours) for ours, theirs in rules]
    renamed = {name: _rename(name, compiled) for name in state}
    without_rule = [name for name, new in renamed.items() if new is None]
    if without_rule:
        raise CheckpointError(
            f"checkpoint: {len(without_rule)} of {len(state)} entries belong to no part of a DETR, "
            f"first {without_rule[0]!r}; is it a checkpoint of another model?"
        )
    return {str(renamed[name]): tensor for name, tensor in state.items()}


def _compile(beginning: str) -> re.Pattern[str]:
    return re.compile(re.escape(beginning).replace(re.escape(_NUMBER), r"(\d+)"))


def _rename(name: str, rules: list[tuple[re.Pattern[str], str]]) -> str | None:
    for pattern, new_beginning in rules:
        if match := pattern.match(name):
            numbers = iter(match.groups())
            while _NUMBER in new_beginning:
                new_beginning = new_beginning.replace(_NUMBER, next(numbers), 1)
            return new_beginning + name[match.end() :]
    return None
