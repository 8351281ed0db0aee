"""AdamW with a lower rate for the backbone (paper, section A.4; published code, main.py)."""

from torch import nn
from torch.optim import AdamW

from detrkit.training.settings import TrainingSettings


def build_optimizer(model: nn.Module, settings: TrainingSettings) -> AdamW:
    """Group the trainable parameters by their rate.

    Weight decay goes to all of them, biases and norms too, as published. A learned position encoding belongs to the
    transformer here; the published code trains it at the backbone's rate, because of its name.
    """
    backbone = [p for name, p in model.named_parameters() if name.startswith("backbone.") and p.requires_grad]
    others = [p for name, p in model.named_parameters() if not name.startswith("backbone.") and p.requires_grad]
    groups = [{"params": others, "lr": settings.learning_rate}]
    if settings.backbone_learning_rate > 0 and backbone:
        groups.append({"params": backbone, "lr": settings.backbone_learning_rate})
    else:
        for parameter in backbone:
            parameter.requires_grad_(False)
    return AdamW(groups, weight_decay=settings.weight_decay, fused=True)
