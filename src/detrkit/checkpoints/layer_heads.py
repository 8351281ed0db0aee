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
    copies = (f"{decoder}bbox_embed.", f"{decoder}class_embed.")
    kept = {name: tensor for name, tensor in state.items() if not name.startswith(copies)}
    is_per_layer = any(name.startswith(copies) for name in state)  # the decoder holds heads when it refines boxes
    num_layers = 1 + max(
        (int(m[1]) for name in state if (m := re.match(re.escape(decoder) + r"layers\.(\d+)\.", name))), default=-1
    )
    renamed: dict[str, Tensor] = {}
    for name, tensor in kept.items():
        match = _LISTED.fullmatch(name)
        if match is None:
            renamed[name] = tensor
        elif int(match[2]) >= num_layers:
            renamed[f"{PROPOSALS}{match[1]}.{match[3]}"] = tensor
        elif is_per_layer:
            renamed[name] = tensor
        elif match[2] == "0":
            renamed[f"{match[1]}.{match[3]}"] = tensor
    return renamed


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
