"""DETR and its parts. `detr.DETR.forward` is the paper's figure 2; `presets.build_model` puts the parts together."""
