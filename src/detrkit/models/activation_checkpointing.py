"""Trading time for memory: what a block computed is thrown away and computed again for the gradient."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint


def run(block: Callable[..., Any], activation_checkpointing: bool, *inputs: Any) -> Any:
    """Run a block; with `recompute`, keep nothing but its inputs until the gradient is asked for."""
    if activation_checkpointing and torch.is_grad_enabled():
        return checkpoint(block, *inputs, use_reentrant=False)
    return block(*inputs)
