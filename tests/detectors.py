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


def realtime_detector(name: str = "dfine-n", **overrides: object) -> Detector:
    """A real-time detector with random weights: boxes of some size, which every layer changes, and sampling points."""
    torch.manual_seed(0)
    sizes = {"num_classes": 3, "num_queries": 12, "hidden_dim": 64, "dim_feedforward": 64}
    model = build_model(name, **{**sizes, **overrides}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any() and parameter.ndim == 2:
                parameter.normal_(0, 0.5 * parameter.shape[1] ** -0.5)
        model.query_source.box_head.last.bias.add_(torch.tensor([0, 0, 1.8, 2.4]))
        if model.config.decoder == "fine_grained":
            heads = [model.heads.box_head] if model.config.shared_box_head else model.heads.box_head
            for head in heads:
                head.last.weight.mul_(3)
            for quality in model.heads.quality_head:
                torch.nn.init.normal_(quality[-1].weight, 0, 0.5)
    return Detector.from_model(model, Categories((1, 2, 5), NAMES), image_size=64)
