"""torch.compile, or the reason why not."""

import shutil
from typing import cast

import torch
from torch import nn

from detrkit.errors import ConfigError


def compiled(model: nn.Module, device: torch.device) -> nn.Module:
    """Compile a model for photos of changing sizes.

    Raises:
        ConfigError: nothing here can compile for the device.
    """
    if device.type == "cpu" and not any(shutil.which(name) for name in ("g++", "clang++", "c++")):
        raise ConfigError(
            "compile: found no C++ compiler, which compiling for a CPU needs; install one, or leave it out"
        )
    if device.type == "cuda" and torch.cuda.get_device_capability(device)[0] < 7:
        raise ConfigError("compile: this GPU is older than what torch compiles for (capability 7.0); leave it out")
    return cast(nn.Module, torch.compile(model, dynamic=True))
