"""Check whether a model can be compiled, and compile it."""

import shutil
from typing import cast

import torch
from torch import nn

from detrkit.errors import ConfigError, arg


def compile_dynamic(model: nn.Module, device: torch.device) -> nn.Module:
    """Compile a model for images of varying sizes.

    Raises:
        ConfigError: there is no C++ compiler for a CPU, or the GPU is too old.
    """
    if device.type == "cpu" and not any(shutil.which(name) for name in ("g++", "clang++", "c++")):
        raise ConfigError(
            f"{arg('compile')} needs a C++ compiler for a CPU, but none of g++, clang++ and c++ was found; install one, or "
            "do not compile."
        )
    if device.type == "cuda" and torch.cuda.get_device_capability(device)[0] < 7:
        raise ConfigError(
            f"{arg('compile')} needs a GPU of compute capability 7.0 or newer; do not compile on this one."
        )
    return cast(nn.Module, torch.compile(model, dynamic=True))
