"""Heads of Deformable DETR, of which others list one per decoder layer, and some once more within the decoder.

Here they stand once: shared, or one for each layer; those of the encoder's proposals stand apart.
"""

import re
from collections.abc import Mapping

from torch import Tensor

_LISTED = re.compile(r"(class_embed|bbox_embed)\.(\d+)\.(.+)")
PROPOSALS = "proposals."  # put before the names of the heads that judge the encoder's cells


def listed_once(state: Mapping[str, Tensor], decoder: str) -> dict[str, Tensor]:
    """Drop repetitions.

    Args:
        state: under their names.
        decoder: how names of the decoder's parts begin.

    Returns:
        Heads as `class_embed.` and `bbox_embed.` when they are shared, with the layer's number when they are not, and with
        `PROPOSALS` before them for the encoder's.
    """
    heads: dict[str, dict[int, dict[str, Tensor]]] = {}
    kept: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if match := _LISTED.fullmatch(name.removeprefix(decoder)):
            heads.setdefault(match[1], {}).setdefault(int(match[2]), {})[match[3]] = tensor
        else:
            kept[name] = tensor
    is_per_layer = any(
        name.startswith(f"{decoder}bbox_embed.") for name in state
    )  # it holds heads when it refines boxes
    num_layers = len(
        {name.removeprefix(decoder).split(".")[1] for name in kept if name.startswith(f"{decoder}layers.")}
    )
    for kind, by_layer in heads.items():
        for layer in range(num_layers if is_per_layer else 1):
            # Hugging Face writes heads that are the same only once
            entries = by_layer.get(layer, by_layer.get(0, {}))
            number = f"{layer}." if is_per_layer else ""
            kept |= {f"{kind}.{number}{rest}": tensor for rest, tensor in entries.items()}
        kept |= {f"{PROPOSALS}{kind}.{rest}": tensor for rest, tensor in by_layer.get(num_layers, {}).items()}
    return kept


def listed_by_layer(state: Mapping[str, Tensor], decoder: str, num_layers: int) -> dict[str, Tensor]:
    """Repeat shared heads for every layer, and those of a decoder that refines boxes within it; the inverse."""
    spread: dict[str, Tensor] = {}
    is_per_layer = any(_LISTED.fullmatch(name) for name in state)
    has_proposals = any(name.startswith(PROPOSALS) for name in state)
    for name, tensor in state.items():
        kind, _, rest = name.removeprefix(PROPOSALS).partition(".")
        if kind not in ("class_embed", "bbox_embed"):
            spread[name] = tensor
        elif name.startswith(PROPOSALS):
            spread[f"{kind}.{num_layers}.{rest}"] = tensor
        elif is_per_layer:
            spread[name] = tensor
        else:
            spread.update({f"{kind}.{layer}.{rest}": tensor for layer in range(num_layers)})
    if is_per_layer:
        kinds = ("bbox_embed.", "class_embed.") if has_proposals else ("bbox_embed.",)
        spread |= {decoder + name: tensor for name, tensor in spread.items() if name.startswith(kinds)}
    return spread
