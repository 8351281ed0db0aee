"""Small detectors with random weights, for tests of several rooms."""

import torch

from detrkit import Detector, build_model
from detrkit.data.categories import Categories

NAMES = ("circle", "</script><img src=x onerror=alert(1)>", "star")


def small_detector(**overrides: object) -> Detector:
    """detr-tiny with random weights whose scores, boxes and attention differ from query to query."""
    torch.manual_seed(3)
    model = build_model("detr-tiny", num_classes=3, num_queries=9, **overrides)
    with torch.no_grad():
        model.query_source.weight.mul_(3)
        for name, parameter in model.named_parameters():
            if name.endswith(("query_projection.weight", "key_projection.weight")):
                parameter.mul_(4)
            elif name.endswith("bias"):
                parameter.add_(0.1 * torch.randn_like(parameter))
        for layer in model.encoder.layers:  # equal projections: a cell attends to cells similar to it
            layer.self_attention.key_projection.weight.copy_(layer.self_attention.query_projection.weight)
        head = model.heads.class_head
        logits = model.eval()(torch.randn(1, 3, 64, 64)).class_logits[0] - head.bias
        scale = 1.5 / logits.std(0).mean()  # spread-out scores; no class dominates all queries
        head.weight.mul_(scale)
        head.bias.copy_(-scale * logits.mean(0))
    return Detector.from_model(model, Categories((1, 2, 5), NAMES), image_size=64)
