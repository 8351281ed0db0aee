"""Non-blocking copies from the host to a device."""

from collections.abc import Sequence

import torch
from jaxtyping import Shaped
from torch import Tensor


def to_device(values: Sequence[float], device: torch.device, dtype: torch.dtype = torch.int64) -> Shaped[Tensor, "N"]:
    """Copy a few numbers to a device; `torch.tensor(values, device=device)` would wait for a CUDA device."""
    return to_device_async(torch.tensor(values, dtype=dtype), device)


def to_device_async(tensor: Shaped[Tensor, "*shape"], device: torch.device) -> Shaped[Tensor, "*shape"]:
    """Copy a tensor from the host to a device; through pinned memory for CUDA, where pageable memory would block."""
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=device.type == "cuda")
