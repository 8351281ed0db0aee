"""Runs a model over a dataset and collects what it says."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool
from torch import Tensor

from detrkit.data.categories import Categories
from detrkit.errors import DetrkitError
from detrkit.evaluation.arrays import DetectionArrays, objects_column
from detrkit.inference.engines.torch import Engine
from detrkit.models.detr import DETR
from detrkit.ops.masks import encode_masks
from detrkit.postprocess.boxes import TopK, best_of
from detrkit.structures import Batch, Predictions

LAST = -1
# masks of all queries, photo after photo, of the original photos' sizes; made one photo at a time, for they are large
MaskMaker = Callable[[Predictions, Batch], Iterable[Bool[Tensor, "Q H W"]]]


@torch.inference_mode()
def collect(
    model: DETR | Engine,
    batches: Iterable[Batch],
    categories: Categories,
    device: torch.device | None = None,
    padding_invariant: bool = True,
    layers: Sequence[int] = (LAST,),
    masks: MaskMaker | None = None,
    watch: Callable[[Predictions, Batch], None] | None = None,
) -> list[DetectionArrays]:
    """Predict every photo; all queries are kept, for AP needs the weak ones, too.

    Args:
        model: put into eval mode, and back into the mode it was in; or an engine, which knows its last layer alone.
        batches: of the dataset, each photo once.
        categories: of the model's classes.
        device: where the model is; an engine is not asked.
        padding_invariant: see `DETR.forward`; a backbone that lets padding in gets the photos of each size by themselves.
        layers: decoder layers whose answers are wanted.
        masks: makes masks of predictions; those of a photo are encoded as run lengths before the next photo's are made.
            The last of the layers gets them.
        watch: is shown every batch with its predictions.

    Returns:
        The detections of each of the layers, those of a photo best first. With `padding_invariant`, a photo's do not depend
        on its batch.

    Raises:
        DetrkitError: the model answers with something that is not finite.
    """
    was_training = isinstance(model, DETR) and model.training
    if isinstance(model, DETR):
        model.eval()
    ids = torch.as_tensor(categories.ids)
    parts: list[list[DetectionArrays]] = [[] for _ in layers]
    config = model.config
    leaks = padding_invariant and not config.supports_padding_invariance  # unless photos of one size come together
    for batch in (one for whole in batches for one in (whole.unpadded() if leaks else [whole])):
        if isinstance(model, DETR):
            on_device = batch.to(device or "cpu")
            mask = on_device.padding_mask if batch.is_padded else None
            predictions = model(on_device.images, mask, padding_invariant=padding_invariant, all_masks=False)
        else:
            predictions = model.predict(batch)
        if watch is not None:
            watch(predictions, batch)
        sizes = torch.tensor(batch.original_sizes, dtype=torch.int64)
        for of_layer, layer in zip(parts, layers, strict=True):
            best = best_of(predictions.after_layer(layer), sizes.to(predictions.boxes.device))
            found = [_found(best, number, image_id, ids) for number, image_id in enumerate(batch.image_ids)]
            if masks is not None and of_layer is parts[-1]:
                found = [_with_masks(*one) for one in zip(found, masks(predictions, batch), strict=True)]
            of_layer.extend(found)
    if isinstance(model, DETR):
        model.train(was_training)
    return [DetectionArrays.joined(of_layer) for of_layer in parts]


def _found(best: TopK, number: int, image_id: int, ids: torch.Tensor) -> DetectionArrays:
    scores, labels, corners, queries = (
        one[number].cpu() for one in (best.scores, best.labels, best.boxes, best.queries)
    )
    if not (scores.isfinite().all() and corners.isfinite().all()):
        raise DetrkitError(
            f"photo {image_id}: the model's scores or boxes are not finite; its weights are spoilt, start from others, or "
            "train with a lower --lr"
        )
    order = scores.argsort(descending=True, stable=True)
    pixels = corners[order].double().numpy()
    pixels[:, 2:] -= pixels[:, :2]
    return DetectionArrays(
        image_ids=torch.full_like(order, image_id).numpy(),
        category_ids=ids[labels[order]].numpy(),
        boxes=pixels,
        scores=scores[order].double().numpy(),
        queries=queries[order].numpy(),
    )


def _with_masks(found: DetectionArrays, masks: Bool[Tensor, "Q H W"]) -> DetectionArrays:
    """Give every detection its query's mask."""
    encoded = objects_column(encode_masks(masks))
    return replace(found, masks=encoded[found.queries])
