"""Inference over a dataset: batches to detections."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool
from torch import Tensor

from detrkit.data.categories import Categories
from detrkit.errors import DetrkitError, arg
from detrkit.evaluation.arrays import DetectionArrays, object_array
from detrkit.inference.engines.torch import Engine
from detrkit.models.detr import DETR
from detrkit.models.inference_copy import inference_copy
from detrkit.ops.masks import encode_masks
from detrkit.ops.transfer import to_device_async
from detrkit.postprocess.boxes import TopK, top_detections
from detrkit.structures import Batch, Predictions

LAST_LAYER = -1
# yields the masks of all queries, one image at a time because they are large, at the size of the original image
MaskFunction = Callable[[Predictions, Batch], Iterable[Bool[Tensor, "Q H W"]]]


@torch.inference_mode()
def run_inference(
    model: DETR | Engine,
    batches: Iterable[Batch],
    categories: Categories,
    device: torch.device | None = None,
    padding_invariant: bool = True,
    layers: Sequence[int] = (LAST_LAYER,),
    masks: MaskFunction | None = None,
    on_batch: Callable[[Predictions, Batch], None] | None = None,
) -> list[DetectionArrays]:
    """Predict all images, without a score threshold: AP needs low scores, too.

    Args:
        model: model, of which a copy in eval mode predicts; or an engine, which only has the last layer.
        batches: each image once.
        categories: of the model's classes.
        device: of the model; ignored for an engine.
        padding_invariant: see `DETR`. Batches of a model that cannot be invariant are split by image size.
        layers: decoder layers.
        masks: computes the masks of the last of these layers; they are run-length encoded image by image.
        on_batch: called with the predictions of every batch.

    Returns:
        The detections of each layer; those of an image are sorted by descending score. If `padding_invariant`, they do
        not depend on the batch that the image is in.

    Raises:
        DetrkitError: scores or boxes are not finite.
    """
    if isinstance(model, DETR):
        model = inference_copy(model)
    category_ids = torch.as_tensor(categories.ids)
    parts: list[list[DetectionArrays]] = [[] for _ in layers]
    split_batches = padding_invariant and not model.config.supports_padding_invariance
    for batch in _unpadded(batches) if split_batches else batches:
        predictions = _predict(model, batch, device, padding_invariant)
        if on_batch is not None:
            on_batch(predictions, batch)
        sizes = to_device_async(torch.tensor(batch.original_sizes, dtype=torch.int64), predictions.boxes.device)
        for part, layer in zip(parts, layers, strict=True):
            top = top_detections(predictions.after_layer(layer), sizes).to_host()
            detections = [
                _to_arrays(top, index, image_id, category_ids) for index, image_id in enumerate(batch.image_ids)
            ]
            if masks is not None and part is parts[-1]:
                detections = [_add_masks(*one) for one in zip(detections, masks(predictions, batch), strict=True)]
            part.extend(detections)
    return [DetectionArrays.concat(part) for part in parts]


def _predict(model: DETR | Engine, batch: Batch, device: torch.device | None, padding_invariant: bool) -> Predictions:
    if not isinstance(model, DETR):
        return model.predict(batch)
    on_device = batch.to(device or "cpu")
    padding_mask = on_device.padding_mask if batch.is_padded else None
    model.padding_invariant = padding_invariant
    predictions: Predictions = model(on_device.images, padding_mask)
    return predictions


def _unpadded(batches: Iterable[Batch]) -> Iterator[Batch]:
    for batch in batches:
        yield from batch.unpadded()


def _to_arrays(top: TopK, index: int, image_id: int, category_ids: Tensor) -> DetectionArrays:
    """Convert the detections of one image of a batch."""
    scores, labels, corners, queries = (values[index] for values in (top.scores, top.labels, top.boxes, top.queries))
    if not (scores.isfinite().all() and corners.isfinite().all()):
        raise DetrkitError(
            f"image {image_id}: the model predicts scores or boxes that are not finite, so its weights are unusable; load "
            f"other weights, or train with a lower {arg('lr')}"
        )
    order = scores.argsort(descending=True, stable=True)
    boxes = corners[order].double().numpy()
    boxes[:, 2:] -= boxes[:, :2]
    return DetectionArrays(
        image_ids=torch.full_like(order, image_id).numpy(),
        category_ids=category_ids[labels[order]].numpy(),
        boxes=boxes,
        scores=scores[order].double().numpy(),
        queries=queries[order].numpy(),
    )


def _add_masks(detections: DetectionArrays, masks: Bool[Tensor, "Q H W"]) -> DetectionArrays:
    """Add the mask of each detection's query."""
    return replace(detections, masks=object_array(encode_masks(masks))[detections.queries])
