"""Strict loading of a state dict, with one-sentence errors instead of a list of keys."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from detrkit.checkpoints.conversion.key_mapping import without_step_counters
from detrkit.errors import CheckpointError
from detrkit.models.detr import DETR


@dataclass(frozen=True)
class LoadReport:
    """Result of loading a state dict.

    Attributes:
        loaded: names of the model's entries that were copied.
    """

    loaded: tuple[str, ...]


def load_state_dict(model: DETR, state: Mapping[str, Tensor]) -> LoadReport:
    """Copy weights in detrkit's names into a model; nothing is changed if they do not fit.

    Raises:
        CheckpointError: entries are missing, unknown, or of another shape.
    """
    check_state_dict(model, state)
    given = without_step_counters(state)
    model.load_state_dict(given, strict=False)
    return LoadReport(tuple(given))


def check_state_dict(model: DETR, state: Mapping[str, Tensor]) -> None:
    """Compare names and shapes; the model may be on the meta device.

    Raises:
        CheckpointError: entries are missing, unknown, or of another shape.
    """
    own = without_step_counters(model.state_dict())
    given = without_step_counters(state)
    _check_class_head(own, given, no_object=int(model.config.class_scores == "softmax"))
    missing = [name for name in own if name not in given]
    unknown = [name for name in given if name not in own]
    if missing or unknown:
        raise CheckpointError(
            f"checkpoint does not fit the model: {len(missing)} entries missing{_first(missing)}, "
            f"{len(unknown)} unknown{_first(unknown)}; build the model with the checkpoint's own settings"
        )
    for name, tensor in own.items():
        if tensor.shape != given[name].shape:
            raise CheckpointError(
                f"checkpoint entry {name!r} has shape {tuple(given[name].shape)}, the model expects "
                f"{tuple(tensor.shape)}; build the model with the checkpoint's own settings"
            )


def _check_class_head(own: Mapping[str, Tensor], given: Mapping[str, Tensor], no_object: int) -> None:
    name = next(one for one in own if one.startswith("heads.class_head."))
    if name in given and given[name].shape[0] != own[name].shape[0]:
        num_given, expected = given[name].shape[0] - no_object, own[name].shape[0] - no_object
        raise CheckpointError(
            f"checkpoint has a class head for {num_given} classes, the model expects {expected}; "
            "use weights with the same classes, or build the model with as many"
        )


def _first(names: list[str]) -> str:
    return f" (first {names[0]!r})" if names else ""
