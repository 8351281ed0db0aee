"""The graph that is exported: the model's own forward, with its outputs by name, for batches and photos of any size.

Input: a model in eval mode. Output: a `torch.export` program with the inputs images (B, C, H, W), padding_mask (B, H, W)
and, with post-processing, sizes (B, 2), and the outputs that `ExportMetadata.output_names` lists.
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

from detrkit.config.model import ModelConfig
from detrkit.errors import ExportError
from detrkit.inference.engines.exported import min_side
from detrkit.inference.engines.onnx import first_line
from detrkit.models.detr import DETR
from detrkit.models.fuse_conv_bn import fuse_conv_bn
from detrkit.postprocess.boxes import best_of
from detrkit.structures import Predictions

MAX_IMAGES = 1024  # in a batch
LONGEST_SIDE = 8192  # pixels


class RelativeOutputs(nn.Module):
    """Class logits of the last layer, and boxes cxcywh relative to each image without its padding."""

    def __init__(self, model: DETR, padding_invariant: bool) -> None:
        super().__init__()
        self.model = model
        self.padding_invariant = padding_invariant

    def forward(self, images: Float[Tensor, "B C H W"], padding_mask: Bool[Tensor, "B H W"]) -> tuple[Tensor, ...]:
        """Predict (B, Q, K+1) class logits, or (B, Q, K) of sigmoids; (B, Q, 4) boxes; (B, Q, h, w) masks."""
        predictions = self.model(images, padding_mask, padding_invariant=self.padding_invariant, last_layer_only=True)
        return (predictions.class_logits, predictions.boxes, *_masks(predictions))


class PixelOutputs(RelativeOutputs):
    """Scores, labels and boxes xyxy in pixels of photos whose sizes, (height, width), are an input."""

    def forward(  # type: ignore[override]  # the sizes make it another network
        self, images: Float[Tensor, "B C H W"], padding_mask: Bool[Tensor, "B H W"], sizes: Int64[Tensor, "B 2"]
    ) -> tuple[Tensor, ...]:
        """Predict and post-process: (B, A) scores, (B, A) labels, (B, A, 4) boxes, best first; (B, A, h, w) masks."""
        predictions = self.model(images, padding_mask, padding_invariant=self.padding_invariant, last_layer_only=True)
        best = best_of(predictions, sizes)
        masks = _masks(predictions)
        if predictions.class_scores == "sigmoid":  # a query is answered as often as it says something
            photos = torch.arange(images.shape[0])[:, None]
            masks = tuple(one[photos, best.queries] for one in masks)
        return (best.scores, best.labels, best.boxes, *masks)


def export_program(model: DETR, *, padding_invariant: bool, postprocess: bool) -> ExportedProgram:
    """Trace a model.

    Args:
        model: is left as it is.
        padding_invariant: see `DETR.forward`.
        postprocess: see `PixelOutputs`.

    Raises:
        ExportError: its backbone does something that a graph for photos of any size cannot hold.
    """
    if any(type(module).__name__.endswith("Same") for module in model.modules()):
        raise ExportError(  # torch.export would reason about it for hours
            f"export: backbone {model.config.backbone!r} pads by each photo's size, which a graph for photos of any size "
            "cannot hold; train with one that does not, such as tf_efficientnet_lite0"
        )
    # without gradients, and with filters in the order that other engines expect
    quick = fuse_conv_bn(copy.deepcopy(model).cpu()).requires_grad_(False).to(memory_format=torch.contiguous_format)
    network = (PixelOutputs if postprocess else RelativeOutputs)(quick, padding_invariant).eval()
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


def _examples(config: ModelConfig, postprocess: bool) -> tuple[tuple[Tensor, ...], dict[str, dict[int, Dim]]]:
    """Inputs to trace with, and which of their axes may have any length."""
    longest, shortest = LONGEST_SIDE, min_side(config)
    if config.position_embedding == "learned":
        longest = min(longest, config.max_position_embeddings * config.stride)
    if longest <= 3 * shortest:
        raise ExportError(
            f"export: the model's tables of learned positions end at {longest} pixels, expected more than "
            f"{3 * shortest}; train it with a larger max_position_embeddings"
        )
    batch, height, width = (
        Dim("batch", min=1, max=MAX_IMAGES),
        Dim("height", min=shortest, max=longest),
        Dim("width", min=shortest, max=longest),
    )
    images = torch.zeros(2, config.in_channels, 2 * shortest + 32, 3 * shortest)
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
