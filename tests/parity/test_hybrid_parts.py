"""Backbones and hybrid encoders against the authors' numbers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from detrkit.checkpoints.conversion import dfine_official, rtdetr_official
from detrkit.checkpoints.conversion.key_mapping import (
    Rule,
    merge_in_proj,
    rename_from_detrkit,
    rename_to_detrkit,
    split_in_proj,
    without_step_counters,
)
from detrkit.models.detr import DETR
from tests.models.hybrid_models import PARTS, hybrid_model, maps_of
from tests.parameters import slow_except
from tests.parity.modern_golden import entries, golden_images, golden_weights, read_golden

PREFIXES = ("backbone.", "encoder.", "decoder.input_proj.")
TOLERANCE = 5e-5  # README of the golden files
NAMES = [name for name in PARTS if not name.startswith("deimv2_")]  # those have other files: test_golden_deimv2.py


def official_rules(name: str) -> list[Rule]:
    """Rules of the authors' names."""
    if PARTS[name]["backbone"].startswith("hgnet"):
        own = [*dfine_official.HGNET_RULES, *dfine_official.ELAN_FUSION_RULES]
    else:
        own = [*rtdetr_official.RESNET_VD_RULES, *rtdetr_official.CSP_FUSION_RULES]
    is_first = name.startswith("rtdetr_")
    inputs = rtdetr_official.INPUT_PROJECTION_RULES_V1 if is_first else rtdetr_official.INPUT_PROJECTION_RULES
    return [*own, *rtdetr_official.ENCODER_RULES, *inputs]


def parts_state(model: DETR) -> dict[str, Tensor]:
    """Weights of the parts that are compared."""
    state = without_step_counters(model.state_dict())
    return {name: value for name, value in state.items() if name.startswith(("backbone.", "neck.", "encoder."))}


def load_parts(model: DETR, state: Mapping[str, Tensor]) -> None:
    """Load weights of the compared parts: none is missing, none is left over, and shapes are equal."""
    own = parts_state(model)
    assert {name: value.shape for name, value in state.items()} == {name: value.shape for name, value in own.items()}
    model.load_state_dict(state, strict=False)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        pytest.param("dfine_n", torch.float32, id="dfine_n"),
        pytest.param("rtdetr_r18vd", torch.float32, id="rtdetr_r18vd"),
        *(
            # float64: what remains is the rounding of the recorded numbers, on every processor
            pytest.param(name, torch.float64, marks=pytest.mark.slow, id=name)
            for name in NAMES
            if name not in ("dfine_n", "rtdetr_r18vd", "rtdetr_r34vd", "rtdetr_r50vd_m", "rtdetr_r101vd")
        ),
    ],
)
def test_maps_equal_the_authors(name: str, dtype: torch.dtype, shared: Path) -> None:
    golden, model = read_golden(shared, name), hybrid_model(name).eval()
    state = golden_weights(shared, name, PREFIXES)
    load_parts(model, rename_to_detrkit(split_in_proj(state), official_rules(name)))
    with torch.no_grad():
        maps = model.to(dtype).backbone(golden_images(shared).to(dtype))
        features = model.neck(maps, (320, 320))
        memory = model.encoder(features)
        model.encoder.output_projection = nn.ModuleList()
        encoded = maps_of(model.encoder(features))
    assert_close(memory.tokens[:, :8], golden["memory_first8"])
    for kind, actual in (("backbone", maps[-len(encoded) :]), ("encoder", encoded)):
        for level, one in enumerate(actual):
            assert_close(one[:, :8, :4, :4], golden[f"{kind}{level}_crop"])
            assert_close(one.mean((2, 3)), golden[f"{kind}{level}_mean"])


def assert_close(actual: Tensor, expected: Any) -> None:
    """Compare with the tolerance of the golden files."""
    torch.testing.assert_close(actual.double(), torch.from_numpy(expected).double(), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", slow_except(("dfine_n", "dfine_l", "rtdetr_r18vd", "rtdetrv2_r18vd"), sorted(NAMES)))
def test_names_of_the_authors_are_read_and_written(name: str, shared: Path) -> None:
    shapes = {entry: shape for entry, shape in entries(shared, name).items() if entry.startswith(PREFIXES)}
    shapes = {entry: shape for entry, shape in shapes.items() if not entry.endswith("num_batches_tracked")}
    with torch.device("meta"):
        state = {entry: torch.empty(shape) for entry, shape in shapes.items()}
        renamed = rename_to_detrkit(split_in_proj(state), official_rules(name))
        own = parts_state(hybrid_model(name))
    assert {entry: value.shape for entry, value in renamed.items()} == {
        entry: value.shape for entry, value in own.items()
    }
    written = merge_in_proj(rename_from_detrkit(own, official_rules(name)))
    assert {entry: tuple(value.shape) for entry, value in written.items()} == shapes
