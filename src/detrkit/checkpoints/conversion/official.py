"""Checkpoints in the format of an architecture's authors: state dicts and ``.pth`` files."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from detrkit._internal.files import atomic_write
from detrkit.checkpoints.containers import select_weights
from detrkit.checkpoints.conversion.architectures import (
    WITH_MASKS,
    Architecture,
    architecture_of_config,
    architecture_of_model,
)
from detrkit.checkpoints.conversion.registry import OFFICIAL, official_conversion
from detrkit.checkpoints.native import Checkpoint
from detrkit.checkpoints.state_dict import LoadReport, load_state_dict
from detrkit.config.model import ModelConfig
from detrkit.errors import CheckpointError, arg
from detrkit.models.detr import DETR


def load_official_state_dict(model: DETR, state_dict: Mapping[str, Any]) -> LoadReport:
    """Load weights in the names of an architecture's authors into a model.

    Args:
        model: of the same shape.
        state_dict: the authors' entries, or a whole training checkpoint that holds them, with or without prefixes of
            wrappers such as "module.".

    Returns:
        The names of the entries that were loaded.

    Raises:
        CheckpointError: entries are missing, unknown, or of another shape.
    """
    weights, _ = select_weights(state_dict, "state_dict")
    return load_state_dict(model, official_to_detrkit(weights.tensors))


def state_dict_as_official(model: DETR) -> dict[str, Tensor]:
    """Return a copy of a model's weights in the names of its architecture's authors.

    The inverse of `load_official_state_dict`.

    Args:
        model: of an architecture that has authors' code.

    Returns:
        Copies of the weights, by the authors' names.

    Raises:
        CheckpointError: an entry has no counterpart in their code.
    """
    state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    return official_from_detrkit(state, model.config)


def official_from_detrkit(state: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Rename detrkit's entries to the official ones of their architecture.

    Args:
        state: entries in detrkit's names.
        config: of their model.
    """
    conversion = OFFICIAL[architecture_of_model(state, config)]
    return {**conversion.from_detrkit(state), **conversion.computed_entries(config)}


def official_to_detrkit(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename official entries of any architecture to detrkit's.

    Raises:
        CheckpointError: they are not official entries, or one has no counterpart.
    """
    conversion = official_conversion(state)
    if conversion is None:
        first = next(iter(state), "none")
        raise CheckpointError(
            f"state_dict: has entries such as {first!r}, expected those of one of {', '.join(OFFICIAL)}"
        )
    return conversion.to_detrkit(state)


def read_official(state: Mapping[str, Tensor], args: Any) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Read an official checkpoint.

    Args:
        state: its weights.
        args: its training arguments, a mapping or an `argparse.Namespace`; anything else is ignored.

    Returns:
        The weights in detrkit's names, and the fields of `ModelConfig` that the arguments hold; None if the entries are
        not official.
    """
    conversion = official_conversion(state)
    if conversion is None:
        return None
    args = vars(args) if isinstance(args, argparse.Namespace) else args
    fields = conversion.fields_from_args(args) if isinstance(args, Mapping) else {}
    return conversion.to_detrkit(state), {**conversion.fields_from_state(state), **fields}


def write_official_file(path: Path, checkpoint: Checkpoint) -> None:
    """Write a ``.pth`` file as the official training code does, atomically; it loads with ``weights_only=True``.

    Raises:
        CheckpointError: the official code has no such model.
    """
    config = checkpoint.config
    conversion = OFFICIAL[official_architecture(config)]
    entries = {**conversion.from_detrkit(checkpoint.state), **conversion.computed_entries(config)}
    content = {"model": entries, "args": conversion.args_from_config(config)}
    with atomic_write(path) as temporary:
        torch.save(content, temporary)


def official_architecture(config: ModelConfig) -> Architecture:
    """Return the architecture of a model that official code can hold.

    Raises:
        CheckpointError: no official code has such a model.
    """
    advice = f"use {arg('to', 'detrkit')}"
    architecture = architecture_of_config(config)
    if not config.has_published_backbone:
        raise CheckpointError(
            f"the model uses backbone {config.backbone!r}, which the official code does not support; {advice}"
        )
    if architecture is None or (config.mask_head and architecture not in WITH_MASKS):
        raise CheckpointError(
            "the model's combination of attention, queries, heads and masks is not a published architecture; " + advice
        )
    if not config.has_published_positions:
        raise CheckpointError(
            "the model adds position encodings elsewhere than at every attention, which the official code does not "
            f"support; {advice}"
        )
    return architecture
