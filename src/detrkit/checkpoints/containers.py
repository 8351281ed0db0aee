"""The weights of a detector inside a training checkpoint: which entry they are in, and which prefixes wrappers added.

Training scripts store weights under any name ("model", "ema.module", "state_dict"), and wrappers put prefixes before the
entries ("module." of DistributedDataParallel, "_orig_mod." of torch.compile, "model." of Lightning). Both are found by
content: weights are what the formats in `conversion.registry`, or detrkit's own names, recognise after a prefix is removed.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from torch import Tensor

from detrkit.checkpoints.conversion.key_mapping import without_step_counters
from detrkit.checkpoints.conversion.registry import huggingface_conversion, official_conversion
from detrkit.errors import CheckpointError, arg

_MAX_DEPTH = 4  # of containers in containers
_MAX_MODELS = 64  # in one state dict
# added by wrappers at any depth: DistributedDataParallel, torch.compile, FSDP, activation checkpointing, DeepSpeed
_WRAPPERS = frozenset(("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"))
# of the first decoder layer, by which the prefix is found: official (DETR's, RT-DETR's), Hugging Face's, detrkit's
_NATIVE_LAYER = "decoder.layers.0.feed_forward.expand."
_LAYERS = ("transformer.decoder.layers.0.", "decoder.decoder.layers.0.", "model.decoder.layers.0.", _NATIVE_LAYER)
_MASKED = "detr."  # prefix of the box model in models with a mask head, which is not a wrapper's
_AVERAGES = ("ema", "average", "averaged", "swa")
_USUAL = ("model", "state_dict", "model_state_dict", "weights", "net", "network", "module", "params", "state")


@dataclass(frozen=True)
class Weights:
    """Weights of a detector in a training checkpoint.

    Attributes:
        key: the entries that they are in, joined by dots; empty at the top level.
        prefix: of their names, which is removed.
        tensors: the weights.
        wrappers: names of wrappers that were removed from inside of names.
    """

    key: str
    prefix: str
    tensors: dict[str, Tensor]
    wrappers: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Name by which a user chooses them."""
        return ".".join(part for part in (self.key, self.prefix.rstrip(".")) if part)

    @property
    def is_average(self) -> bool:
        """True if their name is that of a moving average of weights."""
        parts = self.name.lower().replace(".", "_").split("_")
        return any(part in _AVERAGES for part in parts)

    @property
    def is_usual(self) -> bool:
        """True if they are where most training scripts have them."""
        return not self.name or all(part in _USUAL for part in self.name.split("."))


def is_native(names: Collection[str]) -> bool:
    """Return whether these are names of detrkit's models."""
    return any(name.startswith(_NATIVE_LAYER) for name in names) and any(name.startswith("heads.") for name in names)


def is_known(names: Collection[str]) -> bool:
    """Return whether these names are those of a detector in any format."""
    return is_native(names) or bool(official_conversion(names)) or bool(huggingface_conversion(names))


def find_weights(content: Mapping[Any, Any]) -> list[Weights]:
    """Find all weights of detectors in the content of a file, in its order."""
    return [weights for key, tensors in _containers(content) for weights in _split(key, tensors)]


def select_weights(content: Mapping[Any, Any], where: Path | str, key: str | None = None) -> tuple[Weights, list[str]]:
    """Select the weights to use.

    Args:
        content: of a file.
        where: the file, for messages.
        key: name of the entry that holds them, such as "ema_model" or "ema.module"; by default the moving average, if
            there is one, or else the only ones.

    Returns:
        The weights, and what was decided, for the user.

    Raises:
        CheckpointError: there are none, or several that only the user can choose from.
    """
    found = find_weights(content)
    if key is not None:
        found = _under(found, key) or _inside(content, key) or _reject_key(content, found, where, key)
    if not found:
        raise _unknown(content, where)
    chosen = _preferred(found)
    if chosen is None:
        raise CheckpointError(
            f"{where}: holds the weights of {len(found)} models, {_listed(found)}; choose one with "
            f"{arg('state_dict_key', found[0].name)}"
        )
    return chosen, list(_notes(chosen, found, where))


def tensors_of(content: Mapping[Any, Any]) -> dict[str, Tensor]:
    """Return the tensors of any model, such as a backbone: of the usual entry that has some, without wrappers' prefixes."""
    containers = [(key, tensors) for key, tensors in _containers(content) if tensors]
    usual = [tensors for key, tensors in containers if Weights(key, "", {}).is_usual]
    tensors = next(iter(usual), next((tensors for _, tensors in containers), {}))
    return {_without_wrappers(name): tensor for name, tensor in tensors.items()}


def _containers(
    content: Mapping[Any, Any], key: str = "", depth: int = 0, seen: set[int] | None = None
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield every mapping inside of mappings once, with the tensors that it holds itself."""
    seen = set() if seen is None else seen  # mappings may contain each other
    seen.add(id(content))
    entries = {name: value for name, value in content.items() if isinstance(name, str)}
    yield key, {name: value for name, value in entries.items() if isinstance(value, Tensor)}
    if depth < _MAX_DEPTH:
        for name, value in entries.items():
            if isinstance(value, Mapping) and id(value) not in seen:
                yield from _containers(value, f"{key}.{name}" if key else name, depth + 1, seen)


def _split(key: str, tensors: Mapping[str, Tensor]) -> Iterator[Weights]:
    """Yield the weights of each model whose entries differ by a prefix."""
    named = {_without_wrappers(name): tensor for name, tensor in tensors.items() if not _is_auxiliary(name)}
    parts = {part: None for name in tensors for part in name.split(".") if part in _WRAPPERS}
    for prefix in islice(dict.fromkeys(_prefixes(named)), _MAX_MODELS):
        own = {name.removeprefix(prefix): tensor for name, tensor in named.items() if name.startswith(prefix)}
        if is_known(own):
            yield Weights(key, prefix, own, tuple(parts))


def _prefixes(names: Collection[str]) -> Iterator[str]:
    for name in names:
        for layer in _LAYERS:
            prefix, found, _ = name.partition(layer)
            if found and (not prefix or prefix.endswith(".")):
                outer = prefix.removesuffix(_MASKED)
                has_masks = outer != prefix and any(one.startswith(f"{outer}mask_head.") for one in names)
                yield outer if has_masks else prefix


def _is_auxiliary(name: str) -> bool:
    """Return whether an entry belongs to an average of weights, or to a criterion, that were saved with the model."""
    return name in ("n_averaged", "initted", "step") or _without_wrappers(name).startswith("criterion.")


def _without_wrappers(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _under(found: list[Weights], key: str) -> list[Weights]:
    """Return the weights of a name, or else those inside of the entry of this name."""
    name = key.strip(".")
    return [one for one in found if name in (one.name, one.key)] or [
        one for one in found if f".{one.name}.".startswith(f".{name}.") or one.prefix.rstrip(".") == name
    ]


def _inside(content: Any, key: str) -> list[Weights]:
    """Find weights in the entry of this name, however deep."""
    for part in key.split("."):
        content = content.get(part) if isinstance(content, Mapping) else None
    return find_weights(content) if isinstance(content, Mapping) else []


def _preferred(found: list[Weights]) -> Weights | None:
    """Return the weights to use, or None if only the user can know."""
    averages = [one for one in found if one.is_average]
    others = [one for one in found if not one.is_average]
    if len(averages) == 1 and all(_is_complete(averages[0], one) for one in others):
        return averages[0]
    usual = [one for one in others if one.is_usual]  # an average of the parameters alone lacks the statistics of norms
    if usual and len(usual) == len(others):
        return usual[0]
    return found[0] if len(found) == 1 else None


def _is_complete(average: Weights, other: Weights) -> bool:
    return average.tensors.keys() >= without_step_counters(other.tensors).keys()


def _notes(chosen: Weights, found: list[Weights], where: Path | str) -> Iterator[str]:
    if len(found) > 1:
        other = next(one for one in found if one is not chosen)
        name = repr(chosen.name) if chosen.name else "the top level"
        reason = ", the moving average," if chosen.is_average else ""
        yield (
            f"{where}: holds the weights {_listed(found)}; {name}{reason} is used, and {arg('state_dict_key', other.name)} "
            "chooses the other"
        )
    elif chosen.is_average:
        yield f"{where}: holds a moving average of weights only, {chosen.name!r}, which is used"
    removed = [f"{part}." for part in chosen.wrappers] + [chosen.prefix] * bool(chosen.prefix)
    if removed:
        yield f"{where}: removed {' and '.join(map(repr, removed))} from the names of the weights"


def _reject_key(content: Mapping[Any, Any], found: list[Weights], where: Path | str, key: str) -> list[Weights]:
    choices = _listed(found) if found else f"found the entries {_top_level(content)}"
    raise CheckpointError(
        f"{where}: {arg('state_dict_key', key)} names no weights of a detector; "
        + (f"choose one of {choices}" if found else choices)
    )


def _unknown(content: Mapping[Any, Any], where: Path | str) -> CheckpointError:
    expected = "expected those of a DETR in detrkit's, the official or Hugging Face's format"
    if not content:
        return CheckpointError(f"{where}: holds no named weights, {expected}")
    tensors = [name for name, value in content.items() if isinstance(value, Tensor)]
    if tensors:
        return CheckpointError(f"{where}: has entries such as {tensors[0]!r}, {expected}")
    inner = next(((key, name) for key, found in _containers(content) for name in found), None)
    example = f", names such as {inner[1]!r} in {inner[0]!r}" if inner else ""
    return CheckpointError(
        f"{where}: found the entries {_top_level(content)}{example}, {expected}; {arg('state_dict_key')} names an entry "
        "deeper inside, as in 'a.b'"
    )


def _top_level(content: Mapping[Any, Any]) -> str:
    names = [repr(name) for name in content]
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def _listed(found: list[Weights]) -> str:
    names = [repr(one.name) if one.name else "the top level" for one in found[:6]]
    names += [f"{len(found) - 6} more"] * (len(found) > 6)
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
