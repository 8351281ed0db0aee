"""Class and box heads of Deformable DETR, which other code repeats for every decoder layer and inside the decoder.

detrkit stores each head once: a shared one, or one per layer. The heads that score the encoder's proposals (two-stage
models), which others list after those of the last layer, are separate modules in detrkit.
"""

import re
from collections.abc import Mapping

from torch import Tensor

_LAYER_HEAD = re.compile(r"(class_embed|bbox_embed)\.(\d+)\.(.+)")
PROPOSALS = "proposals."  # prefix that these functions put before the names of the heads for the encoder's proposals


def num_decoder_layers(state: Mapping[str, Tensor]) -> int:
    """Return the number of decoder layers of a state dict in detrkit's names."""
    return len({name.split(".")[2] for name in state if name.startswith("decoder.layers.")})


def merge_layer_heads(state: Mapping[str, Tensor], decoder: str) -> dict[str, Tensor]:
    """Drop repeated heads.

    Args:
        state: entries in the other format.
        decoder: prefix of the decoder's entries.

    Returns:
        The entries with heads named ``class_embed.`` and ``bbox_embed.`` if they are shared, with the layer's number if
        they are not, and with `PROPOSALS` in front for the encoder's proposals.
    """
    heads: dict[str, dict[int, dict[str, Tensor]]] = {}
    merged: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if match := _LAYER_HEAD.fullmatch(name.removeprefix(decoder)):
            heads.setdefault(match[1], {}).setdefault(int(match[2]), {})[match[3]] = tensor
        else:
            merged[name] = tensor
    # the decoder holds heads if, and only if, it refines boxes
    is_per_layer = any(name.startswith(f"{decoder}bbox_embed.") for name in state)
    layers = {name.removeprefix(decoder).split(".")[1] for name in merged if name.startswith(f"{decoder}layers.")}
    for kind, by_layer in heads.items():
        for layer in range(len(layers) if is_per_layer else 1):
            # Hugging Face writes heads that are the same tensor only once
            entries = by_layer.get(layer, by_layer.get(0, {}))
            number = f"{layer}." if is_per_layer else ""
            merged |= {f"{kind}.{number}{rest}": tensor for rest, tensor in entries.items()}
        merged |= {f"{PROPOSALS}{kind}.{rest}": tensor for rest, tensor in by_layer.get(len(layers), {}).items()}
    return merged


def repeat_layer_heads(state: Mapping[str, Tensor], decoder: str, num_layers: int) -> dict[str, Tensor]:
    """Repeat shared heads for every layer, and those of a decoder that refines boxes inside it; the inverse."""
    repeated: dict[str, Tensor] = {}
    is_per_layer = any(_LAYER_HEAD.fullmatch(name) for name in state)
    has_proposals = any(name.startswith(PROPOSALS) for name in state)
    for name, tensor in state.items():
        kind, _, rest = name.removeprefix(PROPOSALS).partition(".")
        if kind not in ("class_embed", "bbox_embed"):
            repeated[name] = tensor
        elif name.startswith(PROPOSALS):
            repeated[f"{kind}.{num_layers}.{rest}"] = tensor
        elif is_per_layer:
            repeated[name] = tensor
        else:
            repeated.update({f"{kind}.{layer}.{rest}": tensor for layer in range(num_layers)})
    if is_per_layer:
        kinds = ("bbox_embed.", "class_embed.") if has_proposals else ("bbox_embed.",)
        repeated |= {decoder + name: tensor for name, tensor in repeated.items() if name.startswith(kinds)}
    return repeated
