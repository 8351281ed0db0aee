"""Golden numbers of DEIMv2 with an HGNetV2: ../shared/golden/modern, README-foundation.md there."""

import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from detrkit import DETR, build_model, load_official_state_dict, state_dict_as_official
from detrkit.structures import Batch, Target
from detrkit.training.denoising import ImageNoise
from tests.parity import golden_files
from tests.parity.golden_files import load_formula

SIZES = ("atto", "femto", "pico", "n")
COUNTS, COPIES = (7, 3), 14  # objects per image, denoising groups
_CLASSES = 80


def formula(shared: Path) -> ModuleType:
    """Return the module that draws weights and images by their names."""
    return load_formula(shared, "formula_foundation")


def read_golden(shared: Path, name: str) -> Mapping[str, Any]:
    """Return the arrays of a golden file, such as "atto_train"."""
    return golden_files.read_golden(shared, f"deimv2_{name}")


def entries(shared: Path, size: str) -> list[tuple[str, tuple[int, ...], str]]:
    """Return names, shapes and dtypes of the entries of a published file."""
    with gzip.open(shared / "golden/modern/deimv2_state_dicts.json.gz", "rt", encoding="utf-8") as content:
        state = json.load(content)[f"deimv2_hgnetv2_{size}_coco"]["state"]
    return [(name, tuple(shape), dtype) for name, shape, dtype in state]


def golden_weights(shared: Path, size: str) -> dict[str, Tensor]:
    """Return the weights of a golden file in the authors' names, without computed entries."""
    draws = formula(shared)
    drawn = {
        name: draws.weight(name if size == "n" else draws.shared(name), shape)
        for name, shape, _ in entries(shared, size)
        if draws.is_drawn(name)
    }
    return {name: torch.from_numpy(np.asarray(value)) for name, value in drawn.items()}


def golden_model(shared: Path, size: str, **overrides: Any) -> DETR:
    """Build the preset with the weights of its golden files, in eval mode."""
    model = build_model(f"deimv2-{size}", **overrides)
    load_official_state_dict(model, {**state_dict_as_official(model), **golden_weights(shared, size)})
    return model.eval()


def golden_images(shared: Path, golden: Mapping[str, Any]) -> Tensor:
    """Return the batch of two images of a golden file."""
    height, width = golden["meta_height_width"].tolist()
    images = [formula(shared).image(f"image{number}", height, width) for number in golden["meta_image_ids"]]
    return torch.from_numpy(np.stack(images))


def golden_batch(shared: Path, golden: Mapping[str, Any]) -> Batch:
    """Return the images of a golden file of training, with their objects."""
    images, targets = golden_images(shared, golden), []
    for number, count in enumerate(COUNTS):
        drawn = formula(shared).target(f"target{number}", count, _CLASSES)
        targets.append(Target(torch.from_numpy(drawn["boxes"]), torch.from_numpy(drawn["labels"])))
    size = (images.shape[2], images.shape[3])
    return Batch(images, torch.zeros(2, *size, dtype=torch.bool), targets, [0, 1], [size] * 2, [size] * 2)


def golden_noise(shared: Path) -> list[ImageNoise]:
    """Return the noise of denoising queries by image."""
    most = max(COUNTS)

    def uniform(name: str, *shape: int) -> Tensor:
        """(image, object, side, copy, ...)"""
        values = torch.from_numpy(formula(shared).uniform(name, (2, 2 * COPIES * most, *shape)))
        return values.unflatten(1, (COPIES, 2, most)).transpose(1, 3)

    part = uniform("dn.part", 4) + torch.tensor([0.0, 1.0])[None, None, :, None, None]
    shares = (2 * (2 * uniform("dn.sign", 4)).floor() - 1) * part
    new = (_CLASSES * uniform("dn.label_new")).long()
    labels = torch.where(uniform("dn.label_mask") < 0.25, new, -1)
    return [(shares[image, :count], labels[image, :count]) for image, count in enumerate(COUNTS)]
