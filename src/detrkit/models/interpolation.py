"""Bicubic interpolation of tables of position embeddings as products of matrices, which every engine can compute.

`torch.nn.functional.interpolate` computes the same; its antialiased kind cannot be exported to ONNX.
"""

import torch
from jaxtyping import Float
from torch import Tensor

_SHARPNESS = -0.75  # parameter of the cubic filter without antialiasing, as in PyTorch
_ANTIALIASED_SHARPNESS = -0.5  # with it, as in Pillow


def resize_table(
    table: Float[Tensor, "rows columns C"], size: tuple[int, int], *, antialias: bool
) -> Float[Tensor, "h w C"]:
    """Resize a table of embeddings bicubically; pixels are areas (`align_corners=False`).

    Args:
        table: an embedding per cell.
        size: (height, width) of the result.
        antialias: widen the filter where the result is smaller, and leave out what is beyond the table's edge instead of
            repeating its last cell.
    """
    rows, columns, channels = table.shape
    if not torch.compiler.is_compiling() and size == (rows, columns):
        return table
    weights = [
        (_antialiased_weights if antialias else _cubic_weights)(target, source, table.device).to(table.dtype)
        for target, source in zip(size, (rows, columns), strict=True)
    ]
    of_rows = (weights[0] @ table.reshape(rows, columns * channels)).unflatten(1, (columns, channels))
    return weights[1] @ of_rows


def _cubic_weights(target: int, source: int, device: torch.device) -> Float[Tensor, "target source"]:
    """Compute the weights of all source cells, of which the four next to each target cell are not zero."""
    position = (torch.arange(target, device=device) + 0.5) * _scale(target, source, device) - 0.5
    first = position.floor()
    cells = torch.arange(source, device=device)
    weights = torch.zeros((), device=device)
    for step in range(-1, 3):
        cell = (first + step).clamp(0, source - 1)
        weight = _cubic_filter(position - first - step, _SHARPNESS)
        weights = weights + weight[:, None] * (cells == cell[:, None])
    return weights


def _antialiased_weights(target: int, source: int, device: torch.device) -> Float[Tensor, "target source"]:
    """Compute the weights of all source cells; the filter is as wide as a target cell."""
    scale = _scale(target, source, device)
    center = (torch.arange(target, device=device) + 0.5) * scale
    distance = torch.arange(source, device=device) + 0.5 - center[:, None]
    weights = _cubic_filter(distance / scale.clamp(min=1.0), _ANTIALIASED_SHARPNESS)
    return weights / weights.sum(1, keepdim=True)


def _scale(target: int, source: int, device: torch.device) -> Float[Tensor, "1"]:
    """Divide two sizes as tensors: graphs for images of any size have no division of numbers."""
    numerator, denominator = (torch.full((1,), one, dtype=torch.float32, device=device) for one in (source, target))
    return numerator / denominator


def _cubic_filter(distance: Float[Tensor, "*shape"], sharpness: float) -> Float[Tensor, "*shape"]:
    """Evaluate Keys' cubic convolution filter, which is zero from a distance of 2 on."""
    x = distance.abs()
    near = ((sharpness + 2) * x - (sharpness + 3)) * x * x + 1
    far = ((x - 5) * x + 8) * x * sharpness - 4 * sharpness
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))
