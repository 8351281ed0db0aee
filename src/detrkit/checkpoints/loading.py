"""Copying weights into a model, and saying in one sentence why that cannot be done."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from detrkit.errors import CheckpointError
from detrkit.models.detr import DETR


@dataclass(frozen=True)
class LoadReport:
    """What was copied: names of the model's entries."""

    loaded: tuple[str, ...]


def load_state(model: DETR, state: Mapping[str, Tensor]) -> LoadReport:
    """Copy `state`, in our names, into the model; all or nothing.

    Raises:
        CheckpointError: entries are missing, unknown, or of another shape.
    """
    check_state(model, state)
    given = _without_counts(state)
    model.load_state_dict(given, strict=False)
    return LoadReport(tuple(given))


def check_state(model: DETR, state: Mapping[str, Tensor]) -> None:
    """Compare names and shapes; the model may live on the meta device.

    Raises:
        CheckpointError: entries are missing, unknown, or of another shape.
    """
    own = _without_counts(model.state_dict())
    given = _without_counts(state)
    _check_head(own, given, no_object=int(model.config.class_scores == "softmax"))
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


def _without_counts(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    # ordinary batch norm counts its steps; nothing reads the count
    return {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}


def _check_head(own: Mapping[str, Tensor], given: Mapping[str, Tensor], no_object: int) -> None:
    name = next(one for one in own if one.startswith("heads.class_head."))
    if name in given and given[name].shape[0] != own[name].shape[0]:
        found, expected = given[name].shape[0] - no_object, own[name].shape[0] - no_object
        raise CheckpointError(
            f"checkpoint has a class head for {found} classes, the model expects {expected}; "
            "use weights with the same classes, or build the model with as many"
        )


def _first(names: list[str]) -> str:
    return f" (first {names[0]!r})" if names else ""
