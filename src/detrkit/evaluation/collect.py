"""Runs a model over a dataset and collects what it says as COCO results."""

from collections.abc import Iterable
from typing import Any

import torch

from detrkit.data.categories import Categories
from detrkit.inference.runtime import Runtime, TorchRuntime
from detrkit.models.detr import DETR
from detrkit.postprocess.boxes import to_detections
from detrkit.structures import Batch


@torch.inference_mode()
def collect_results(
    model: DETR | Runtime,
    batches: Iterable[Batch],
    categories: Categories,
    device: torch.device,
    exact_padding: bool = True,
) -> list[dict[str, Any]]:
    """Predict every photo; all queries are kept, for AP needs the weak ones, too.

    Args:
        model: put into eval mode, and back into the mode it was in; or an engine, which knows where and how to compute.
        batches: of the dataset, each photo once.
        categories: of the model's classes.
        device: where the model is; not asked of an engine, and nor is `exact_padding`.
        exact_padding: see `DETR.forward`.

    Returns:
        COCO results with the dataset's category ids and image ids. A photo's do not depend on its batch.
    """
    was_training = isinstance(model, DETR) and model.training
    runtime = TorchRuntime(model, device, exact_padding) if isinstance(model, DETR) else model
    results: list[dict[str, Any]] = []
    for batch in batches:
        predictions = runtime.predict(batch)
        found = to_detections(predictions, batch.original_sizes, categories.ids, categories.names)
        for image_id, detections in zip(batch.image_ids, found, strict=True):
            results.extend(detections.to_coco(image_id))
    if isinstance(model, DETR):
        model.train(was_training)
    return results
