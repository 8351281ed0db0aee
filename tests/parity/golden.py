"""Weights, images and targets drawn by formula, as for the files of ../shared/golden."""

from zlib import crc32

import numpy as np
import torch

from detrkit import DETR, Target, build_model, load_official_state_dict, state_dict_as_official
from detrkit.ops.padding import pad_to_batch


def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Draw standard normal numbers with a seed from the name."""
    return np.random.RandomState(crc32(name.encode())).standard_normal(shape).astype(np.float32)


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Draw a state-dict entry by its published name, scaled so that activations stay finite."""
    noise = draw(name, shape)
    if name.endswith("running_var"):
        return 1.0 + 0.2 * np.abs(noise)
    if name.endswith("running_mean"):
        return 0.1 * noise
    if name.endswith("weight") and any(part in name for part in (".bn", "downsample.1", "norm", ".gn")):
        return (0.3 if name.endswith("bn3.weight") else 1.0) * (1.0 + 0.1 * noise)
    if len(shape) <= 1:
        return 0.02 * noise
    if any(part in name for part in ("query_embed", "row_embed", "col_embed")):
        return noise
    fan_in = int(np.prod(shape[1:]))
    return noise * np.float32(np.sqrt((2.0 if len(shape) == 4 else 1.0) / fan_in))


def image(name: str, height: int, width: int) -> torch.Tensor:
    """Draw a normalised image (3, height, width): waves and noise."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    waves = np.stack([np.sin(x / 17 + c) + np.cos(y / (23 + c)) for c in range(3)])
    return torch.from_numpy((waves + 0.3 * draw(name, (3, height, width))).astype(np.float32))


def target(name: str, num_boxes: int, num_classes: int) -> Target:
    """Draw boxes (cxcywh, inside the image) and labels."""
    uniform = np.random.RandomState(crc32(name.encode())).random_sample((num_boxes, 4))
    size = 0.05 + 0.45 * uniform[:, 2:]
    centre = size / 2 + uniform[:, :2] * (1 - size)
    labels = np.random.RandomState(crc32((name + ".labels").encode())).randint(1, num_classes, num_boxes)
    boxes = np.concatenate([centre, size], 1).astype(np.float32)
    return Target(torch.from_numpy(boxes), torch.from_numpy(labels.astype(np.int64)))


def formula_model(name: str, **overrides: object) -> DETR:
    """Build a model with formula weights, in eval mode."""
    model = build_model(name, **overrides)
    official = state_dict_as_official(model)
    load_official_state_dict(
        model,
        {
            key: torch.from_numpy(np.asarray(weight(key, tuple(t.shape))))
            for key, t in official.items()
            if not key.endswith("num_batches_tracked")
        },
    )
    return model.eval()


def formula_batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Return two images of different sizes, padded."""
    return pad_to_batch([image("image0", 256, 320), image("image1", 224, 288)])


def formula_targets(num_classes: int, with_masks: bool = False) -> list[Target]:
    """Return targets: seven objects in the first image, three in the second."""
    targets = [target("target0", 7, num_classes), target("target1", 3, num_classes)]
    if not with_masks:
        return targets
    return [
        Target(t.boxes, t.labels, _filled(t.boxes, size))
        for t, size in zip(targets, [(256, 320), (224, 288)], strict=True)
    ]


def _filled(boxes: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    height, width = size
    masks = torch.zeros(len(boxes), height, width, dtype=torch.bool)
    for mask, (cx, cy, w, h) in zip(masks, boxes.numpy(), strict=True):
        rows = slice(int((cy - h / 2) * height), int((cy + h / 2) * height) + 1)
        columns = slice(int((cx - w / 2) * width), int((cx + w / 2) * width) + 1)
        mask[rows, columns] = True
    return masks
