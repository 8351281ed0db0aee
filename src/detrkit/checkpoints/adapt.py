"""Fine-tuning weights: copy what fits into a model with other classes, queries or input channels."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from detrkit.checkpoints.conversion.key_mapping import without_step_counters
from detrkit.data.categories import Categories
from detrkit.data.objects365 import OBJECTS365_NAME_OF_COCO, OBJECTS365_SLOTS
from detrkit.errors import CheckpointError
from detrkit.models.detr import DETR

# weights of the first convolution of each kind of backbone
RESNET_STEM = "backbone.body.conv1.weight"
RESNET_VD_STEM = "backbone.body.conv1.0.convolution.weight"
HGNET_STEM = "backbone.body.stem.stem1.convolution.weight"
VIT_STEM = "backbone.patch_embedding.weight"
FIRST_CONVOLUTIONS = (RESNET_STEM, RESNET_VD_STEM, HGNET_STEM, VIT_STEM)
# rows per class: of the heads, and of RT-DETR's and D-FINE's encoder and denoising queries, which end with that of padding
_CLASS_ROWS = ("heads.class_head.", "query_source.class_head.", "query_source.denoising_labels.")
# the encoder's class head of two-stage models has a row per class, of which query selection uses the first: "is object"
_PROPOSAL_HEAD = ("query_source.class_head.weight", "query_source.class_head.bias")
# of LW-DETR and RF-DETR: learned content and boxes, by query group and rank
_GROUP_TABLES = ("query_source.content", "query_source.box_deltas")
# tables of which the first rows are copied: queries, position embeddings, and the above
_TABLES = ("query_source.weight", "neck.positions.rows.weight", "neck.positions.columns.weight", *_PROPOSAL_HEAD)


def adapt_input_channels(
    state: Mapping[str, Tensor], in_channels: int, names: Sequence[str] = FIRST_CONVOLUTIONS
) -> dict[str, Tensor]:
    """Adapt the first convolution to another number of input channels; the other entries are returned as they are.

    Args:
        state: weights of a model or of its backbone.
        in_channels: channels of the model's images.
        names: of the weights that may be the first convolution's.
    """
    adapted = dict(state)
    for name in names:
        if name in adapted and adapted[name].ndim == 4 and adapted[name].shape[1] != in_channels:
            adapted[name] = adapt_first_convolution(adapted[name], in_channels)
    return adapted


def adapt_first_convolution(weight: Float[Tensor, "D C h w"], in_channels: int) -> Float[Tensor, "D _ h w"]:
    """Spread filters over another number of input channels, so that the size of the output is about the same.

    Channels that exist in both keep their filters, new ones get the mean filter, and all are scaled by C / in_channels. If
    either has fewer than three channels (grey is the mean of the colours), all get the mean filter: a grey image then
    gives what the same image gave in RGB, apart from the colours' different normalisation.
    """
    num_given = weight.shape[1]
    mean = weight.mean(1, keepdim=True)
    if min(num_given, in_channels) < 3:
        spread = mean.expand(-1, in_channels, -1, -1)
    else:
        num_kept = min(num_given, in_channels)
        spread = torch.cat([weight[:, :num_kept], mean.expand(-1, in_channels - num_kept, -1, -1)], 1)
    return spread * (num_given / in_channels)


@dataclass(frozen=True)
class Adaptation:
    """Result of `load_adapted`: what was done with each entry of the model and of the checkpoint.

    Attributes:
        loaded: copied unchanged.
        adapted: copied in part: rows of known classes, the first queries, filters spread over other channels.
        new: not in the checkpoint, or of an incompatible shape; they keep their random initialisation.
        unused: entries of the checkpoint that the model does not have.
        known_classes: names of the classes whose rows were copied.
    """

    loaded: tuple[str, ...]
    adapted: tuple[str, ...]
    new: tuple[str, ...]
    unused: tuple[str, ...]
    known_classes: tuple[str, ...]


def load_adapted(
    model: DETR, categories: Categories, state: Mapping[str, Tensor], state_categories: Categories
) -> Adaptation:
    """Copy the weights of another model as far as they fit.

    Args:
        model: to be trained.
        categories: of the model's classes.
        state: weights in detrkit's names.
        state_categories: of the classes that the weights know.

    Raises:
        CheckpointError: the architectures differ: less than half of the model could be copied.
    """
    given = without_step_counters(adapt_input_channels(state, model.config.in_channels))
    own = without_step_counters(model.state_dict())
    same_class = _labels_of_same_name(categories, state_categories)
    is_same_classes = same_class == {label: label for label in range(len(categories))}
    class_rows = _CLASS_ROWS if model.config.queries in ("selected", "mixed") else _CLASS_ROWS[:1]
    groups: dict[str, list[str]] = {"loaded": [], "adapted": [], "new": []}
    result: dict[str, Tensor] = {}
    for name, tensor in own.items():
        group = "new"
        if name in given and _plain_name(name).startswith(class_rows):
            result[name] = _class_rows(tensor, given[name], same_class, (len(categories), len(state_categories)))
            group = "loaded" if is_same_classes and len(given[name]) == len(tensor) else "adapted"
        elif name in given and given[name].shape == tensor.shape:
            result[name] = given[name]
            has_other_channels = name in FIRST_CONVOLUTIONS and state[name].shape != tensor.shape
            group = "adapted" if has_other_channels else "loaded"
        elif name in given and name in _TABLES and given[name].shape[1:] == tensor.shape[1:]:
            result[name] = _first_rows(tensor, given[name])
            group = "adapted"
        elif name in given and name in _GROUP_TABLES and given[name].shape[2:] == tensor.shape[2:]:
            result[name] = _first_rows_of_groups(tensor, given[name])
            group = "adapted"
        groups[group].append(name)
    loaded, adapted, new = (tuple(names) for names in groups.values())
    if len(loaded) < len(own) / 2:
        raise CheckpointError(_misfit_message(own, given, loaded, new))
    model.load_state_dict(result, strict=False)
    known = tuple(categories.names[label] for label in same_class)
    return Adaptation(loaded, adapted, new, tuple(name for name in given if name not in own), known)


def _plain_name(name: str) -> str:
    """Return the name of an entry without the number of its query group."""
    return re.sub(r"^query_source\.groups\.\d+\.", "query_source.", name)


def _misfit_message(
    own: Mapping[str, Tensor], given: Mapping[str, Tensor], loaded: tuple[str, ...], new: tuple[str, ...]
) -> str:
    name = next((name for name in new if name in given), next(iter(new), ""))
    shape = tuple(given[name].shape) if name in given else "nothing"
    return (
        f"only {len(loaded)} of the model's {len(own)} entries fit ({name}: found {shape}, expected "
        f"{tuple(own[name].shape)}); use weights of the same kind of model, or build it with the same settings"
    )


def _labels_of_same_name(categories: Categories, state_categories: Categories) -> dict[int, int]:
    """Map labels of the model to labels of the weights, for equal names apart from case and whitespace.

    The names of COCO also mean the classes of Objects365 that are called otherwise there.
    """
    given = {_plain(name): label for label, name in reversed(list(enumerate(state_categories.names)))}
    if len(state_categories) == OBJECTS365_SLOTS:
        for coco_name, name in OBJECTS365_NAME_OF_COCO.items():
            if _plain(name) in given:
                given.setdefault(coco_name, given[_plain(name)])
    own = {label: _plain(name) for label, name in enumerate(categories.names)}
    return {label: given[name] for label, name in own.items() if name in given}


def _plain(name: str) -> str:
    return " ".join(name.casefold().split())


def _class_rows(
    own: Float[Tensor, "K1 ..."], given: Float[Tensor, "L1 ..."], same_class: Mapping[int, int], counts: tuple[int, int]
) -> Tensor:
    """Copy the rows of classes known to both, and of "no object": the last row if there are more rows than classes."""
    if own.shape[1:] != given.shape[1:]:
        return own
    rows = own.clone()
    if len(own) > counts[0] and len(given) > counts[1]:
        rows[-1] = given[-1]
    for label, given_label in same_class.items():
        if given_label < min(counts[1], len(given)):
            rows[label] = given[given_label]
    return rows


def _first_rows(own: Float[Tensor, "N ..."], given: Float[Tensor, "M ..."]) -> Tensor:
    rows = own.clone()
    count = min(len(own), len(given))
    rows[:count] = given[:count]
    return rows


def _first_rows_of_groups(own: Float[Tensor, "G N ..."], given: Float[Tensor, "H M ..."]) -> Tensor:
    rows = own.clone()
    groups, count = (min(sides) for sides in zip(own.shape[:2], given.shape[:2], strict=True))
    rows[:groups, :count] = given[:groups, :count]
    return rows
