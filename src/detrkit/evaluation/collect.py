"""Runs a model over a dataset and collects what it says as COCO results."""

from collections.abc import Iterable
from typing import Any

import torch

from detrkit.data.categories import Categories
from detrkit.models.detr import DETR
from detrkit.postprocess.boxes import to_detections
from detrkit.structures import Batch


@torch.inference_mode()
def collect_results(
    model: DETR,
    batches: Iterable[Batch],
    categories: Categories,
    device: torch.device,
    exact_padding: bool = True,
) -> list[dict[str, Any]]:
    """Predict every photo; all queries are kept, for AP needs the weak ones, too.

    Args:
        model: put into eval mode, and back into the mode it was in.
        batches: of the dataset, each photo once.
        categories: of the model's classes.
        device: where the model is.
        exact_padding: see `DETR.forward`.

    Returns:
        COCO results with the dataset's category ids and image ids. A photo's do not depend on its batch.
    """
    was_training = model.training
    model.eval()
    results: list[dict[str, Any]] = []
    for batch in batches:
        on_device = batch.to(device)
        mask = on_device.padding_mask if batch.is_padded else None
        predictions = model(on_device.images, mask, exact_padding=exact_padding)
        found = to_detections(predictions, batch.original_sizes, categories.ids, categories.names)
        for image_id, detections in zip(batch.image_ids, found, strict=True):
            results.extend(detections.to_coco(image_id))
    model.train(was_training)
    return results
