"""Golden numbers of RT-DETR, RT-DETRv2, D-FINE, DEIM and RT-DETRv4: ../shared/golden/modern, README-realtime.md there."""

import gzip
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from detrkit import DETR, build_model, load_official_state_dict, state_dict_as_official
from tests.parity.golden_files import load_formula, read_golden

# golden files whose list of entries has another name
_STATE_DICTS = {
    "rtdetrv2_r18vd": "rtdetrv2_s_r18vd",
    "rtdetrv2_r18vd_dsp": "rtdetrv2_s_dsp",
    "deim_rtdetrv2_r18vd": "deim_rtdetrv2_s",
}


def formula(shared: Path) -> ModuleType:
    """Return the module that draws weights and images by their names."""
    return load_formula(shared, "formula_modern")


def entries(shared: Path, name: str) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of the authors' entries, of a golden file or a published variant."""
    path = shared / f"golden/modern/state_dict_{_STATE_DICTS.get(name, name)}.json.gz"
    with gzip.open(path, "rt", encoding="utf-8") as content:
        return {entry: tuple(shape) for entry, shape, _ in json.load(content)["state_dict"]}


def golden_weights(shared: Path, name: str, prefixes: tuple[str, ...] = ("",)) -> dict[str, Tensor]:
    """Return the weights of a golden file in the authors' names; entries that are constants or computed are left out.

    Args:
        shared: folder of the golden files.
        name: of the file.
        prefixes: of the entries to draw.
    """
    golden = read_golden(shared, name)
    drawn = {
        entry: formula(shared).weight(entry, shape, str(golden["salt"]))
        for entry, shape in entries(shared, name).items()
        if entry.startswith(prefixes)
    }
    state = {entry: torch.from_numpy(np.asarray(value)) for entry, value in drawn.items() if value is not None}
    start = 0
    for norm, channels in zip(golden["bn_names"], golden["bn_channels"], strict=True):
        for kind in ("mean", "var"):
            if f"{norm}.running_{kind}" in state:
                values = golden[f"bn_{kind}"][start : start + channels].astype(np.float32)
                state[f"{norm}.running_{kind}"] = torch.from_numpy(values)
        start += channels
    return state


def golden_images(shared: Path) -> Tensor:
    """Return the batch of two square images."""
    images = [formula(shared).image(f"image{index}", 320, 320) for index in range(2)]
    return torch.from_numpy(np.stack(images))


# preset of every golden file
PRESET_OF_FILE = {
    "rtdetr_r18vd": "rtdetr-r18",
    "rtdetr_r50vd": "rtdetr-r50",
    "rtdetrv2_r18vd": "rtdetrv2-s",
    "rtdetrv2_r18vd_dsp": "rtdetrv2-s-dsp",
    "dfine_n": "dfine-n",
    "dfine_s": "dfine-s",
    "dfine_m": "dfine-m",
    "dfine_l": "dfine-l",
    "dfine_x": "dfine-x",
    "deim_dfine_s": "deim-dfine-s",
    "deim_rtdetrv2_r18vd": "deim-rtdetrv2-s",
    "rtdetrv4_s": "rtdetrv4-s",
}


def golden_model(shared: Path, name: str) -> DETR:
    """Build the preset of a golden file with its weights, in eval mode."""
    model = build_model(PRESET_OF_FILE[name])
    official = state_dict_as_official(model)  # the constants
    load_official_state_dict(model, {**official, **golden_weights(shared, name)})
    return model.eval()


def rectangular_image(shared: Path) -> Tensor:
    """Return a batch of one image of 256 rows and 448 columns."""
    return torch.from_numpy(formula(shared).image("image2", 256, 448))[None]


def set_train_mode(model: DETR) -> DETR:
    """Set a model to train mode, except for its batch norms, as for the golden numbers of training."""
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    return model
