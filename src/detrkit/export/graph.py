"""Trace a model with `torch.export`, for batches and images of any size.

The program has the inputs images (B, C, H, W), padding_mask (B, H, W) and, with post-processing, sizes (B, 2), and the
outputs that `ExportMetadata.output_names` lists.
"""

import copy
import importlib
import operator
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import jaxtyping
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from detrkit._internal.text import first_line
from detrkit.config.model import ModelConfig
from detrkit.errors import ExportError
from detrkit.inference.engines.metadata import min_side
from detrkit.models.detr import DETR
from detrkit.models.fuse import fuse_for_inference
from detrkit.postprocess.boxes import top_detections
from detrkit.structures import Predictions

MAX_BATCH_SIZE = 1024
MAX_SIDE = 8192  # pixels


class RelativeOutputs(nn.Module):
    """Wraps a model to return class logits of the last layer, and boxes cxcywh relative to the unpadded image."""

    def __init__(self, model: DETR) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Float[Tensor, "B C H W"], padding_mask: Bool[Tensor, "B H W"]) -> tuple[Tensor, ...]:
        """Return (B, Q, K+1) class logits, or (B, Q, K) with sigmoid scores; (B, Q, 4) boxes; (B, Q, h, w) masks."""
        predictions = self.model(images, padding_mask)
        return (predictions.class_logits, predictions.boxes, *_masks(predictions))


class PixelOutputs(RelativeOutputs):
    """Wraps a model to return scores, labels and boxes xyxy in pixels; the images' (height, width) are an input."""

    def forward(  # type: ignore[override]  # one more input
        self, images: Float[Tensor, "B C H W"], padding_mask: Bool[Tensor, "B H W"], sizes: Int64[Tensor, "B 2"]
    ) -> tuple[Tensor, ...]:
        """Return (B, A) scores, (B, A) labels, (B, A, 4) boxes, by descending score; (B, A, h, w) masks."""
        predictions = self.model(images, padding_mask)
        best = top_detections(predictions, sizes)
        masks = _masks(predictions)
        if predictions.class_scores == "sigmoid":  # a query may be detected as several classes
            images_index = torch.arange(images.shape[0])[:, None]
            masks = tuple(one[images_index, best.queries] for one in masks)
        return (best.scores, best.labels, best.boxes, *masks)


def export_program(model: DETR, *, postprocess: bool) -> ExportedProgram:
    """Trace a model.

    Args:
        model: in eval mode; not changed.
        postprocess: return scores, labels and boxes in pixels, see `PixelOutputs`.

    Raises:
        ExportError: the backbone cannot be traced for images of any size.
    """
    if any(type(module).__name__.endswith("Same") for module in model.modules()):
        raise ExportError(  # torch.export would take hours
            f"export: backbone {model.config.backbone!r} pads by each image's size, which a graph for images of any size "
            "cannot express; train with one that does not, such as tf_efficientnet_lite0"
        )
    # without gradients, and with filters in the memory order that other engines expect
    fused = (
        fuse_for_inference(copy.deepcopy(model).cpu()).requires_grad_(False).to(memory_format=torch.contiguous_format)
    )
    network = (PixelOutputs if postprocess else RelativeOutputs)(fused).eval()
    examples, shapes = _examples(model.config, postprocess)
    try:
        with _without_shape_checks(), _without_pooling_guards(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about internals of torch
            return torch.export.export(network, examples, dynamic_shapes=shapes)
    except Exception as error:  # torch.export raises many kinds
        raise ExportError(
            f"export: the model with backbone {model.config.backbone!r} cannot be traced for images of any size "
            f"({first_line(error)}); choose another backbone"
        ) from None


def _examples(config: ModelConfig, postprocess: bool) -> tuple[tuple[Tensor, ...], dict[str, dict[int, Dim]]]:
    """Return inputs to trace with, and their dynamic axes."""
    max_length, min_length = MAX_SIDE, min_side(config)
    if config.position_embedding == "learned":
        max_length = min(max_length, config.max_position_embeddings * config.stride)
    if max_length <= 3 * min_length:
        raise ExportError(
            f"export: the model's learned position embeddings end at {max_length} pixels, expected more than "
            f"{3 * min_length}; train it with a larger max_position_embeddings"
        )
    batch = Dim("batch", min=1, max=MAX_BATCH_SIZE)
    divisor = config.size_divisor
    if divisor == 1:
        height, width = (Dim(name, min=min_length, max=max_length) for name in ("height", "width"))
        images = torch.zeros(2, config.in_channels, 2 * min_length + 32, 3 * min_length)
    else:  # sides are multiples of it
        height, width = (
            divisor * Dim(f"{name}_units", min=2, max=max_length // divisor) for name in ("height", "width")
        )
        images = torch.zeros(2, config.in_channels, 5 * divisor, 6 * divisor)
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
    """Disable run-time checks of jaxtyping signatures: sizes are symbols while tracing."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", before)


@contextmanager
def _without_pooling_guards() -> Iterator[None]:
    """Trace pooling for all sizes: torch 2.11 tied the graph to those with a remainder like that of the example.

    Its shape function divided as C++ does, which needs the remainder; torch 2.13 uses `//`.
    """
    meta = importlib.import_module("torch._meta_registrations")
    before = getattr(meta, "div_rtn", None)
    if before is None:
        yield
        return
    vars(meta)["div_rtn"] = operator.floordiv
    try:
        yield
    finally:
        vars(meta)["div_rtn"] = before


def _masks(predictions: Predictions) -> tuple[Tensor, ...]:
    masks = predictions.masks
    return () if masks is None else (masks,)
