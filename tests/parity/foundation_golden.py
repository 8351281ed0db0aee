"""Golden numbers of LW-DETR and RF-DETR: ../shared/golden/modern, README-foundation.md there."""

import gzip
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from detrkit import DETR, build_model, load_official_state_dict
from tests.parity.golden_files import load_formula, read_golden

# preset of every golden file, and the published file whose entries it has
PRESET_OF_FILE = {
    "lwdetr_tiny": ("lwdetr-tiny", "LWDETR_tiny_60e_coco.pth"),
    "lwdetr_small": ("lwdetr-small", "LWDETR_small_60e_coco.pth"),
    "lwdetr_large": ("lwdetr-large", "LWDETR_large_60e_coco.pth"),
    "rfdetr_nano": ("rfdetr-nano", "rf-detr-nano.pth"),
    "rfdetr_base": ("rfdetr-base", "rf-detr-base.pth"),
    "rfdetr_large": ("rfdetr-large", "rf-detr-large-2026.pth"),
    "rfdetr_large_deprecated": ("rfdetr-large-deprecated", "rf-detr-large.pth"),
    "rfdetr_seg_nano": ("rfdetr-seg-nano", "rf-detr-seg-nano.pt"),
    "rfdetr_seg_small": ("rfdetr-seg-small", "rf-detr-seg-small.pt"),
}
GROUPS = 13
TABLES = ("refpoint_embed.weight", "query_feat.weight")  # a row for every query of every group


def formula(shared: Path) -> ModuleType:
    """Return the module that draws weights and images by their names."""
    return load_formula(shared, "formula_foundation")


@cache
def published_files(shared: Path, family: str) -> Mapping[str, Any]:
    """Return entries and numbers of parameters of the published files of a family."""
    with gzip.open(shared / f"golden/modern/{family}_state_dicts.json.gz", "rt", encoding="utf-8") as content:
        files: Mapping[str, Any] = json.load(content)
    return files


def golden_model(shared: Path, name: str) -> DETR:
    """Build the preset of a golden file with its weights, in the mode of the golden numbers, without drop path."""
    is_training = name.endswith("_train")
    preset, file = PRESET_OF_FILE[name.removesuffix("_train")]
    count = int(read_golden(shared, name)["meta_num_queries"])
    model = build_model(preset, num_queries=count, drop_path=0.0)
    weights: dict[str, Tensor] = {}
    for entry, shape, _ in published_files(shared, name.partition("_")[0])[file]["state"]:
        size = (GROUPS * count, *shape[1:]) if entry in TABLES else tuple(shape)
        if formula(shared).is_drawn(entry):
            weights[entry] = torch.from_numpy(np.asarray(formula(shared).weight(entry, size)))
    load_official_state_dict(model, weights)
    return model.train(is_training)


def golden_image(shared: Path, number: int, size: tuple[int, int]) -> Tensor:
    """Return an image by its number."""
    return torch.from_numpy(formula(shared).image(f"image{number}", *size))


def golden_images(shared: Path, name: str) -> Tensor:
    """Return the batch of two images of a golden file."""
    golden = read_golden(shared, name)
    height, width = golden["meta_height_width"].tolist()
    return torch.stack([golden_image(shared, number, (height, width)) for number in golden["meta_image_ids"]])


def padded_images(shared: Path, name: str) -> tuple[Tensor, Tensor]:
    """Return the batch whose second image is padded, and its padding mask."""
    golden, images = read_golden(shared, name), golden_images(shared, name)
    height, width = golden["padded/image1_size"].tolist()
    images[1] = 0
    images[1, :, :height, :width] = golden_image(shared, golden["meta_image_ids"][1], (height, width))
    mask = torch.zeros(2, *images.shape[2:], dtype=torch.bool)
    mask[1, height:], mask[1, :, width:] = True, True
    return images, mask
