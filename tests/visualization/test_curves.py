"""Curves of a run."""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from detrkit.visualization.curves import draw_curves


def coloured_pixels(steps: Sequence[int]) -> int:
    """How much of the left chart, of the losses, has the colour of the first curve, below its legend."""
    picture = np.asarray(
        Image.open(io.BytesIO(draw_curves([{"kind": "train", "step": s, "loss": 2.0} for s in steps]))).convert("RGB")
    )
    chart = picture[picture.shape[0] // 4 :, : picture.shape[1] // 2].astype(int)
    return int((np.abs(chart - [31, 119, 180]).sum(-1) < 60).sum())


def test_a_single_reading_is_a_dot() -> None:
    assert coloured_pixels([10]) > 5
    assert coloured_pixels([10, 20]) > coloured_pixels([10])
    assert coloured_pixels([]) == 0
