"""Small detectors with a ViT."""

from typing import Any

import torch

from detrkit import DETR, build_model

# two blocks, the second of which attends globally; sides are multiples of 32 pixels
LAYERS: dict[str, Any] = {
    "backbone_layers": 2,
    "patch_size": 16,
    "num_windows": 2,
    "global_layers": (1,),
    "out_layers": (1, 2),
    "position_grid": 5,
}
SMALL: dict[str, Any] = {
    **LAYERS,
    "hidden_dim": 64,
    "num_heads": 4,
    "cross_attention_heads": 8,
    "dim_feedforward": 32,
    "decoder_layers": 2,
    "num_queries": 10,
    "max_detections": 10,
    "group_detr": 2,
}


def small_vit(preset: str = "rfdetr-nano", **changes: Any) -> DETR:
    """Build LW-DETR or RF-DETR with few layers; its boxes differ from its proposals."""
    torch.manual_seed(0)
    model = build_model(preset, **{"num_classes": 3, **SMALL, **changes})
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.startswith("backbone.") and parameter.ndim == 2 and not parameter.any():
                parameter.normal_(0, 0.5 * parameter.shape[1] ** -0.5)
    return model
