"""Small models of `transformers` with random weights."""

from typing import Any

import torch


def small_resnet() -> Any:
    """Configuration of a ResNet-18, without timm."""
    from transformers import ResNetConfig

    return ResNetConfig(
        depths=[2, 2, 2, 2], hidden_sizes=[64, 128, 256, 512], layer_type="basic", out_features=["stage4"]
    )


def randomize(model: torch.nn.Module) -> None:
    """Draw the statistics of norms, whose initial zeros and ones would hide swapped names."""
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5)
            elif tensor.ndim == 1 and tensor.is_floating_point():
                tensor.add_(0.05 * torch.randn_like(tensor))
