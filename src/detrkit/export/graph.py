"""The graph that is exported: the model's own forward, with its outputs by name, for batches and photos of any size.

Input: a model in eval mode. Output: a `torch.export` program with the inputs images (B, C, H, W), padding_mask (B, H, W)
and, with post-processing, sizes (B, 2), and the outputs that `Description.output_names` lists.
"""

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import jaxtyping
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torchvision.ops import FrozenBatchNorm2d

from detrkit.errors import ExportError
from detrkit.inference.exported import SMALLEST_SIDE
from detrkit.inference.exported_onnx import first_line
from detrkit.models.backbone import ResNetBackbone
from detrkit.models.config import ModelConfig
from detrkit.models.detr import DETR
from detrkit.postprocess.boxes import best_class_boxes
from detrkit.structures import Predictions

MOST_PHOTOS = 1024  # in a batch
LONGEST_SIDE = 8192  # pixels


class RelativeOutputs(nn.Module):
    """Class logits of the last layer, and boxes cxcywh relative to each image without its padding."""

    def __init__(self, model: DETR, exact_padding: bool) -> None:
        super().__init__()
        self.model = model
        self.exact_padding = exact_padding

    def forward(self, images: Float[Tensor, "B C H W"], padding_mask: Bool[Tensor, "B H W"]) -> tuple[Tensor, ...]:
        """Predict."""
        predictions = self.model(images, padding_mask, exact_padding=self.exact_padding)
        return (predictions.class_logits, predictions.boxes, *_masks(predictions))


class PixelOutputs(RelativeOutputs):
    """Scores, labels and boxes xyxy in pixels of photos whose sizes, (height, width), are an input."""

    def forward(  # type: ignore[override]  # the sizes make it another network
        self, images: Float[Tensor, "B C H W"], padding_mask: Bool[Tensor, "B H W"], sizes: Int64[Tensor, "B 2"]
    ) -> tuple[Tensor, ...]:
        """Predict and post-process."""
        predictions = self.model(images, padding_mask, exact_padding=self.exact_padding)
        return (*best_class_boxes(predictions.class_logits, predictions.boxes, sizes), *_masks(predictions))


def export_program(model: DETR, *, exact_padding: bool, postprocess: bool) -> ExportedProgram:
    """Trace a model.

    Args:
        model: is left as it is.
        exact_padding: see `DETR.forward`.
        postprocess: see `PixelOutputs`.

    Raises:
        ExportError: its backbone does something that a graph for photos of any size cannot hold.
    """
    folded = fold_norms(model)
    network = (PixelOutputs if postprocess else RelativeOutputs)(folded, exact_padding).eval()
    examples, shapes = _examples(model.config, postprocess)
    try:
        with _without_shape_checks(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about torch's own inner workings
            return torch.export.export(network, examples, dynamic_shapes=shapes)
    except Exception as error:  # torch.export raises many kinds
        raise ExportError(
            f"export: the model with backbone {model.config.backbone!r} cannot be a graph for photos of any size "
            f"({first_line(error)}); choose another backbone"
        ) from None


def fold_norms(model: DETR) -> DETR:
    """Copy a model, with every batch norm of a ResNet multiplied into the convolution before it."""
    folded = copy.deepcopy(model).eval().cpu().requires_grad_(False)
    if isinstance(folded.backbone, ResNetBackbone):
        for block in [folded.backbone.body, *(block for stage in folded.backbone.stages for block in stage)]:
            for name, norm_name in _convolutions(block):
                convolution, norm = block.get_submodule(name), block.get_submodule(norm_name)
                assert isinstance(convolution, nn.Conv2d)
                assert isinstance(norm, FrozenBatchNorm2d | nn.BatchNorm2d)
                block.set_submodule(name, _fold(convolution, norm))
                block.set_submodule(norm_name, nn.Identity())
    return folded


def _convolutions(block: nn.Module) -> list[tuple[str, str]]:
    """Names of the convolutions of a part of torchvision's ResNets, with the names of their norms."""
    pairs = [(f"conv{n}", f"bn{n}") for n in (1, 2, 3) if hasattr(block, f"conv{n}")]
    return [*pairs, ("downsample.0", "downsample.1")] if getattr(block, "downsample", None) is not None else pairs


def _fold(convolution: nn.Conv2d, norm: FrozenBatchNorm2d | nn.BatchNorm2d) -> nn.Conv2d:
    folded = copy.deepcopy(convolution)
    assert isinstance(norm.running_mean, Tensor)
    assert isinstance(norm.running_var, Tensor)
    weight, bias = fuse_conv_bn_weights(
        convolution.weight, None, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
    folded.weight, folded.bias = (nn.Parameter(tensor.detach(), requires_grad=False) for tensor in (weight, bias))
    return folded


def _examples(config: ModelConfig, postprocess: bool) -> tuple[tuple[Tensor, ...], dict[str, dict[int, Dim]]]:
    """Inputs to trace with, and which of their axes may have any length."""
    longest = LONGEST_SIDE
    if config.position_encoding == "learned":
        longest = min(longest, config.position_table_size * config.stride)
    if longest <= 3 * SMALLEST_SIDE:
        raise ExportError(
            f"export: the model's tables of learned positions end at {longest} pixels, expected more than "
            f"{3 * SMALLEST_SIDE}; train it with a larger position_table_size"
        )
    batch, height, width = (
        Dim("batch", min=1, max=MOST_PHOTOS),
        Dim("height", min=SMALLEST_SIDE, max=longest),
        Dim("width", min=SMALLEST_SIDE, max=longest),
    )
    images = torch.zeros(2, config.in_channels, 2 * SMALLEST_SIDE + 32, 3 * SMALLEST_SIDE)
    padding_mask = torch.zeros(2, *images.shape[2:], dtype=torch.bool)
    examples = (images, padding_mask)
    shapes: dict[str, dict[int, Dim]] = {
        "images": {0: batch, 2: height, 3: width},
        "padding_mask": {0: batch, 1: height, 2: width},
    }
    if not postprocess:
        return examples, shapes
    return (*examples, torch.ones(2, 2, dtype=torch.int64)), {**shapes, "sizes": {0: batch}}


@contextmanager
def _without_shape_checks() -> Iterator[None]:
    """Leave signatures alone, if something checks them at run time: while tracing, sizes are symbols and no integers."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", before)


def _masks(predictions: Predictions) -> tuple[Tensor, ...]:
    return () if predictions.masks is None else (predictions.masks,)
