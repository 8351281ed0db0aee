"""Weights made to fit a model of another shape."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from detrkit.data.categories import Categories
from detrkit.errors import CheckpointError
from detrkit.models.detr import DETR

FIRST_CONVOLUTION = "backbone.body.conv1.weight"


def with_channels(state: Mapping[str, Tensor], in_channels: int, name: str = FIRST_CONVOLUTION) -> dict[str, Tensor]:
    """Make the first convolution read another number of channels; nothing else changes.

    Args:
        state: weights of a model or of its backbone.
        in_channels: that the model reads.
        name: of the first convolution's weights.
    """
    adapted = dict(state)
    if name in adapted and adapted[name].ndim == 4 and adapted[name].shape[1] != in_channels:
        adapted[name] = adapt_first_convolution(adapted[name], in_channels)
    return adapted


def adapt_first_convolution(weight: Float[Tensor, "D C h w"], in_channels: int) -> Float[Tensor, "D _ h w"]:
    """Spread filters over another number of channels, so that what they add up to keeps about its size.

    Channels that both have keep their filters, new ones get the mean filter, and all are scaled by C / in_channels; where
    either has fewer than three (grey is all colours at once), all get the mean filter. A grey photo then gives what the
    same photo gave in RGB, apart from the colours' different normalisation.
    """
    known = weight.shape[1]
    mean = weight.mean(1, keepdim=True)
    if min(known, in_channels) < 3:
        spread = mean.expand(-1, in_channels, -1, -1)
    else:
        kept = min(known, in_channels)
        spread = torch.cat([weight[:, :kept], mean.expand(-1, in_channels - kept, -1, -1)], 1)
    return spread * (known / in_channels)


@dataclass(frozen=True)
class Adaptation:
    """What became of every entry of a model, and of a checkpoint.

    Attributes:
        loaded: copied as they are.
        adapted: copied in part: rows of known classes, the first queries, filters spread over other channels.
        new: not in the checkpoint, or of a shape that nothing can be taken from; they keep their random start.
        unused: entries of the checkpoint that the model has no place for.
        known_classes: names of the classes whose rows were copied.
    """

    loaded: tuple[str, ...]
    adapted: tuple[str, ...]
    new: tuple[str, ...]
    unused: tuple[str, ...]
    known_classes: tuple[str, ...]


def load_adapted(model: DETR, categories: Categories, state: Mapping[str, Tensor], of_state: Categories) -> Adaptation:
    """Copy what a model can use of another's weights.

    Args:
        model: to be trained.
        categories: of its classes.
        state: weights under our names.
        of_state: categories of the classes that they know.

    Raises:
        CheckpointError: they are of another architecture: less than half of the model could be taken from them.
    """
    given = {name: t for name, t in with_channels(state, model.config.in_channels).items() if not _is_count(name)}
    own = {name: tensor for name, tensor in model.state_dict().items() if not _is_count(name)}
    same_name = _labels_by_name(categories, of_state)
    loaded: list[str] = []
    adapted: list[str] = []
    new: list[str] = []
    result: dict[str, Tensor] = {}
    for name, tensor in own.items():
        if name not in given:
            new.append(name)
        elif name.startswith("heads.class_head."):
            result[name] = _class_rows(tensor, given[name], same_name, (len(categories), len(of_state)))
            is_same = same_name == {label: label for label in range(len(categories))} and len(given[name]) == len(
                tensor
            )
            (loaded if is_same else adapted).append(name)
        elif given[name].shape == tensor.shape:
            result[name] = given[name]
            (adapted if name == FIRST_CONVOLUTION and state[name].shape != tensor.shape else loaded).append(name)
        elif name in _TABLES and given[name].shape[1:] == tensor.shape[1:]:
            result[name] = _first_rows(tensor, given[name])
            adapted.append(name)
        else:
            new.append(name)
    if len(loaded) < len(own) / 2:
        misfit = next((name for name in new if name in given), next(iter(new), ""))
        found = tuple(given[misfit].shape) if misfit in given else "nothing"
        raise CheckpointError(
            f"only {len(loaded)} of the model's {len(own)} entries fit ({misfit}: found {found}, expected "
            f"{tuple(own[misfit].shape)}); use weights of the same kind of model, or give it the same shape"
        )
    model.load_state_dict(result, strict=False)
    known = tuple(categories.names[label] for label in same_name)
    return Adaptation(tuple(loaded), tuple(adapted), tuple(new), tuple(n for n in given if n not in own), known)


# of the head that judges the encoder's cells, the first row counts: whether anything is there
_PROPOSALS = ("query_source.class_head.weight", "query_source.class_head.bias")
_TABLES = ("query_source.weight", "positions.rows.weight", "positions.columns.weight", *_PROPOSALS)


def _is_count(name: str) -> bool:
    return name.endswith("num_batches_tracked")


def _labels_by_name(categories: Categories, of_state: Categories) -> dict[int, int]:
    """Our label -> theirs, for classes that have the same name but for case and blanks."""
    theirs = {" ".join(name.casefold().split()): label for label, name in reversed(list(enumerate(of_state.names)))}
    ours = {label: " ".join(name.casefold().split()) for label, name in enumerate(categories.names)}
    return {label: theirs[name] for label, name in ours.items() if name in theirs}


def _class_rows(
    own: Float[Tensor, "K1 ..."], given: Float[Tensor, "L1 ..."], same: Mapping[int, int], counts: tuple[int, int]
) -> Tensor:
    """Rows of the classes that both know, and of no-object: the last one where there are more rows than classes."""
    if own.shape[1:] != given.shape[1:]:
        return own
    rows = own.clone()
    if len(own) > counts[0] and len(given) > counts[1]:
        rows[-1] = given[-1]
    for label, theirs in same.items():
        if theirs < min(counts[1], len(given)):
            rows[label] = given[theirs]
    return rows


def _first_rows(own: Float[Tensor, "N ..."], given: Float[Tensor, "M ..."]) -> Tensor:
    rows = own.clone()
    count = min(len(own), len(given))
    rows[:count] = given[:count]
    return rows
