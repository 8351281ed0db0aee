"""Some golden numbers of RT-DETR and D-FINE; `test_golden_realtime.py` compares all if ../shared is available."""

import pytest
import torch

from detrkit.models.build import model_without_memory
from detrkit.models.feature_maps import FeatureMaps
from detrkit.models.heads.fine_grained import DistanceBins
from detrkit.models.presets import PRESETS
from detrkit.models.queries.two_stage import generate_anchors

ROWS = [0, 1, 2, 8, 15, 16, 17, 24, 31, 32]
DISTANCES = {
    "dfine-n": [-4.0, -1.999999, -1.78813, -0.796655, -0.07599, 0.0, 0.07599, 0.796655, 1.999999, 4.0],
    "dfine-x": [-8.0, -4.000002, -3.491301, -1.359305, -0.113264, 0.0, 0.113264, 1.359305, 4.000002, 8.0],
}
# parameters, trainable ones
PARAMETERS = {
    "rtdetr-r18": (20_184_464, 20_184_464),
    "rtdetr-r50": (42_891_372, 42_862_860),
    "rtdetrv2-s-dsp": (20_184_464, 20_036_432),
    "dfine-n": (3_782_693, 3_782_691),
    "dfine-x": (62_621_560, 62_596_118),
    "deim-dfine-l": (31_289_848, 31_289_846),
    "rtdetrv4-s": (10_519_253, 10_519_251),
}


@pytest.mark.parametrize("preset", DISTANCES)
def test_distances_of_the_bins_are_those_of_the_authors(preset: str) -> None:
    config = PRESETS[preset]
    distances = DistanceBins(config.reg_max, config.reg_scale)()
    torch.testing.assert_close(distances[ROWS], torch.tensor(DISTANCES[preset]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("preset", PARAMETERS)
def test_parameters_and_trainable_ones_are_as_many_as_published(preset: str) -> None:
    parameters = list(model_without_memory(PRESETS[preset]).parameters())
    trainable = sum(one.numel() for one in parameters if one.requires_grad)
    assert (sum(one.numel() for one in parameters), trainable) == PARAMETERS[preset]


@pytest.mark.parametrize(
    ("strides", "size", "counts"),
    [
        ((8, 16, 32), (640, 640), (316, 8400)),
        ((16, 32), (640, 640), (0, 2000)),
        ((8, 16, 32), (256, 448), (64, 2352)),
    ],
)
def test_as_many_anchors_are_invalid_as_in_the_authors_code(
    strides: tuple[int, ...], size: tuple[int, int], counts: tuple[int, int]
) -> None:
    sizes = tuple((size[0] // stride, size[1] // stride) for stride in strides)
    tokens = torch.zeros(1, sum(height * width for height, width in sizes), 1)
    is_valid = generate_anchors(FeatureMaps(tokens, tokens, None, sizes))[1]
    assert (int((~is_valid).sum()), is_valid.numel()) == counts
